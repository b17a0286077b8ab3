"""Whom a token stands for, and until when."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cmdsvc.access import Action
from cmdsvc.errors import ForbiddenError, NotFoundError
from cmdsvc.model import Identity, Limits, Network, Token, Via
from cmdsvc.service.builds import Builds
from cmdsvc.service.commands import Commands, Policy
from cmdsvc.service.figures import Figures
from cmdsvc.service.readymade import ReadyMade
from cmdsvc.service.sharing import Sharing
from cmdsvc.store import Store, open_store
from tests.fakes import FakeEngine

LIMITS = Limits(timeout=600.0, memory=512 << 20, cpus=1.0, pids=256, disk=512 << 20)
ANN = Identity("ann", Via.KEY)
ID, SECRET = "cmd_00000000", "v" * 32


def keyed(text: bytes) -> bytes:
    return hashlib.sha256(b"key" + text).digest()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await open_store(f"sqlite+aiosqlite:///{tmp_path}/store.db", server="one")
    await opened.ensure_user("ann")
    yield opened
    await opened.aclose()


@pytest.fixture
def commands(store: Store) -> Commands:
    policy = Policy(LIMITS, 1000, {"alpine": "alpine"}, frozenset(Network), 10, 1000)
    return Commands(store, Builds(FakeEngine(), LIMITS, Figures("fake")), ReadyMade({}), policy)


@pytest.fixture
def sharing(store: Store, commands: Commands) -> Sharing:
    return Sharing(store, commands, keyed, lambda _: False)


async def put(store: Store, *, seconds: float) -> str:
    """A token of ann's that holds for `seconds` from now."""
    now = datetime.now(UTC)
    token = Token(ID, "ann", "", now - timedelta(days=1), now + timedelta(seconds=seconds), None)
    text = f"{ID}_{SECRET}"
    await store.add_token(token, keyed(text.encode()), by="ann")
    return text


async def test_one_that_holds(store: Store, sharing: Sharing):
    _, text = await sharing.new_token(ANN, "", None)
    identity = await sharing.identify(text)
    assert identity is not None
    assert (identity.user, identity.via, identity.operator) == ("ann", Via.TOKEN, False)
    assert identity.subject == text.rpartition("_")[0]
    await sharing.welcome(identity)


async def test_an_expired_one_is_nobodys(store: Store, sharing: Sharing):
    assert await sharing.identify(await put(store, seconds=-1)) is None


async def test_it_expires_while_its_connection_is_open(store: Store, sharing: Sharing):
    await put(store, seconds=-1)
    came = Identity("ann", Via.TOKEN, token=ID)
    with pytest.raises(ForbiddenError, match="does not hold any more"):
        await sharing.welcome(came)


async def test_it_is_removed_while_its_connection_is_open(store: Store, sharing: Sharing):
    came = await sharing.identify(await put(store, seconds=60))
    assert came is not None
    await sharing.welcome(came)
    await sharing.remove_token(ANN, ID)
    with pytest.raises(ForbiddenError, match="does not hold any more"):
        await sharing.welcome(came)


async def test_it_is_no_identity_any_more_when_its_maker_is_removed(store: Store, sharing: Sharing):
    text = await put(store, seconds=60)
    await store.remove_user("ann", by="")
    assert await sharing.identify(text) is None


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        ID,
        f"{ID}_",
        f"{ID}_{'0' * 32}",
        f"{ID}_{SECRET}\n",
        f"{ID}_{SECRET.upper()}",
        f"cmd_11111111_{SECRET}",
        f"cmd_' or 1=1 --_{SECRET}",
    ],
)
async def test_what_is_none(wrong: str, store: Store, sharing: Sharing):
    assert await sharing.identify(await put(store, seconds=60)) is not None
    assert await sharing.identify(wrong) is None


@pytest.mark.parametrize("asked", ["hello", "hellox", "ann/hello", "ann/hellox"])
async def test_it_gets_no_hint_of_its_makers_commands(asked: str, commands: Commands):
    await commands.create(ANN, "hello", b"#!cmd alpine\n#!/bin/sh\n:\n", lambda _: None)
    token = Identity("ann", Via.TOKEN, token=ID)
    with pytest.raises(NotFoundError) as caught:
        await commands.find(token, asked, Action.RUN)
    assert str(caught.value) == f"no command {asked}; `:ls -a` lists what there is"
