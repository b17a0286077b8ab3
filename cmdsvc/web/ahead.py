"""A body that is read on though its script does not take it, so that its client's end is heard of.

The end of a connection stands behind all that was sent before, of which two kernels hold megabytes:
who reads nothing does not hear of it.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Self

from cmdsvc.errors import BusyError
from cmdsvc.web.bodies import PIECE, Room

IN_MEMORY = 256 << 10
"""Bytes that wait in memory for who takes them soon."""
SOON = 0.02
"""Seconds for which a piece waits for room in memory before the file is begun."""
FILE_MAX = 32 << 20
"""Bytes of a file; where that is full the client has to wait."""


class Ahead:
    """`body` is not begun before its `pieces` are asked for, which may be done once."""

    def __init__(self, body: AsyncIterator[bytes], room: Room, address: str, folder: Path) -> None:
        self._body = body
        self._room = room
        self._address = address
        self._folder = folder
        self._pieces: deque[bytes] = deque()
        self._size = 0
        """Bytes in memory."""
        self._file: IO[bytes] | None = None
        self._lock = asyncio.Lock()
        self._read = self._written = self._reserved = 0
        """Of the file; what it has in it comes after all that is in memory."""
        self._came = asyncio.Event()
        self._taken = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        if self._file is not None:
            self._file.close()
        self._room.give_back(self._address, self._reserved)

    async def pieces(self) -> AsyncIterator[bytes]:
        """As they came; raises what `body` raises."""
        self._reading = asyncio.create_task(self._read_on())
        self._reading.add_done_callback(lambda _: self._came.set())
        while True:
            self._came.clear()
            ended = self._reading.done()
            if piece := await self._next():
                self._taken.set()
                yield piece
            elif ended:
                self._reading.result()
                return
            else:
                await self._came.wait()

    async def _next(self) -> bytes:
        if self._pieces:
            piece = self._pieces.popleft()
            self._size -= len(piece)
            return piece
        if self._file is None or self._read == self._written:
            return b""
        async with self._lock:
            piece = await asyncio.to_thread(_read, self._file, self._read)
            self._read += len(piece)
            if self._read == self._written:
                self._file.close()
                self._file = None
                self._room.give_back(self._address, self._reserved)
                self._read = self._written = self._reserved = 0
        return piece

    async def _read_on(self) -> None:
        async for piece in self._body:
            await self._put(piece)
            self._came.set()

    async def _put(self, piece: bytes) -> None:
        soon = True
        while True:
            self._taken.clear()
            if self._file is None and self._size < IN_MEMORY:
                self._pieces.append(piece)
                self._size += len(piece)
                return
            if (self._file is not None or not soon) and await self._filed(piece):
                return
            try:
                async with asyncio.timeout(SOON if soon else None):
                    await self._taken.wait()
            except TimeoutError:
                soon = False

    async def _filed(self, piece: bytes) -> bool:
        """Whether there was room for it in the file."""
        async with self._lock:
            if self._written + len(piece) > FILE_MAX:
                return False
            try:
                self._room.take(self._address, len(piece))
                self._reserved += len(piece)
                if self._file is None:
                    self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - closed on leaving
                await asyncio.to_thread(_write, self._file, self._written, piece)
            except (BusyError, OSError):
                if self._file is not None and not self._written:
                    self._file.close()
                    self._file = None
                return False
            self._written += len(piece)
            return True


def _read(file: IO[bytes], at: int) -> bytes:
    file.seek(at)
    return file.read(PIECE)


def _write(file: IO[bytes], at: int, piece: bytes) -> None:
    file.seek(at)
    file.write(piece)
    file.flush()
