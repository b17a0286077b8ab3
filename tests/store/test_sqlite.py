"""What is SQLite's own: files, locks, disks, damage, and how it finds things."""

import asyncio
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.dialects.sqlite import dialect

from cmdsvc.errors import BusyError, CmdError, InternalError
from cmdsvc.model import Outcome
from cmdsvc.store import Store, Taken, open_store, sqlite
from cmdsvc.store.sql import (
    answers,
    arrivals,
    commands,
    deliveries,
    hooks,
    outputs,
    runs,
    schedules,
    sealed,
    sharing,
    tokens,
    upkeep,
    users,
)
from tests.store.lab import LATER, a_command, a_hook, a_run, an_arrival, at


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "store.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    opened = await open_store(url(path))
    await opened.ensure_user("ann")
    yield opened
    await opened.aclose()


def url(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def contents(folder: Path) -> dict[str, bytes]:
    return {found.name: found.read_bytes() for found in folder.iterdir()}


async def test_files_are_for_the_service_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = await open_store(url(tmp_path / "a" / "b" / "store.db"))
        await store.ensure_user("ann")
    finally:
        os.umask(before)
    assert mode(tmp_path / "a") == mode(tmp_path / "a" / "b") == 0o700
    files = list((tmp_path / "a" / "b").iterdir())
    assert {file.name for file in files} == {"store.db", "store.db-wal", "store.db-shm"}
    assert {mode(file) for file in files} == {0o600}
    await store.aclose()
    assert [file.name for file in (tmp_path / "a" / "b").iterdir()] == ["store.db"]


async def test_a_folder_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir(mode=0o750)
    await (await open_store(url(folder / "store.db"))).aclose()
    assert mode(folder) == 0o750


@pytest.mark.parametrize("name", ["with space", "100%", "ünï", "a#b", "it's", "c:d", "%41"])
async def test_paths_of_any_kind(tmp_path: Path, name: str) -> None:
    store = await open_store(url(tmp_path / name / "store.db"))
    await store.ensure_user("ann")
    await store.aclose()
    assert (tmp_path / name / "store.db").stat().st_size > 0
    await (await open_store(url(tmp_path / name / "store.db"))).aclose()


async def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = await open_store("sqlite+aiosqlite:///var/store.db")
    monkeypatch.chdir("/")
    await store.ensure_user("ann")
    await store.aclose()
    assert (tmp_path / "var" / "store.db").exists()


async def test_how_it_is_opened(store: Store, path: Path) -> None:
    other = sqlite3.connect(path)
    assert other.execute("PRAGMA journal_mode").fetchall() == [("wal",)]
    other.close()


async def test_a_newer_store_stays_as_it_is_to_the_byte(path: Path, tmp_path: Path) -> None:
    store = await open_store(url(path))
    await store.ensure_user("ann")
    raw = sqlite3.connect(path)
    raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.commit()
    # As a server that was killed leaves it: with a log that was not written back.
    left = tmp_path / "left"
    shutil.copytree(path.parent, left, ignore=shutil.ignore_patterns("*-shm"))
    raw.close()
    await store.aclose()
    for folder in (path.parent, left):
        before = contents(folder)
        with pytest.raises(InternalError, match="newer version"):
            await open_store(url(folder / "store.db"))
        after = contents(folder)
        assert after["store.db"] == before["store.db"]
        assert after.get("store.db-wal", b"") == before.get("store.db-wal", b"")


async def test_two_processes_open_a_new_store_at_once(path: Path) -> None:
    program = "import asyncio, sys; from cmdsvc.store import open_store\n"
    program += "async def main(): await (await open_store(sys.argv[1])).aclose()\n"
    program += "asyncio.run(main())"
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            program,
            url(path),
        )
        for _ in range(3)
    ]
    assert [await process.wait() for process in processes] == [0, 0, 0]


