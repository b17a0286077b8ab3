"""Opening and closing, migrations, and what is refused."""

import asyncio
import json

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, MetaData, inspect
from sqlalchemy.ext.asyncio import create_async_engine

from cmdsvc.errors import CmdError, InternalError, UsageError
from cmdsvc.store import Store, look, migrations, open_store
from cmdsvc.store.kinds import Found
from cmdsvc.store.schema import metadata
from tests.store.lab import a_command, a_run, everything, query

pytest_plugins = ("tests.store.backends",)


async def test_a_restart_finds_everything(url: str) -> None:
    first = await open_store(url, server="one")
    await first.ensure_user("ann")
    made = await first.create(**a_command())
    await first.begin_run(a_run())
    await first.aclose()
    second = await open_store(url, server="one")
    assert await second.users() == ["ann"]
    assert await second.find("ann", "hello") == made
    assert await second.runs() == [a_run()]
    await second.aclose()


async def test_closed_it_says_so(url: str) -> None:
    store = await open_store(url)
    await store.aclose()
    await store.aclose()
    for call in (
        store.find("ann", "hello"),
        store.begin_run(a_run()),
        store.ensure_user("ann"),
        store.create(**a_command()),
    ):
        with pytest.raises(InternalError, match="the store is closed"):
            await call


async def test_opened_twice_at_once(url: str) -> None:
    one, two = await asyncio.gather(open_store(url), open_store(url))
    await one.ensure_user("ann")
    assert await two.users() == ["ann"]
    await one.aclose()
    await two.aclose()


async def test_migrations_make_what_a_new_store_has(url: str, store: Store) -> None:
    def shape(connection: Connection) -> dict[str, list[str]]:
        """What the database tells of its tables; columns that were added later stand last."""
        found = inspect(connection)
        told = {
            "columns": found.get_multi_columns(),
            "primary keys": found.get_multi_pk_constraint(),
            "foreign keys": found.get_multi_foreign_keys(),
            "unique": found.get_multi_unique_constraints(),
            "indexes": found.get_multi_indexes(),
        }
        return {
            f"{part} of {table}": sorted(
                # SQLite keeps a condition as it was spelled, with a column's name quoted or not.
                json.dumps(one, sort_keys=True, default=lambda value: str(value).replace('"', ""))
                for one in ([all_of_it] if isinstance(all_of_it, dict) else all_of_it)
            )
            for part, by_table in told.items()
            for (_, table), all_of_it in by_table.items()
        }

    def both(connection: Connection) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        new = shape(connection)
        there = MetaData()
        there.reflect(connection)
        there.drop_all(connection)
        migrations.run(connection)
        return new, shape(connection)

    await store.aclose()
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        new, migrated = await connection.run_sync(both)
        differences = await connection.run_sync(
            lambda sync: compare_metadata(
                MigrationContext.configure(
                    sync, opts={"compare_type": True, "compare_server_default": True}
                ),
                metadata,
            )
        )
    await engine.dispose()
    assert migrated == new
    assert differences == []
    assert await look(url) is Found.CURRENT


async def test_a_newer_store_is_refused_untouched(url: str) -> None:
    store = await open_store(url)
    await store.ensure_user("ann")
    await store.create(**a_command())
    await store.aclose()
    await query(url, "UPDATE alembic_version SET version_num = '9999'")
    before = await everything(url)
    with pytest.raises(CmdError, match=r"newer version of this program \(schema 9999\); install"):
        await open_store(url)
    assert await everything(url) == before


async def test_a_database_of_another_program_is_refused_untouched(url: str) -> None:
    # Makes the database, then another program's of it.
    store = await open_store(url)
    await store.aclose()
    tables = [table.name for table in reversed(metadata.sorted_tables)]
    await query(url, *(f"DROP TABLE {table}" for table in (*tables, "alembic_version")))
    await query(url, "CREATE TABLE users (id INTEGER PRIMARY KEY, email TEXT)")
    before = await everything(url)
    with pytest.raises(CmdError, match="other tables than this program's"):
        await open_store(url)
    assert await everything(url) == before


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "store.db",
        "sqlite:///store.db",
        "mysql://localhost/x",
        "sqlite+aiosqlite://",
        "sqlite+aiosqlite:///:memory:",
        "sqlite+aiosqlite:///file:x?uri=true",
        "postgresql://localhost/x",
        "postgresql+psycopg://localhost/x",
        "postgresql+asyncpg://localhost",
        "postgresql+asyncpg://localhost:port/x",
    ],
)
async def test_a_url_that_is_none(wrong: str) -> None:
    with pytest.raises(UsageError) as raised:
        await open_store(wrong)
    assert "\n" not in str(raised.value)
