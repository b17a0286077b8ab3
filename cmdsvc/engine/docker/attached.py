"""The standard streams of a container's program, by way of the engine."""

from __future__ import annotations

from typing import Final

from cmdsvc.engine.docker.http import Stream

_CHUNK: Final = 2**17
"""Bytes that are read at once."""


class Attached:
    """Without a terminal the output comes in frames.

    A frame: 1 or 2, three zeros, a length in four bytes, big-endian; then the bytes.
    """

    def __init__(self, container: str, stream: Stream, *, terminal: bool) -> None:
        self.container = container
        self.terminal = terminal
        self._stream = stream
        self._fd = 1
        self._left = 0

    @property
    def usable(self) -> bool:
        """False once it is known to have ended."""
        return self._stream.usable

    async def next(self) -> tuple[int, bytes] | None:
        """(1 or 2, some of the output), None at its end."""
        if self.terminal:
            data = await self._stream.read(_CHUNK)
            return (1, data) if data else None
        while not self._left:
            head = await self._stream.exactly(8)
            if len(head) < 8:
                return None
            self._fd, self._left = head[0], int.from_bytes(head[4:], "big")
        data = await self._stream.read(min(self._left, _CHUNK))
        self._left -= len(data)
        return (self._fd, data) if data else None

    async def write(self, data: bytes) -> None:
        """Waits for room; what cannot be sent any more is dropped."""
        await self._stream.write(data)

    def write_eof(self) -> None:
        self._stream.write_eof()

    def close(self) -> None:
        """Lets go of whoever waits here. Repeatable."""
        self._stream.close()
