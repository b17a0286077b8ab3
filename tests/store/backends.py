"""Fixtures: a store behind each of the databases that there are, another server's, hooks.

A test module names it as a plugin.
"""

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


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Of an empty database, gone after the test."""
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path}/data/store.db"
        return
    running: Postgres = request.getfixturevalue("postgres")
    with running.database() as name:
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
