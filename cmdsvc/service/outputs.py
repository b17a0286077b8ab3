"""What is kept of a run's output: gathered while it runs, followed, stored at its end."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

from cmdsvc.model import Output
from cmdsvc.relay import Caller, Event

PIECE = 128
"""Bytes that a change of the stream is reckoned at, beside what is written: of memory, not more."""
SHOWN = 64 << 10
"""Bytes of kept output that are handed out at once."""


@dataclass(frozen=True, slots=True)
class Gap:
    """So many bytes were left out here."""

    size: int


class Kept:
    """The beginning and the end of what a run writes, in the order written, and who reads along.

    Half of `most` bytes is for either; a piece of one stream costs PIECE bytes beside its own.
    """

    def __init__(self, most: int) -> None:
        self._head: list[tuple[int, bytearray]] = []
        self._head_room = most // 2
        self._head_size = 0
        self._tail: deque[tuple[int, bytearray]] = deque()
        self._tail_room = most - most // 2
        self._tail_size = 0
        self._written = 0
        self._ended = False
        self._changed: asyncio.Event | None = None
        """Set and dropped at the next change; there is none where nobody waits."""

    def add(self, fd: int, data: bytes) -> None:
        rest = memoryview(data)
        self._written += len(rest)
        if self._head_room > 0:
            taken = self._begin(fd, rest)
            rest = rest[taken:]
        if rest:
            self._go_on(fd, rest)
        self._tell()

    def end(self) -> None:
        """Nothing more comes."""
        self._ended = True
        self._tell()

    def output(self) -> Output:
        return Output(
            head=_frozen(self._head),
            tail=_frozen(self._tail),
            dropped=self._written - self._head_size - self._tail_size,
        )

    async def follow(self) -> AsyncIterator[tuple[int, bytes] | Gap]:
        """All that is kept, then what comes, to the end; who reads too slowly has gaps."""
        at = 0
        while True:
            tail_at = self._written - self._tail_size
            if at < self._head_size:
                pieces = _since(self._head, self._head_size - at)
                at = self._head_size
            elif at < tail_at:
                yield Gap(tail_at - at)
                at = tail_at
                continue
            elif at < self._written:
                pieces = _since(self._tail, self._written - at)
                at = self._written
            elif self._ended:
                return
            else:
                if self._changed is None:
                    self._changed = asyncio.Event()
                await self._changed.wait()
                continue
            for piece in pieces:
                yield piece

    def _begin(self, fd: int, data: memoryview) -> int:
        """Puts into the head what there is room for; how much that was."""
        if not self._head or self._head[-1][0] != fd:
            self._head_room -= PIECE
            if self._head_room <= 0:
                return 0
            self._head.append((fd, bytearray()))
        taken = data[: self._head_room]
        self._head[-1][1].extend(taken)
        self._head_room -= len(taken)
        self._head_size += len(taken)
        return len(taken)

    def _go_on(self, fd: int, data: memoryview) -> None:
        """Puts `data` into the tail, whose oldest bytes make room."""
        if not self._tail or self._tail[-1][0] != fd:
            self._tail.append((fd, bytearray()))
        self._tail[-1][1].extend(data)
        self._tail_size += len(data)
        while (excess := self._tail_size + PIECE * len(self._tail) - self._tail_room) > 0:
            oldest = self._tail[0][1]
            if len(oldest) > excess:
                del oldest[:excess]
                self._tail_size -= excess
            else:
                self._tail.popleft()
                self._tail_size -= len(oldest)

    def _tell(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None


def pieces_of(output: Output) -> Iterable[tuple[int, bytes] | Gap]:
    """What is kept, with its gap, as `Kept.follow` gives it."""
    yield from _cut(output.head)
    if output.dropped:
        yield Gap(output.dropped)
    yield from _cut(output.tail)


@dataclass(slots=True, eq=False)
class Watched:
    """A caller, what is written to him counted, and kept where there is a place for it."""

    caller: Caller
    kept: Kept | None
    written: int = 0
    """Bytes."""
    first_at: float | None = None
    """When the first of them was written, by the monotonic clock."""

    def stdin(self) -> AsyncIterator[bytes]:
        return self.caller.stdin()

    def events(self) -> AsyncIterator[Event]:
        return self.caller.events()

    def write(self, fd: int, data: bytes) -> Coroutine[Any, Any, None]:
        if self.first_at is None:
            self.first_at = time.monotonic()
        self.written += len(data)
        if self.kept is not None:
            self.kept.add(fd, data)
        return self.caller.write(fd, data)


class Nobody:
    """A caller who has gone on and left no input. What is written to him is nowhere."""

    async def stdin(self) -> AsyncIterator[bytes]:
        return
        yield

    async def events(self) -> AsyncIterator[Event]:
        return
        yield

    async def write(self, fd: int, data: bytes) -> None: ...


def _frozen(pieces: Iterable[tuple[int, bytearray]]) -> tuple[tuple[int, bytes], ...]:
    return tuple((fd, bytes(data)) for fd, data in pieces if data)


def _since(
    pieces: list[tuple[int, bytearray]] | deque[tuple[int, bytearray]], size: int
) -> list[tuple[int, bytes]]:
    """The last `size` bytes of `pieces`. What is new is looked for from the end: it is short."""
    found: list[tuple[int, bytes]] = []
    for fd, data in reversed(pieces):
        if size <= 0:
            break
        found.append((fd, bytes(data[max(0, len(data) - size) :])))
        size -= len(data)
    return list(_cut(reversed(found)))


def _cut(pieces: Iterable[tuple[int, bytes]]) -> Iterable[tuple[int, bytes]]:
    for fd, data in pieces:
        for start in range(0, len(data), SHOWN):
            yield fd, data[start : start + SHOWN]
