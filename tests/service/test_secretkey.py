"""The key file: made, told when it is not the right one, and replaced, also when that is killed."""

from __future__ import annotations

import asyncio
import signal
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cmdsvc.errors import CmdError
from cmdsvc.model import Token
from cmdsvc.sealing import BrokenSealError, Keys, Sealer, parse, render
from cmdsvc.service import secretkey
from cmdsvc.service.environment import place, resealing
from cmdsvc.service.secretkey import FILE, open_sealer, rotate
from cmdsvc.store import Store, open_store
from tests.e2e import forked
from tests.store.lab import NOW, a_command, a_hook, a_run

pytest_plugins = ["tests.store.backends"]

VALUES = {"A": b"1", "B": b"two\n", "C": b"", "D": b"\xff\x01=", "E": b"5" * 1000}

# What rotate does, in order; with BATCH = 2 the five values of VALUES are three batches. Each step
# is tried twice: killed right before it and right after it.
STEPS = [
    "write the file with both keys",
    "put it in place",
    "seal the first batch anew",
    "seal the second batch anew",
    "seal the third batch anew",
    "record it",
    "write the file without the old key",
    "put that in place",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    folder.mkdir()
    return folder


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    opened = await open_store(url, server="one")
    await opened.ensure_user("ann")
    await opened.create(**a_command())
    yield opened
    await opened.aclose()


async def seal(store: Store, sealer: Sealer, command: str = "hello") -> None:
    put = {n: sealer.seal(v, *place("ann", command, n)) for n, v in VALUES.items()}
    await store.set_env("ann", command, put=put, by="ann")


async def opened(store: Store, sealer: Sealer, command: str = "hello") -> dict[str, bytes]:
    found = await store.find("ann", command)
    assert found is not None
    return {n: sealer.open(v, *place("ann", command, n)) for n, v in found.env.items()}


async def add_hook(store: Store, sealer: Sealer) -> None:
    """With a secret, and the one before."""
    where = ("hook", "ann", "hello", "push")
    made = await store.add_hook(a_hook(secret=sealer.seal(b"old", *where)), by="ann")
    await store.rotate_hook(made, sealer.seal(b"new", *where), NOW, by="ann")


async def secrets_of(store: Store, sealer: Sealer, owner: str = "ann") -> tuple[bytes, bytes]:
    hook = await store.hook(owner, "hello", "push")
    assert hook is not None
    assert hook.previous is not None
    where = ("hook", owner, "hello", "push")
    return sealer.open(hook.secret, *where), sealer.open(hook.previous, *where)


def files_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def keys_in(folder: Path) -> Keys:
    return parse((folder / FILE).read_text())


class TestOpening:
    async def test_it_is_made_on_first_use_for_this_user_alone(self, folder: Path, store: Store):
        sealer = await open_sealer(folder, store)
        assert stat.S_IMODE((folder / FILE).stat().st_mode) == 0o600
        assert files_in(folder) == [FILE]
        again = await open_sealer(folder, store)
        assert again.open(sealer.seal(b"x", "here"), "here") == b"x"

    async def test_of_two_who_make_it_one_wins(self, folder: Path, store: Store):
        one, two = await asyncio.gather(open_sealer(folder, store), open_sealer(folder, store))
        assert one.hash(b"x") == two.hash(b"x")

    async def test_a_lost_one_is_told_and_not_made_anew(self, folder: Path, store: Store):
        await seal(store, await open_sealer(folder, store))
        (folder / FILE).unlink()
        with pytest.raises(CmdError, match="is not there") as caught:
            await open_sealer(folder, store)
        assert "backup" in caught.value.hint
        assert files_in(folder) == []

    async def test_so_it_is_where_only_tokens_need_it(self, folder: Path, store: Store):
        sealer = await open_sealer(folder, store)
        token = Token("cmd_00000000", "ann", "", NOW, None, None)
        await store.add_token(token, sealer.hash(b"t"), by="ann")
        (folder / FILE).unlink()
        with pytest.raises(CmdError, match="is not there"):
            await open_sealer(folder, store)

    async def test_anothers_is_told(self, folder: Path, store: Store):
        await seal(store, await open_sealer(folder, store))
        foreign = render(Keys.new())
        (folder / FILE).write_text(foreign)
        with pytest.raises(CmdError, match="is not the key to this store"):
            await open_sealer(folder, store)
        assert (folder / FILE).read_text() == foreign

    @pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"seal x", b"hash"])
    async def test_a_damaged_one_is_told_and_left(self, content: bytes, folder: Path, store: Store):
        (folder / FILE).write_bytes(content)
        for use in (open_sealer(folder, store), rotate(folder, store)):
            with pytest.raises(CmdError, match="cannot be used"):
                await use
        assert (folder / FILE).read_bytes() == content