async def test_locked_by_another_process(
    path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.aclose()
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT", 0.05)
    store = await open_store(url(path))
    await store.create(**a_command())
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for call in (
        store.begin_run(a_run()),
        store.end_run("r1", LATER, Outcome(0)),
        store.ensure_user("bob"),
        store.add_version(**a_command()),
        store.delete("ann", "hello", by="ann"),
    ):
        with pytest.raises(BusyError, match="in use by another process; try again"):
            await call
    assert await store.find("ann", "hello") is not None
    other.close()
    await store.begin_run(a_run())
    await store.ensure_user("bob")
    await store.aclose()


async def test_cancelled_while_another_writes_it_never_begins(store: Store) -> None:
    first = asyncio.ensure_future(store.create(**a_command("first")))
    second = asyncio.ensure_future(store.create(**a_command("second")))
    third = asyncio.ensure_future(store.create(**a_command("third")))
    with at("INSERT INTO versions", second.cancel):
        await asyncio.gather(first, second, third, return_exceptions=True)
    assert second.cancelled()
    assert await store.names("ann") == ["first", "third"]


@pytest.fixture(params=[b"not a database" * 100, b"SQLite format 3\0" + b"x" * 5000])
def no_store(request: pytest.FixtureRequest, path: Path) -> Path:
    path.parent.mkdir()
    path.write_bytes(request.param)
    return path


async def test_a_file_that_is_no_store(no_store: Path) -> None:
    before = contents(no_store.parent)
    with pytest.raises(InternalError, match="the store is damaged; restore a backup"):
        await open_store(url(no_store))
    assert contents(no_store.parent) == before


async def test_a_damaged_store(path: Path, store: Store) -> None:
    for number in range(30):
        await store.create(**a_command(f"c{number}"))
    await store.aclose()
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    with pytest.raises(InternalError, match="the store is damaged"):
        await open_store(url(path))


async def test_a_path_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for wrong in ("file/store.db", "folder"):
        with pytest.raises(InternalError, match=r"the store cannot be opened: .*; see to"):
            await open_store(url(tmp_path / wrong))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Of 12 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
async def full(small_disk: Path) -> AsyncIterator[tuple[Store, Path]]:
    """A store with one command, and a file that fills what is left of its disk."""
    store = await open_store(url(small_disk / "store.db"))
    await store.ensure_user("ann")
    await store.create(**a_command())
    filler = small_disk / "filler"
    filler.write_bytes(bytes(room(small_disk)))
    yield store, filler
    await store.aclose()


def room(folder: Path) -> int:
    """Bytes."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


async def begin_many(store: Store) -> None:
    for number in range(5000):
        await store.begin_run(a_run(f"r{number}"))


@pytest.mark.root
async def test_a_full_disk(full: tuple[Store, Path]) -> None:
    store, filler = full
    made = await store.find("ann", "hello")
    with pytest.raises(InternalError, match="no space is left for the store; free some"):
        await store.create(**a_command("big", source=bytes(1 << 20)))
    with pytest.raises(InternalError, match="no space is left"):
        await begin_many(store)
    assert await store.names("ann") == ["hello"]
    assert await store.find("ann", "hello") == made
    filler.unlink()
    await store.begin_run(a_run("after"))
    await store.create(**a_command("after", source=bytes(1 << 20)))


@pytest.mark.root
async def test_a_full_disk_when_deliveries_come(full: tuple[Store, Path]) -> None:
    """None of those that are put together is stored, and none of it is half there."""
    store, filler = full
    filler.unlink()
    hook = await store.add_hook(a_hook(), by="ann")
    filler.write_bytes(bytes(room(filler.parent) - (256 << 10)))
    big = [an_arrival(f"d{n}", hook, body=bytes(100 << 10)) for n in range(20)]
    done = await asyncio.gather(
        *(store.accept(one, most=99) for one in big), return_exceptions=True
    )
    refused = [str(one) for one in done if isinstance(one, InternalError)]
    assert set(refused) == {"no space is left for the store; free some on the disk that holds it"}
    stored = [one[1] for one in done if isinstance(one, tuple)]
    assert len(refused) + len(stored) == 20
    assert sorted(one.id for one in await store.deliveries("ann", "hello")) == sorted(stored)
    filler.unlink()
    assert await store.accept(big[-1], most=len(stored) + 1) == (Taken.NEW, "d19")


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (commands.FIND, "sqlite_autoindex_commands_1"),
        (commands.NAMES, "sqlite_autoindex_commands_1"),
        (commands.LISTINGS, "sqlite_autoindex_commands_1"),
        (commands.HISTORY, "sqlite_autoindex_versions_1"),
        (commands.VERSION, "sqlite_autoindex_versions_1"),
        (sealed.SEALED[0], "sqlite_autoindex_env_1"),
        (sealed.SEALED[1], "sqlite_autoindex_hooks_1"),
        (tokens.TOKEN, "sqlite_autoindex_tokens_1"),
        (tokens.TOKENS, "ix_tokens_owner"),
        (runs.RUN, "sqlite_autoindex_runs_1"),
        (runs.runs_query(of_user=True, of_command=False), "ix_runs_user_started_at"),
        (runs.runs_query(of_user=False, of_command=True), "ix_runs_command_started_at"),
        (runs.SEEN_OF_ANOTHERS, "ix_runs_command_by_another"),
        (runs.ADMINISTERS, "sqlite_autoindex_grants_1"),
        (runs.END_RUN, "sqlite_autoindex_runs_1"),
        (runs.END_ALL, "ix_runs_unfinished"),
        (outputs.OUTPUT, "sqlite_autoindex_outputs_1"),
        (outputs.OLD_RUNS, "ix_runs_ended_at"),
        (users.RENAME_RUNS[0], "ix_runs_owner_by_another"),
        (users.RENAME_RUNS[1], "ix_runs_user_started_at"),
        (hooks.HOOK, "sqlite_autoindex_hooks_1"),
        (hooks.UNFINISHED, "ix_deliveries_not_done"),
        (arrivals.COMMANDS, "sqlite_autoindex_commands_1"),
        (arrivals.REPEATED, "sqlite_autoindex_deliveries_2"),
        (arrivals.REPEATED, "ix_deliveries_same"),
        (arrivals.LINES, "ix_deliveries_line"),
        (deliveries.DUE, "ix_deliveries_due_at"),
        (deliveries.RECLAIM, "ix_deliveries_server"),
        (deliveries.ADVANCE, "ix_deliveries_line"),
        (deliveries.LISTED, "ix_deliveries_command_id_number_hook_id"),
        (deliveries.LISTED_OF_HOOK, "ix_deliveries_command_id_number_hook_id"),
        (hooks.REMOVE_DELIVERIES, "ix_deliveries_command_id_number_hook_id"),
        (deliveries.OLD, "ix_deliveries_ended_at"),
        (deliveries.REPLAY_FAILED, "ix_deliveries_not_done"),
        (schedules.SCHEDULE, "ix_versions_schedule"),
        (schedules.GOES_ON, "ix_deliveries_not_done"),
        (answers.ANSWER, "sqlite_autoindex_answers_1"),
        (answers.END_ALL, "ix_answers_under_way"),
        (answers.OLD, "ix_answers_begun_at"),
    ],
)
async def test_found_by_an_index(store: Store, path: Path, statement: Any, index: str) -> None:
    steps = plan(path, statement)
    assert not [step for step in steps if "SCAN" in step and "CONSTANT" not in step]
    assert any(index in step for step in steps)


async def test_a_run_begins_with_one_read(store: Store, path: Path) -> None:
    assert plan(path, commands.FIND) == [
        "COMPOUND QUERY",
        "LEFT-MOST SUBQUERY",
        "SEARCH commands USING INDEX sqlite_autoindex_commands_1 (owner=? AND name=?)",
        "SEARCH versions USING INDEX sqlite_autoindex_versions_1 (command_id=? AND number=?)",
        "UNION ALL",
        "SEARCH commands USING COVERING INDEX sqlite_autoindex_commands_1 (owner=? AND name=?)",
        "SEARCH grants USING INDEX sqlite_autoindex_grants_2 (command_id=?)",
        "UNION ALL",
        "SEARCH commands USING COVERING INDEX sqlite_autoindex_commands_1 (owner=? AND name=?)",
        "SEARCH env USING INDEX sqlite_autoindex_env_1 (command_id=?)",
    ]


async def test_what_is_read_of_a_whole_table_is_little(store: Store, path: Path) -> None:
    """The newest of all, from the end of an index; what is for everyone, from one of nothing else."""
    assert plan(path, runs.runs_query(of_user=False, of_command=False)) == [
        "SCAN runs USING INDEX sqlite_autoindex_runs_1"
    ]
    assert plan(path, upkeep.ENTRIES) == ["SCAN entries"]
    assert plan(path, deliveries.NEXT_DUE) == [
        "SEARCH deliveries USING INDEX ix_deliveries_due_at (due_at>?)"
    ]
    assert plan(path, deliveries.BACKLOG) == [
        "SCAN deliveries USING COVERING INDEX ix_deliveries_not_done"
    ]
    scans = [step for step in plan(path, sharing.RUNNABLE) if "SCAN" in step]
    assert scans[0] == "SCAN grants USING INDEX uq_grants_to_everyone"
    assert not [
        step for step in plan(path, runs.SEEN) if "SCAN runs" in step or "SCAN comm" in step
    ]


def plan(path: Path, statement: Any) -> list[str]:
    compiled = statement.compile(dialect=dialect(paramstyle="named"))
    values = {name: 0 if value is None else value for name, value in compiled.params.items()}
    lists = {"names": [("ann", "hello")], "keys": [b"1", b"2"], "ids": [1], "lines": [1]}
    words, bound = compiled.construct_expanded_state(values | lists)[:2]
    raw = sqlite3.connect(path)
    rows = raw.execute(f"EXPLAIN QUERY PLAN {words}", bound).fetchall()
    raw.close()
    return [row[3] for row in rows]


async def test_a_survey_keeps_no_run_waiting(store: Store) -> None:
    """It has a connection of its own: while that one is busy, a run begins."""
    entered, leave = threading.Event(), threading.Event()

    def wait() -> int:
        entered.set()
        return int(leave.wait(10))

    await store.usage()
    database: Any = store._database  # type: ignore[attr-defined]
    await database._surveyor.create_function("wait", 0, wait)
    surveying = asyncio.ensure_future(database.survey(select(func.wait()), {}))
    await asyncio.to_thread(entered.wait, 10)
    await store.create(**a_command())
    await store.find("ann", "hello")
    await store.begin_run(a_run())
    assert not surveying.done()
    leave.set()
    assert await surveying == [(1,)]


RECOVERY = """
import fcntl, os, sys
index = os.open(sys.argv[1], os.O_RDWR)
for lock in (120, 122):
    fcntl.lockf(index, fcntl.LOCK_EX, 1, lock)
os.pwrite(index, bytes(48), 0)
print("held", flush=True)
sys.stdin.read()
"""
"""A process that recovers the log, and is long about it: it holds the locks for that, and the index
is invalid (sqlite.org/walformat.html, 2.3)."""


@contextmanager
def recovery(path: Path) -> Iterator[Callable[[], None]]:
    """While it goes on; what ends it."""
    line = [sys.executable, "-c", RECOVERY, f"{path}-shm"]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        yield other.stdin.close


async def test_what_is_found_waits_for_another_process_that_recovers_the_log(
    store: Store, path: Path
) -> None:
    await store.create(**a_command())
    with recovery(path) as end:
        database: Any = store._database  # type: ignore[attr-defined]
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            database._finder.execute("SELECT * FROM commands")
        finding = asyncio.ensure_future(store.find("ann", "hello"))
        await asyncio.sleep(0)
        assert not finding.done()
        end()
        found = await finding
    assert found is not None
    assert found.name == "hello"


async def test_a_store_that_is_closed_finds_nothing(path: Path) -> None:
    store = await open_store(url(path))
    await store.aclose()
    with pytest.raises(InternalError, match="closed"):
        await store.find("ann", "hello")


async def test_errors_are_one_line_and_never_say_what_was_stored(store: Store) -> None:
    await store.begin_run(a_run())
    with pytest.raises(CmdError) as raised:
        await store.begin_run(a_run())
    assert str(raised.value) == "there is a run r1 already"
