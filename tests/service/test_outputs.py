"""What is kept of a run's output, and how it is followed."""

from __future__ import annotations

import asyncio
import random

import pytest

from cmdsvc.model import Output
from cmdsvc.service.outputs import PIECE, SHOWN, Gap, Kept, Nobody, Watched, pieces_of
from tests.fakes import FakeCaller, LeavingCaller, soon, turns

ROOM = 4 * PIECE
"""Half of it for either end: one piece and PIECE bytes."""


def kept(*pieces: tuple[int, bytes], room: int = ROOM) -> Kept:
    made = Kept(room)
    for fd, data in pieces:
        made.add(fd, data)
    return made


def data_of(pieces: tuple[tuple[int, bytes], ...]) -> bytes:
    return b"".join(data for _, data in pieces)


class TestKept:
    def test_nothing(self):
        assert kept().output() == Output((), ())
        assert kept((1, b"")).output() == Output((), ())

    def test_the_order_of_both_streams(self):
        output = kept((1, b"a"), (1, b"b"), (2, b"c"), (1, b"d"), room=1 << 20).output()
        assert output == Output(((1, b"ab"), (2, b"c"), (1, b"d")), ())

    def test_what_is_too_much_goes_from_the_middle(self):
        output = kept((1, b"h" * PIECE), (1, b"m" * 1000), (1, b"t" * PIECE)).output()
        assert output == Output(((1, b"h" * PIECE),), ((1, b"t" * PIECE),), 1000)

    def test_one_large_piece(self):
        data = random.Random(1).randbytes(1 << 20)
        output = kept((1, data)).output()
        assert output == Output(((1, data[:PIECE]),), ((1, data[-PIECE:]),), len(data) - 2 * PIECE)

    def test_all_of_what_fits(self):
        data = b"x" * (2 * PIECE)
        output = kept((1, data)).output()
        assert data_of(output.head) + data_of(output.tail) == data
        assert output.dropped == 0

    @pytest.mark.parametrize("room", [1, 2, PIECE, PIECE + 1, 3 * PIECE])
    def test_little_room(self, room: int):
        output = kept((1, b"abc"), (2, b"d" * 1000), (1, b"e"), room=room).output()
        size = len(data_of(output.head)) + len(data_of(output.tail))
        assert size <= room
        assert size + output.dropped == 1004

    @pytest.mark.parametrize("seed", range(20))
    def test_any_writing_is_bounded_and_comes_out_in_order(self, seed: int):
        chance = random.Random(seed)
        room = chance.choice([ROOM, 10 * PIECE, 10_000])
        made, all_ = Kept(room), []
        for _ in range(300):
            fd, data = chance.choice([1, 2]), chance.randbytes(chance.choice([0, 1, 1, 7, 300]))
            made.add(fd, data)
            all_ += [(fd, byte) for byte in data]
        output = made.output()
        head = [(fd, byte) for fd, data in output.head for byte in data]
        tail = [(fd, byte) for fd, data in output.tail for byte in data]
        assert head == all_[: len(head)]
        assert tail == all_[len(all_) - len(tail) :]
        assert len(head) + output.dropped + len(tail) == len(all_)
        pieces = len(output.head) + len(output.tail)
        assert len(head) + len(tail) + PIECE * pieces <= room

    def test_many_small_pieces_take_no_more_memory(self):
        made = Kept(10 * PIECE)
        for number in range(10_000):
            made.add(1 + number % 2, b"x")
        output = made.output()
        assert len(output.head) + len(output.tail) <= 10
        assert output.dropped == 10_000 - len(output.head) - len(output.tail)


class Reader:
    """Follows, and has what came so far."""

    def __init__(self, made: Kept) -> None:
        self.got: list[tuple[int, bytes] | Gap] = []
        self.go = asyncio.Event()
        self.go.set()
        self.task = asyncio.create_task(self._read(made))

    async def _read(self, made: Kept) -> None:
        async for piece in made.follow():
            await self.go.wait()
            self.got.append(piece)


