"""A store as the first release made it is the newest one after its opening, with all that was in it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from alembic import command
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine

from cmdsvc.model import Door, Outcome, Reason
from cmdsvc.store import migrate, open_store
from tests.store.lab import NOW, query

pytest_plugins = ("tests.store.backends",)

AT = int(NOW.timestamp() * 1_000_000)
SOURCE = b"#!cmd alpine\n#!/bin/sh\necho \x00\xff\n"


def first_release(connection: Connection) -> None:
    config = migrate._config()
    config.attributes["connection"] = connection
    command.upgrade(config, "0001")


ROWS: list[tuple[str, dict[str, Any]]] = [
    ("INSERT INTO users (name) VALUES (:name)", {"name": "ann"}),
    ("INSERT INTO users (name) VALUES (:name)", {"name": "bob"}),
    (
        "INSERT INTO commands (id, owner, name, current, last, updated_at)"
        " VALUES (7, 'ann', 'hello', 2, 3, :at)",
        {"at": AT},
    ),
    *(
        (
            "INSERT INTO versions"
            " (command_id, number, description, author, digest, created_at, source)"
            " VALUES (7, :number, 'says hello', 'ann', :digest, :at, :source)",
            {"number": n, "digest": "d" * 64, "at": AT + n, "source": SOURCE + b"#" * n},
        )
        for n in (1, 2)
    ),
    (
        'INSERT INTO runs (id, server, command, version, "user", door, started_at, ended_at,'
        " exit_status, reason, message)"
        " VALUES ('r1', 'one', 'ann/hello', 1, 'bob', 'ssh', :at, :end, 3, 'exit', '')",
        {"at": AT, "end": AT + 1_000_000},
    ),
    (
        'INSERT INTO runs (id, server, command, version, "user", door, started_at)'
        " VALUES ('r2', 'one', 'ann/hello', 2, 'ann', 'ssh', :at)",
        {"at": AT + 1},
    ),
]


@pytest.fixture
async def old(url: str) -> str:
    # Makes the file, or finds the database, as the service does.
    await (await open_store(url)).aclose()
    tables = [
        *("grants", "env", "outputs", "tokens", "entries", "notices"),
        *("runs", "versions", "commands", "users", "alembic_version"),
    ]
    await query(url, *(f"DROP TABLE {table}" for table in tables))
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(first_release)
        for statement, values in ROWS:
            await connection.execute(text(statement), values)
    await engine.dispose()
    return url


async def test_all_is_there(old: str) -> None:
    store = await open_store(old, server="one")
    try:
        assert await store.users() == ["ann", "bob"]
        found = await store.find("ann", "hello")
        assert found is not None
        assert found.version.number == 2
        assert found.version.source == SOURCE + b"##"
        assert found.version.created_at == NOW + timedelta(microseconds=2)
        assert (found.access, found.admins, dict(found.env)) == (frozenset(), frozenset(), {})
        assert await store.source("ann", "hello", 1) == SOURCE + b"#"
        assert await store.mark_lost(NOW + timedelta(seconds=9)) == 1
        second, first = await store.runs_seen_by("ann")
        assert (first.id, first.user, first.door) == ("r1", "bob", Door.SSH)
        assert first.outcome == Outcome(3, Reason.EXIT)
        assert second.outcome is not None
        assert second.outcome.reason is Reason.LOST
        assert await store.digests() == {"d" * 64: 2}
    finally:
        await store.aclose()


async def test_it_goes_on_from_there(old: str) -> None:
    store = await open_store(old)
    try:
        await store.set_access("ann", "hello", grant=["bob"], by="ann")
        assert [listing.full_name for listing in await store.runnable("bob")] == ["ann/hello"]
        added = await store.add_version(
            owner="ann", name="hello", description="", source=SOURCE, author="ann",
            digest="e" * 64, created_at=NOW,
        )  # fmt: skip
        assert added.version.number == 4, "numbers are not used again"
        assert await store.rename_user("bob", "bert", by="")
        assert [run.user for run in await store.runs(command="ann/hello")] == ["ann", "bert"]
        assert await store.remove_user("ann", by="")
    finally:
        await store.aclose()
