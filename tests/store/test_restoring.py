"""What a backup has comes back into an empty store, on either database, and nowhere else."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from cmdsvc.errors import CmdError, ExistsError
from cmdsvc.model import Output, Reason, Token
from cmdsvc.store import open_store
from cmdsvc.store.restoring import restore_store
from tests.store.lab import NOW, a_command, a_run, query

pytest_plugins = ("tests.store.backends",)


@pytest.fixture
async def backup(tmp_path: Path) -> Path:
    store = await open_store(f"sqlite+aiosqlite:///{tmp_path}/first/store.db")
    for name in ("ann", "bob"):
        await store.ensure_user(name)
    await store.create(**a_command())
    await store.create(**a_command("other"))
    await store.set_access("ann", "hello", grant=["bob"], by="ann")
    await store.set_env("ann", "hello", put={"WORD": b"\x00sealed"}, by="ann")
    token = Token("cmd_00000001", "bob", "", NOW, None, None)
    await store.add_token(token, b"digest", by="bob")
    await store.begin_run(a_run())
    await store.keep_output("r1", Output(((1, b"\x00out"),), ((2, b"err"),), 5))
    await store.backup(tmp_path / "backup.db")
    await store.aclose()
    return tmp_path / "backup.db"


async def test_everything_is_back_and_goes_on(backup: Path, url: str) -> None:
    finished = []
    await restore_store(backup, url, lambda: finished.append(True))
    assert finished
    store = await open_store(url)
    try:
        found = await store.find("ann", "hello")
        assert found is not None
        assert found.access == {"bob"}
        assert dict(found.env) == {"WORD": b"\x00sealed"}
        assert await store.token("cmd_00000001") is not None
        output = await store.output("r1")
        assert output == Output(((1, b"\x00out"),), ((2, b"err"),), 5)
        assert (await store.entries())[0].action == "restore"
        # What is new has numbers that the old has not.
        await store.create(**a_command("third"))
        await store.set_access("ann", "third", grant=["bob"], by="ann")
        assert await store.names("ann") == ["hello", "other", "third"]
    finally:
        await store.aclose()


async def test_what_ran_then_is_lost(backup: Path, url: str) -> None:
    """No server is left that could tell its end, and what has none would be kept for ever."""
    await restore_store(backup, url, lambda: None)
    store = await open_store(url, server="new")
    try:
        run = await store.run("r1")
        assert run is not None
        assert run.outcome is not None
        assert run.outcome.reason is Reason.LOST
    finally:
        await store.aclose()


async def test_not_over_something(backup: Path, url: str) -> None:
    store = await open_store(url)
    await store.ensure_user("carol")
    await store.aclose()
    with pytest.raises(ExistsError):
        await restore_store(backup, url, lambda: pytest.fail("not that far"))
    assert [tuple(row) for row in await query(url, "SELECT name FROM users")] == [("carol",)]


async def test_what_fails_at_the_end_takes_it_back(backup: Path, url: str) -> None:
    def finish() -> None:
        raise CmdError("no room for the keys")

    with pytest.raises(CmdError, match="no room for the keys"):
        await restore_store(backup, url, finish)
    assert await query(url, "SELECT name FROM users") == []
    await restore_store(backup, url, lambda: None)


async def test_what_is_no_store(tmp_path: Path, url: str) -> None:
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE users (email TEXT)")
    connection.close()
    with pytest.raises(CmdError, match="other tables"):
        await restore_store(foreign, url, lambda: None)
