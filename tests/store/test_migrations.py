"""A store of each older program is brought up with all that is in it."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from cmdsvc.model import Outcome, Output, Reason, Schedule, State
from cmdsvc.store import Notice, Taken, look, migrations, open_store
from cmdsvc.store.kinds import Found
from tests.store.lab import (
    LATER,
    NOW,
    a_hook,
    a_run,
    a_token,
    an_arrival,
    at,
    fail,
    query,
)

pytest_plugins = ("tests.store.backends",)

AT = 1777863721123456
"""NOW, as it is stored."""
FIRST = f"""
INSERT INTO users (name) VALUES ('ann'), ('bob');
INSERT INTO commands (id, owner, name, current, last, updated_at)
VALUES (7, 'ann', 'hello', 2, 3, {AT});
INSERT INTO versions (command_id, number, description, author, digest, created_at, source)
VALUES (7, 1, 'one', 'ann', 'd1', {AT}, CAST('src1' AS BYTES)),
  (7, 2, 'two', 'bob', 'd2', {AT}, CAST('src2' AS BYTES));
INSERT INTO runs (id, server, command, version, "user", door, started_at, ended_at, exit_status,
  reason, message)
VALUES ('r1', 'one', 'ann/hello', 1, 'ann', 'ssh', {AT}, {AT + 1_000_000}, 3, 'exit', ''),
  ('r2', 'one', 'ann/hello', 2, 'bob', 'ssh', {AT}, NULL, NULL, NULL, NULL),
  ('r3', 'one', 'cmd/echo', 1, 'bob', 'ssh', {AT}, NULL, NULL, NULL, NULL)
