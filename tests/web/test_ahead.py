"""A body that is read on though nobody takes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cmdsvc.relay import CallerGone
from cmdsvc.web import ahead
from cmdsvc.web.ahead import IN_MEMORY, Ahead
from cmdsvc.web.bodies import PIECE, Room

PATIENCE = 20.0


class Body:
    """So many pieces, each of another byte; `given` are those that were asked for."""

    def __init__(self, count: int, *, then: Exception | None = None) -> None:
        self.whole = b"".join(self._piece(n) for n in range(count))
        self._count = count
        self._then = then
        self.given = 0
        self.all_given = asyncio.Event()

    def _piece(self, number: int) -> bytes:
        return bytes([number % 251]) * PIECE

    async def pieces(self) -> AsyncIterator[bytes]:
        for number in range(self._count):
            self.given += 1
            yield self._piece(number)
        self.all_given.set()
        if self._then is not None:
            raise self._then


@pytest.fixture
def room() -> Room:
    return Room(1 << 30)


async def until_all_given(body: Body) -> None:
    async with asyncio.timeout(PATIENCE):
        await body.all_given.wait()


async def test_what_is_taken_at_once_is_not_put_into_a_file(tmp_path: Path, room: Room):
    body = Body(100)
    async with Ahead(body.pieces(), room, "a", tmp_path / "missing") as read:
        assert b"".join([piece async for piece in read.pieces()]) == body.whole


@pytest.mark.parametrize("first", [1, 3, 50])
async def test_what_nobody_takes_is_read_on_and_stays_in_order(
    tmp_path: Path, room: Room, first: int
):
    body = Body(100)
    async with Ahead(body.pieces(), room, "a", tmp_path) as read:
        pieces = read.pieces()
        got = [await anext(pieces) for _ in range(first)]
        await until_all_given(body)
        got += [piece async for piece in pieces]
    assert b"".join(got) == body.whole
    room.take("a", 1 << 29)  # it was given back


async def test_who_takes_now_and_then(tmp_path: Path, room: Room, monkeypatch: pytest.MonkeyPatch):
    """From memory to a file and back, again and again."""
    monkeypatch.setattr(ahead, "SOON", 0.0)
    body = Body(300)
    got = bytearray()
    async with Ahead(body.pieces(), room, "a", tmp_path) as read:
        async for piece in read.pieces():
            got += piece
            await asyncio.sleep(0.002 if len(got) % (20 * PIECE) == 0 else 0)
    assert got == body.whole


async def test_its_end_comes_after_all_of_it(tmp_path: Path, room: Room):
    body = Body(20, then=CallerGone())
    async with Ahead(body.pieces(), room, "a", tmp_path) as read:
        pieces = read.pieces()
        got = [await anext(pieces) for _ in range(20)]
        with pytest.raises(CallerGone):
            await anext(pieces)
    assert b"".join(got) == body.whole


async def test_where_there_is_no_room_the_client_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ahead, "SOON", 0.0)
    for room, folder in ((Room(0), tmp_path), (Room(1 << 30), tmp_path / "missing")):
        body = Body(50)
        async with Ahead(body.pieces(), room, "a", folder) as read:
            pieces = read.pieces()
            got = [await anext(pieces)]
            for _ in range(200):
                await asyncio.sleep(0)
            assert body.given <= IN_MEMORY // PIECE + 2
            got += [piece async for piece in pieces]
        assert b"".join(got) == body.whole


async def test_a_file_is_bounded(tmp_path: Path, room: Room, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ahead, "FILE_MAX", 10 * PIECE)
    monkeypatch.setattr(ahead, "SOON", 0.0)
    body = Body(100)
    most = IN_MEMORY // PIECE + 10 + 2
    async with Ahead(body.pieces(), room, "a", tmp_path) as read:
        pieces = read.pieces()
        got = [await anext(pieces)]
        async with asyncio.timeout(PATIENCE):
            while body.given < most:  # noqa: ASYNC110 - of what goes on in a thread
                await asyncio.sleep(0)
        assert body.given == most
        got += [piece async for piece in pieces]
    assert b"".join(got) == body.whole


async def test_who_leaves_in_the_middle_leaves_nothing(tmp_path: Path, room: Room):
    body = Body(100)
    async with Ahead(body.pieces(), room, "a", tmp_path) as read:
        await anext(read.pieces())
        await until_all_given(body)
    room.take("a", 1 << 29)


async def test_what_nobody_asks_for_is_not_begun(tmp_path: Path, room: Room):
    body = Body(1)
    async with Ahead(body.pieces(), room, "a", tmp_path):
        await asyncio.sleep(0)
    assert body.given == 0
