"""What a backup has comes back into an empty store, on either database, and nowhere else."""

from __future__ import annotations

import sqlite3
from datetime import timedelta
from pathlib import Path

import pytest

from cmdsvc.errors import CmdError, ExistsError
from cmdsvc.model import Answer, Output, Reason, Schedule, Token
from cmdsvc.store import Taken, open_store
from cmdsvc.store.restoring import restore_store
from tests.store.lab import LATER, NOW, a_command, a_hook, a_run, an_arrival, query

pytest_plugins = ("tests.store.backends",)

DAY = timedelta(days=1)


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
    hook = await store.add_hook(a_hook(options={"a": "b"}), by="ann")
    for id_ in ("d1", "d2"):
        await store.accept(an_arrival(id_, hook), most=9)
    await store.claim(NOW, LATER, 1)
    await store.set_schedule(Schedule("ann/other", "@daily", "UTC", own=True, since=NOW), by="ann")
    daily = await store.schedule("ann", "other")
    assert daily
    await store.tick(daily, LATER, None, most=9)
    await store.begin_answer("", "key", Answer(b"\x00", "r1"), NOW, NOW)
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
        hook = await store.hook("ann", "hello", "push")
        assert hook is not None
        assert hook == a_hook(id=hook.id, options={"a": "b"})
        assert await store.accept(an_arrival("x", hook, same="d1"), most=9) == (
            Taken.REPEATED, "d1",
        )  # fmt: skip
        assert await store.accept(an_arrival("d3", hook), most=2) == (Taken.FULL, "d3")
        assert await store.reclaim(LATER) == 1
        taken = await store.claim(LATER, LATER, 9)
        assert {one.id: one.attempt for one in taken} == {"d1": 2, "d2": 1}
        assert taken[0].body == an_arrival(taken[0].id, hook).delivery.body
        schedule = await store.schedule("ann", "other")
        assert schedule is not None
        assert (schedule.last_at, schedule.last) == (LATER, "missed")
        found_answer = await store.begin_answer("", "key", Answer(b"", "r2"), LATER, NOW - DAY)
        assert found_answer == Answer(b"\x00", "r1")
        # What is new has numbers that the old has not.
        await store.add_hook(a_hook("pull"), by="ann")
        assert await store.accept(an_arrival("d3", hook), most=9) == (Taken.NEW, "d3")
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