"""
"""What a store of schema 0001 holds."""
SECOND = f"""{FIRST};
UPDATE runs SET owner = 'ann' WHERE command = 'ann/hello';
UPDATE runs SET owner = 'cmd' WHERE command = 'cmd/echo';
INSERT INTO tokens (id, owner, description, created_at, digest)
VALUES ('cmd_1', 'bob', '', {AT}, CAST('hash' AS BYTES));
INSERT INTO grants (command_id, role, "user", token)
VALUES (7, 'access', NULL, 'cmd_1'), (7, 'admin', 'bob', NULL);
INSERT INTO env (command_id, name, value) VALUES (7, 'A', CAST('sealed' AS BYTES));
INSERT INTO outputs (run_id, kept_at, size, dropped, head, tail)
VALUES ('r1', {AT}, 0, 5, CAST('' AS BYTES), CAST('' AS BYTES));
INSERT INTO entries (at, "user", action, subject, detail)
VALUES ({AT}, 'ann', 'create', 'ann/hello', '');
INSERT INTO notices (id, text, closed) VALUES (1, 'soon', 0)
"""
"""What a store of schema 0002 holds."""


async def make(url: str, revision: str, rows: str) -> None:
    """A store as the program of that schema left it."""
    if url.startswith("sqlite"):
        Path(url.partition(":///")[2]).parent.mkdir()

    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(migrations.run, revision)
    await engine.dispose()
    bytes_ = "BLOB" if url.startswith("sqlite") else "BYTEA"
    await query(url, *rows.replace("BYTES", bytes_).split(";"))


@pytest.fixture
async def first(url: str) -> str:
    await make(url, "0001", FIRST)
    return url


async def test_from_the_first(first: str) -> None:
    store = await open_store(first, server="one")
    assert await store.users() == ["ann", "bob"]
    found = await store.find("ann", "hello")
    assert found
    assert (found.description, found.version.number, found.version.source) == ("two", 2, b"src2")
    assert (found.access, found.admins, found.env) == (frozenset(), frozenset(), {})
    assert [one.number for one in await store.history("ann", "hello")] == [2, 1]
    runs: dict[str, Any] = {
        "r1": a_run("r1", ended_at=LATER, outcome=Outcome(3)),
        "r2": a_run("r2", version=2, user="bob"),
        "r3": a_run("r3", command="cmd/echo", user="bob"),
    }
    assert {run.id: run for run in await store.runs()} == runs
    # By whose command it is, which is new.
    assert {run.id for run in await store.runs_seen_by("ann")} == {"r1", "r2"}
    assert {run.id for run in await store.runs_seen_by("bob")} == {"r2", "r3"}
    assert {run.id for run in await store.runs_seen_by("bob", command="ann/hello")} == {"r2"}
    assert await store.retire_runs(before=LATER, bytes_kept=0) == (0, 0)
    assert await store.mark_lost(NOW) == 2
    lost = await store.run("r2")
    assert lost
    assert lost.outcome
    assert lost.outcome.reason is Reason.LOST
    changed = await store.add_version(
        owner="ann", name="hello", description="", source=b"4", author="ann", digest="d", created_at=NOW
    )  # fmt: skip
    assert changed.version.number == 4
    await store.set_access("ann", "hello", grant=["bob"], by="ann")
    await store.aclose()


@pytest.mark.parametrize(("revision", "rows"), [("0001", FIRST), ("0002", SECOND)])
async def test_hooks_and_schedules_of_an_older_command(url: str, revision: str, rows: str) -> None:
    await make(url, revision, rows)
    store = await open_store(url, server="one")
    try:
        hook = await store.add_hook(a_hook(), by="ann")
        assert await store.accept(an_arrival("d1", hook), most=1) == (Taken.NEW, "d1")
        assert await store.accept(an_arrival("d2", hook), most=1) == (Taken.FULL, "d2")
        assert [one.id for one in await store.claim(NOW, LATER, 9)] == ["d1"]
        assert await store.end_attempt("d1", 1, State.DONE)
        assert await store.schedules() == []
        await store.set_schedule(Schedule("ann/hello", "@daily", "UTC", own=True, since=NOW), by="")
        assert len(await store.schedules()) == 1
        await store.begin_run(a_run("r5", token="cmd_1"))
        assert {run.id: run.token for run in await store.runs()} == {
            "r1": None, "r2": None, "r3": None, "r5": "cmd_1",
        }  # fmt: skip
    finally:
        await store.aclose()


async def test_from_the_second(url: str) -> None:
    await make(url, "0002", SECOND)
    store = await open_store(url, server="one")
    found = await store.find("ann", "hello")
    assert found
    assert (found.version.source, found.access, found.admins) == (b"src2", {"cmd_1"}, {"bob"})
    assert dict(found.env) == {"A": b"sealed"}
    assert await store.token("cmd_1") == (a_token("cmd_1", owner="bob"), b"hash")
    assert await store.output("r1") == Output((), (), 5)
    assert await store.notice() == Notice("soon")
    assert [line.action for line in await store.entries()] == ["create"]
    assert {run.id for run in await store.runs_seen_by("ann")} == {"r1", "r2"}
    assert [one async for one in store.sealed()] == [(("env", "ann", "hello", "A"), b"sealed")]
    await store.aclose()


async def test_half_way_it_stays_the_second(url: str) -> None:
    await make(url, "0002", SECOND)
    with at("\nCREATE TABLE answers", fail), pytest.raises(RuntimeError):
        await open_store(url)
    assert await query(url, "SELECT version_num FROM alembic_version") == [("0002",)]
    await (await open_store(url)).aclose()


async def test_half_way_it_stays_the_first(first: str) -> None:
    with at("\nCREATE TABLE notices", fail), pytest.raises(RuntimeError):
        await open_store(first)
    assert await query(first, "SELECT version_num FROM alembic_version") == [("0001",)]
    await (await open_store(first)).aclose()


async def test_an_older_program_goes_on_beside_this_one(first: str) -> None:
    """As two servers on one database are brought up one after the other."""
    store = await open_store(first, server="two")
    await query(
        first,
        'INSERT INTO runs (id, server, command, version, "user", door, started_at)'
        f" VALUES ('r4', 'one', 'ann/hello', 2, 'ann', 'ssh', {AT})",
    )
    assert "r4" in {run.id for run in await store.runs_seen_by("ann")}
    await query(
        first,
        "INSERT INTO commands (id, owner, name, current, last, updated_at)"
        f" VALUES (8, 'ann', 'second', 1, 1, {AT})",
        "INSERT INTO versions (command_id, number, description, author, digest, created_at, source)"
        f" SELECT 8, 1, '', 'ann', 'd', {AT}, source FROM versions WHERE number = 1",
    )
    hook = await store.add_hook(a_hook(command="ann/second"), by="ann")
    assert await store.accept(an_arrival("d1", hook), most=1) == (Taken.NEW, "d1")
    await store.aclose()


async def test_to_look_changes_nothing(first: str) -> None:
    before = await query(first, "SELECT version_num FROM alembic_version")
    assert await look(first) is Found.OLDER
    assert await query(first, "SELECT version_num FROM alembic_version") == before
    await (await open_store(first)).aclose()
    assert await look(first) is Found.CURRENT


async def test_to_look_makes_nothing(url: str, tmp_path: Path) -> None:
    assert await look(url) is Found.NOTHING
    assert not (tmp_path / "data").exists()
