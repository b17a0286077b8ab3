"""What is SQLite's own: files, locks, disks, damage, and how it finds things."""

import asyncio
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.dialects.sqlite import dialect

from cmdsvc.errors import BusyError, CmdError, InternalError
from cmdsvc.model import Outcome
from cmdsvc.store import Store, open_store, sql, sqlite
from tests.store.lab import LATER, a_command, a_run


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
        store.delete("ann", "hello"),
    ):
        with pytest.raises(BusyError, match="in use by another process; try again"):
            await call
    assert await store.find("ann", "hello") is not None
    other.close()
    await store.begin_run(a_run())
    await store.ensure_user("bob")
    await store.aclose()


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
    room = os.statvfs(small_disk)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(room.f_bavail * room.f_frsize))
    yield store, filler
    await store.aclose()


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


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (sql.FIND, "uq_commands_owner_name|sqlite_autoindex_commands_1"),
        (sql.NAMES, "sqlite_autoindex_commands_1"),
        (sql.runs_query(of_user=True, of_command=False), "ix_runs_user_started_at"),
        (sql.runs_query(of_user=False, of_command=True), "ix_runs_command_started_at"),
        (sql.END_RUN, "sqlite_autoindex_runs_1"),
        (sql.END_ALL, "ix_runs_unfinished"),
    ],
    ids=["find", "names", "runs of a user", "runs of a command", "end", "lost"],
)
async def test_found_by_an_index(store: Store, path: Path, statement: Any, index: str) -> None:
    compiled = statement.compile(dialect=dialect(paramstyle="named"))
    raw = sqlite3.connect(path)
    plan = raw.execute(f"EXPLAIN QUERY PLAN {compiled}", compiled.params).fetchall()
    raw.close()
    steps = [row[3] for row in plan]
    assert not [step for step in steps if "SCAN" in step]
    assert any(name in step for step in steps for name in index.split("|"))


async def test_errors_are_one_line_and_never_say_what_was_stored(store: Store) -> None:
    await store.begin_run(a_run())
    with pytest.raises(CmdError) as raised:
        await store.begin_run(a_run())
    assert str(raised.value) == "there is a run r1 already"
