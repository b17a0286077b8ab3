"""Fixtures: a store behind each of the databases that there are, another server's, hooks.

A test module names it as a plugin.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cmdsvc.model import Hook
from cmdsvc.store import Store, open_store
from tests.availability import unavailable
from tests.store.lab import a_command, a_hook
from tests.store.postgres import NoPostgresError, Postgres, server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server that is running. Who stops it starts it again."""
    try:
        running = server()
        started = running.__enter__()
    except NoPostgresError as error:
        unavailable(str(error))
    yield started
    running.__exit__(None, None, None)


@pytest.fixture(scope="session")
def new_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a store that has nothing in it: for copies."""
    folder = tmp_path_factory.mktemp("new") / "data"
    asyncio.run(_make(f"sqlite+aiosqlite:///{folder}/store.db"))
    return folder


@pytest.fixture(scope="session")
def new_postgres(postgres: Postgres) -> Iterator[str]:
    """The database of a store that has nothing in it: for copies."""
    with postgres.database() as name:
        asyncio.run(_make(postgres.url(name)))
        yield name


async def _make(url: str) -> None:
    await (await open_store(url, server="one")).aclose()


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Of a database that is gone after the test.

    It is empty; where the test asks for `store`, or its module says so by TABLES, a store was
    opened and closed there before.
    """
    made = "store" in request.fixturenames or getattr(request.module, "TABLES", False)
    if request.param == "sqlite":
        if made:
            shutil.copytree(request.getfixturevalue("new_sqlite"), tmp_path / "data")
        yield f"sqlite+aiosqlite:///{tmp_path}/data/store.db"
        return
    running: Postgres = request.getfixturevalue("postgres")
    template = request.getfixturevalue("new_postgres") if made else "template0"
    with running.database(template) as name:
        yield running.url(name)


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    opened = await open_store(url, server="one")
    await opened.ensure_user("ann")
    yield opened
    await opened.aclose()


@pytest.fixture
async def other(store: Store, url: str) -> AsyncIterator[Store]:
    """Another server on the same database."""
    opened = await open_store(url, server="two")
    yield opened
    await opened.aclose()


@pytest.fixture
async def hook(store: Store) -> Hook:
    await store.create(**a_command())
    return await store.add_hook(a_hook(), by="ann")


@pytest.fixture
async def ordered(store: Store, hook: Hook) -> Hook:
    return await store.add_hook(a_hook("ordered", ordered=True), by="ann")
