"""The record, the notice, how much is kept, backups; on every store."""

import asyncio
import stat
from pathlib import Path

import pytest

from cmdsvc.errors import CmdError
from cmdsvc.model import PUBLIC, Entry, Outcome, Output
from cmdsvc.store import Notice, Store, open_store
from tests.store.lab import LATER, NOW, a_command, a_run, a_token, at, fail, lines

pytest_plugins = ("tests.store.backends",)


async def test_the_record_newest_first(store: Store) -> None:
    one = Entry(LATER, "ann", "key", "ann", "SHA256:x")
    two = Entry(NOW, "", "prune", "", "freed 3 layers \N{SNOWMAN}")
    await store.record(one)
    await store.record(two)
    assert await store.entries() == [two, one]
    assert await store.entries(limit=1) == [two]
    assert await store.entries(limit=0) == await store.entries(limit=-1) == []
    assert await store.entries(limit=10**30) == [two, one]


async def test_without_its_line_a_change_is_not_made(store: Store) -> None:
    await store.create(**a_command())
    await store.add_version(**a_command())
    await store.add_token(a_token("cmd_1"), b"1", by="ann")
    before = await store.find("ann", "hello")
    for call in (
        store.create(**a_command("second")),
        store.add_version(**a_command()),
        store.set_current("ann", "hello", 1, by="ann"),
        store.set_access("ann", "hello", grant=["ann"], by="ann"),
        store.set_admins("ann", "hello", grant=["ann"], by="ann"),
        store.set_env("ann", "hello", put={"A": b"1"}, by="ann"),
        store.delete("ann", "hello", by="ann"),
        store.add_token(a_token("cmd_2"), b"1", by="ann"),
        store.remove_token("cmd_1", by="ann"),
        store.rename_user("ann", "anna", by="ann"),
        store.remove_user("ann", by="ann"),
        store.set_notice(Notice("x"), by="ann"),
    ):
        with at("INSERT INTO entries", fail), pytest.raises(RuntimeError):
            await call
    assert await store.find("ann", "hello") == before
    assert await store.names("ann") == ["hello"]
    assert [token.id for token in await store.tokens("ann")] == ["cmd_1"]
    assert await store.users() == ["ann"]
    assert await store.notice() is None
    assert len(await lines(store)) == 3


async def test_the_notice(store: Store) -> None:
    assert await store.notice() is None
    await store.set_notice(None, by="")
    await store.set_notice(Notice("down at noon"), by="")
    assert await store.notice() == Notice("down at noon")
    await store.set_notice(Notice("closed", closed=True), by="root")
    assert await store.notice() == Notice("closed", closed=True)
    await store.set_notice(None, by="")
    assert await store.notice() is None
    assert [(one.user, one.action, one.detail) for one in await store.entries()] == [
        ("", "notice", "removed"),
        ("root", "notice", "closed: closed"),
        ("", "notice", "down at noon"),
    ]


async def test_how_much_is_kept(store: Store) -> None:
    nothing = dict.fromkeys(
        (
            "commands",
            "versions",
            "runs",
            "tokens",
            "entries",
            "outputs",
            "deliveries",
            "source_bytes",
            "output_bytes",
        ),
        0,
    )
    assert await store.usage() == nothing | {"users": 1}
    await fill(store)
    assert await store.usage() == {
        "users": 2,
        "commands": 2,
        "versions": 3,
        "runs": 2,
        "tokens": 1,
        "entries": 9,
        "outputs": 1,
        "deliveries": 0,
        "source_bytes": 12,
        "output_bytes": 7,
    }


async def fill(store: Store) -> None:
    await store.ensure_user("bob")
    await store.create(**a_command(source=b"\0\xff12"))
    await store.create(**a_command("second", source=b"5"))
    await store.add_version(**a_command(source=b"6789012"))
    await store.add_token(a_token("cmd_1", expires_at=LATER), b"\0hash", by="ann")
    await store.set_access("ann", "hello", grant=["bob", "cmd_1", PUBLIC], by="ann")
    await store.set_admins("ann", "hello", grant=["bob"], by="ann")
    await store.set_env("ann", "hello", put={"A": b"\0\xff"}, by="ann")
    await store.set_notice(Notice("soon", closed=True), by="")
    await store.begin_run(a_run("r1"))
    await store.keep_output("r1", Output(((1, b"begin"),), ((2, b"\0\xff"),), 3))
    await store.end_run("r1", LATER, Outcome(3, message="it \N{SNOWMAN}"))
    await store.begin_run(a_run("r2", user="bob"))
    await store.set_current("ann", "hello", 1, by="ann")


async def everything(store: Store) -> list[object]:
    return [
        await store.users(),
        await store.find("ann", "hello"),
        await store.find("ann", "second"),
        await store.history("ann", "hello"),
        await store.version("ann", "hello", 2),
        await store.list_commands("ann"),
        await store.token("cmd_1"),
        await store.runs(),
        await store.runs_seen_by("ann"),
        await store.output("r1"),
        await store.entries(),
        await store.notice(),
        await store.usage(),
        await store.digests(),
    ]


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_a_backup_is_a_whole_store(store: Store, tmp_path: Path) -> None:
    await fill(store)
    before = await everything(store)
    path = tmp_path / "backup.db"
    await store.backup(path)
    assert mode(path) == 0o600
    assert await everything(store) == before
    assert names(tmp_path) - {"data"} == {"backup.db"}

    again = await open_store(f"sqlite+aiosqlite:///{path}", server="one")
    assert await everything(again) == before
    # It goes on from there.
    changed = await again.add_version(**a_command())
    assert changed.version.number == 3
    await again.create(**a_command("third"))
    assert await again.mark_lost(LATER) == 1
    await again.aclose()


async def test_a_backup_replaces_what_is_there(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "backup.db"
    path.write_text("something else")
    path.chmod(0o644)
    await store.backup(path)
    assert mode(path) == 0o600
    await (await open_store(f"sqlite+aiosqlite:///{path}")).aclose()


async def test_a_backup_while_everything_goes_on(store: Store, tmp_path: Path) -> None:
    for number in range(50):
        await store.create(**a_command(f"c{number}", source=bytes(20_000)))
    path = tmp_path / "backup.db"

    async def go_on() -> None:
        # What is made by one change is there or is not there together.
        for number in range(20):
            await store.add_version(**a_command("c0", source=b"%d" % number))
            await store.set_env(
                "ann", "c0", put={"A": b"%d" % number, "B": b"%d" % number}, by="ann"
            )
            await store.begin_run(a_run(f"r{number}"))

    await asyncio.gather(store.backup(path), go_on())
    again = await open_store(f"sqlite+aiosqlite:///{path}")
    found = await again.find("ann", "c0")
    assert found
    assert found.env.get("A") == found.env.get("B")
    assert [one.number for one in await again.history("ann", "c0")] == list(
        range(found.version.number, 0, -1)
    )
    usage = await again.usage()
    assert usage["versions"] == 49 + found.version.number
    await again.aclose()


async def test_a_backup_to_where_there_is_no_folder(store: Store, tmp_path: Path) -> None:
    with pytest.raises(CmdError) as raised:
        await store.backup(tmp_path / "none" / "backup.db")
    assert "\n" not in str(raised.value)
    await store.create(**a_command())


async def test_a_backup_that_is_cancelled(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    await fill(store)
    saving = asyncio.ensure_future(store.backup(folder / "backup.db"))
    await asyncio.sleep(0)
    saving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saving
    assert names(folder) in (set(), {"backup.db"})
