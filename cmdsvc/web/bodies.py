"""Bodies that are needed whole before anything is done with them: bounded, all together too."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO

from cmdsvc.errors import BusyError
from cmdsvc.relay import Event
from cmdsvc.web.asked import Asked
from cmdsvc.web.problems import RequestError

IN_MEMORY = 256 << 10
"""Bytes of a body above which it is put into a file."""
PIECE = 64 << 10
BODY_TIME = 60.0
"""Seconds that a body may take to come, where nothing is run meanwhile; more where it is large."""
SLOWEST = 64 << 10
"""Bytes a second that a large one comes by at least."""


class Room:
    """So many bytes for all, and half of them for any one address."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._taken: Counter[str] = Counter()

    def take(self, address: str, size: int) -> None:
        """BusyError (503) where there is not as much."""
        if self._taken.total() + size > self._size or (
            self._taken[address] + size > self._size // 2
        ):
            raise BusyError("too much is being received", "send it again in a moment")
        self._taken[address] += size

    def give_back(self, address: str, size: int) -> None:
        self._taken[address] -= size
        if self._taken[address] <= 0:
            del self._taken[address]


class Held:
    """A body that has come whole. Who has it calls `close`, which may be done again."""

    def __init__(self, room: Room, address: str, folder: Path) -> None:
        self._room = room
        self._address = address
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(  # noqa: SIM115 - closed by close()
            IN_MEMORY, dir=str(folder)
        )
        self._digest = hashlib.sha256()
        self.size = 0

    async def add(self, piece: bytes) -> None:
        self._room.take(self._address, len(piece))
        self.size += len(piece)
        try:
            if self.size < IN_MEMORY:
                self._file.write(piece)
                self._digest.update(piece)
            else:
                await asyncio.to_thread(self._add, piece)
        except OSError as error:
            raise BusyError(f"it cannot be kept: {error.strerror}", "try again later") from error

    def _add(self, piece: bytes) -> None:
        self._file.write(piece)
        self._digest.update(piece)

    @property
    def digest(self) -> bytes:
        return self._digest.digest()

    async def pieces(self) -> AsyncIterator[bytes]:
        self._file.seek(0)
        while piece := self._file.read(PIECE):
            yield piece

    def close(self) -> None:
        self._file.close()
        self._room.give_back(self._address, self.size)
        self.size = 0


class Sender:
    """Who has left a body behind for a run, and reads nothing of it."""

    def __init__(self, body: Held) -> None:
        self._body = body

    def stdin(self) -> AsyncIterator[bytes]:
        return self._body.pieces()

    async def events(self) -> AsyncIterator[Event]:
        return
        yield

    async def write(self, fd: int, data: bytes) -> None: ...


async def received(asked: Asked, room: Room, folder: Path, most: int) -> Held:
    """The body.

    RequestError: 413 above `most` bytes, 408 where it does not come; BusyError (503); CallerGone.
    """
    held = Held(room, asked.origin.address, folder)
    try:
        async with asyncio.timeout(BODY_TIME + (asked.length or most) / SLOWEST):
            async for piece in asked.body(most):
                await held.add(piece)
    except TimeoutError:
        held.close()
        raise RequestError(408, "the body did not come", "send it faster") from None
    except BaseException:
        held.close()
        raise
    return held


@contextlib.asynccontextmanager
async def in_memory(asked: Asked, room: Room, most: int) -> AsyncIterator[bytes]:
    """As `received`, for what takes it as one piece, which is to be gone on leaving."""
    body = bytearray()
    address = asked.origin.address
    try:
        async with asyncio.timeout(BODY_TIME):
            async for piece in asked.body(most):
                room.take(address, len(piece))
                body += piece
        yield bytes(body)
    except TimeoutError:
        raise RequestError(408, "the body did not come", "send it faster") from None
    finally:
        room.give_back(address, len(body))