class TestFollowing:
    async def test_what_was_and_what_comes(self):
        made = kept((1, b"a"), (2, b"b"), room=1 << 20)
        reader = Reader(made)
        await turns()
        assert reader.got == [(1, b"a"), (2, b"b")]
        made.add(2, b"c")
        await turns()
        assert reader.got[2:] == [(2, b"c")]
        assert not reader.task.done()
        made.end()
        await soon(reader.task)

    async def test_what_has_ended(self):
        made = kept((1, b"a"))
        made.end()
        reader = Reader(made)
        await soon(reader.task)
        assert reader.got == [(1, b"a")]

    async def test_several_readers(self):
        made = kept()
        readers = [Reader(made) for _ in range(3)]
        await turns()
        made.add(1, b"x")
        await turns()
        made.add(1, b"y")
        made.end()
        await soon(asyncio.gather(*(reader.task for reader in readers)))
        assert all(reader.got == [(1, b"x"), (1, b"y")] for reader in readers)

    async def test_beyond_the_room_a_reader_misses_nothing(self):
        made = kept()
        reader = Reader(made)
        data = random.Random(2).randbytes(100 * PIECE)
        for start in range(0, len(data), PIECE // 2):
            made.add(1, data[start : start + PIECE // 2])
            await turns()
        made.end()
        await soon(reader.task)
        assert b"".join(piece[1] for piece in reader.got if not isinstance(piece, Gap)) == data
        assert made.output().dropped > 0

    async def test_a_slow_reader_has_a_gap(self):
        made = kept((1, b"a"))
        reader = Reader(made)
        reader.go.clear()
        await turns()
        for byte in b"bcdefgh":
            made.add(1, bytes([byte]) * PIECE)
        made.end()
        reader.go.set()
        await soon(reader.task)
        assert reader.got == [
            (1, b"a"),
            (1, b"b" * (PIECE - 1)),
            Gap(5 * PIECE + 1),
            (1, b"h" * PIECE),
        ]

    async def test_who_comes_late_has_what_is_kept(self):
        made = kept((1, b"h" * PIECE), (2, b"m" * 1000), (2, b"t" * PIECE))
        made.end()
        reader = Reader(made)
        await soon(reader.task)
        assert reader.got == list(pieces_of(made.output()))
        assert reader.got == [(1, b"h" * PIECE), Gap(1000), (2, b"t" * PIECE)]

    async def test_pieces_are_handed_out_in_a_bounded_size(self):
        data = random.Random(3).randbytes(3 * SHOWN + 1)
        made = kept((1, data), room=1 << 20)
        made.end()
        reader = Reader(made)
        await soon(reader.task)
        assert [len(piece[1]) for piece in reader.got] == [SHOWN] * 3 + [1]
        assert list(pieces_of(made.output())) == reader.got


class TestWatched:
    async def test_it_counts_and_passes_on(self):
        caller = FakeCaller(b"in", b"put")
        watched = Watched(caller, None)
        assert [data async for data in watched.stdin()] == [b"in", b"put"]
        assert [event async for event in watched.events()] == []
        await watched.write(1, b"abc")
        await watched.write(2, b"de")
        assert caller.got == [(1, b"abc"), (2, b"de")]
        assert watched.written == 5

    async def test_it_keeps_also_what_a_caller_did_not_get(self):
        caller = LeavingCaller()
        caller.gone = True
        watched = Watched(caller, Kept(ROOM))
        with pytest.raises(Exception):  # noqa: B017 - whatever the caller raises
            await watched.write(1, b"abc")
        assert watched.kept is not None
        assert watched.kept.output().head == ((1, b"abc"),)

    async def test_nobody(self):
        nobody = Nobody()
        assert [data async for data in nobody.stdin()] == []
        assert [event async for event in nobody.events()] == []
        await nobody.write(1, b"x")