class TestRotation:
    async def test_all_is_sealed_anew(self, folder: Path, store: Store):
        sealer = await open_sealer(folder, store)
        before = keys_in(folder)
        await seal(store, sealer)
        assert await rotate(folder, store) == (5, [])
        after = keys_in(folder)
        assert after.previous is None
        assert after.current != before.current
        assert after.hashing == before.hashing
        assert await opened(store, await open_sealer(folder, store)) == VALUES
        async for *_, value in store.sealed():
            assert not sealer.knows(value)
        assert stat.S_IMODE((folder / FILE).stat().st_mode) == 0o600
        assert files_in(folder) == [FILE]
        entry = (await store.entries())[0]
        assert (entry.user, entry.action, entry.subject) == ("", "rotate-key", after.id)

    async def test_both_secrets_of_a_hook(self, folder: Path, store: Store):
        sealer = await open_sealer(folder, store)
        await add_hook(store, sealer)
        assert await rotate(folder, store) == (2, [])
        fresh = await open_sealer(folder, store)
        assert await secrets_of(store, fresh) == (b"new", b"old")
        async for _, value in store.sealed():
            assert not sealer.knows(value)

    async def test_with_nothing_sealed_yet(self, folder: Path, store: Store):
        assert await rotate(folder, store) == (0, [])
        assert await rotate(folder, store) == (0, [])

    async def test_while_it_is_not_over_both_are_used(self, folder: Path, store: Store):
        await seal(store, await open_sealer(folder, store))
        both = keys_in(folder).rotated()
        (folder / FILE).write_text(render(both))
        await store.create(**a_command("other"))
        await seal(store, await open_sealer(folder, store), "other")
        sealer = await open_sealer(folder, store)
        assert await opened(store, sealer) == await opened(store, sealer, "other") == VALUES
        assert await rotate(folder, store) == (5, [])  # those that were not yet
        assert keys_in(folder) == both.settled()

    async def test_more_than_a_batch(
        self, folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch
    ):
        await seal(store, await open_sealer(folder, store))
        monkeypatch.setattr(secretkey, "BATCH", 2)
        assert await rotate(folder, store) == (5, [])
        assert await opened(store, await open_sealer(folder, store)) == VALUES

    @pytest.mark.parametrize("moment", ["before", "after"])
    @pytest.mark.parametrize("step", STEPS)
    async def test_killed_at_any_step_nothing_is_lost_and_it_can_be_repeated(
        self, step: str, moment: str, folder: Path, url: str, store: Store
    ):
        await seal(store, await open_sealer(folder, store))
        first = keys_in(folder)
        kind, _ = step.split(maxsplit=1)
        count = [other for other in STEPS if other.startswith(f"{kind} ")].index(step) + 1
        words = (url, folder, kind, str(count), moment)
        status, _, err = await forked.child("tests.service.rotation_child", *words)
        assert status == -signal.SIGKILL, err.decode()
        assert await opened(store, await open_sealer(folder, store)) == VALUES
        await rotate(folder, store)
        last = keys_in(folder)
        assert last.previous is None
        assert last.current != first.current
        async for *_, value in store.sealed():
            assert Sealer(last).is_current(value)
        assert await opened(store, await open_sealer(folder, store)) == VALUES
        assert files_in(folder) == [FILE]


class TestRenaming:
    async def test_the_values_go_with_their_owner(self, folder: Path, store: Store):
        sealer = await open_sealer(folder, store)
        await seal(store, sealer)
        await store.begin_run(a_run())
        reseal = resealing(sealer, "ann", "anna")
        assert await store.rename_user("ann", "anna", by="", reseal=reseal)
        assert [(run.command, run.user) for run in await store.runs()] == [("anna/hello", "anna")]
        found = await store.find("anna", "hello")
        assert found is not None
        assert {
            n: sealer.open(v, *place("anna", "hello", n)) for n, v in found.env.items()
        } == VALUES

    async def test_the_secrets_of_hooks_do(self, folder: Path, store: Store):
        sealer = await open_sealer(folder, store)
        await add_hook(store, sealer)
        reseal = resealing(sealer, "ann", "anna")
        assert await store.rename_user("ann", "anna", by="", reseal=reseal)
        assert await secrets_of(store, sealer, "anna") == (b"new", b"old")

    async def test_one_that_does_not_open_takes_it_back(self, folder: Path, store: Store):
        sealer = await open_sealer(folder, store)
        await seal(store, sealer)
        await store.set_env("ann", "hello", put={"A": sealer.seal(b"x", "elsewhere")}, by="ann")
        with pytest.raises(BrokenSealError):
            await store.rename_user("ann", "anna", by="", reseal=resealing(sealer, "ann", "anna"))
        assert await store.users() == ["ann"]


class TestLost:
    async def test_what_no_key_opens_is_removed_only_when_asked(self, folder: Path, store: Store):
        await seal(store, await open_sealer(folder, store))
        (folder / FILE).unlink()
        with pytest.raises(CmdError, match="is not there"):
            await rotate(folder, store)
        assert await rotate(folder, store, lost=True) == (
            0,
            [f"ann/hello/{name}" for name in sorted(VALUES)],
        )
        assert await opened(store, await open_sealer(folder, store)) == {}

    async def test_a_hook_goes_with_its_secret(self, folder: Path, store: Store):
        await add_hook(store, await open_sealer(folder, store))
        (folder / FILE).unlink()
        with pytest.raises(CmdError, match="is not there"):
            await rotate(folder, store)
        assert await rotate(folder, store, lost=True) == (0, ["the hook ann/hello/push"])
        assert await store.hooks("ann", "hello") == []

    async def test_a_damaged_file_is_put_aside(self, folder: Path, store: Store):
        (folder / FILE).write_bytes(b"damaged")
        assert await rotate(folder, store, lost=True) == (0, [])
        assert (folder / f"{FILE}.unusable").read_bytes() == b"damaged"

    async def test_a_value_that_was_moved_holds_a_rotation_up(self, folder: Path, store: Store):
        sealer = await open_sealer(folder, store)
        await seal(store, sealer)
        moved = sealer.seal(b"x", *place("ann", "other", "A"))
        await store.set_env("ann", "hello", put={"A": moved}, by="ann")
        with pytest.raises(CmdError, match="no key opens ann/hello/A"):
            await rotate(folder, store)
        assert await rotate(folder, store, lost=True) == (0, ["ann/hello/A"])
        kept = {name: value for name, value in VALUES.items() if name != "A"}
        assert await opened(store, await open_sealer(folder, store)) == kept
