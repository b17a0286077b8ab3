"""A WebSocket (RFC 6455), its server's side: bounded in what it keeps, whatever is sent or not read.

Only frames are taken apart by a library. The WebSockets of uvicorn answer pings without asking
whether anybody reads the answers, so that a client makes them keep as much as it likes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from websockets.frames import Frame, Opcode
from websockets.protocol import SEND_EOF, Protocol, Side, State

from cmdsvc.relay import CallerGone
from cmdsvc.web.connection import Line

MESSAGE_MAX = 1 << 20
"""Bytes of a message."""
REASON_MAX = 123
"""Bytes of the reason in a Close frame (RFC 6455, 5.5)."""
PING = 20.0
"""Seconds between two pings, and for the answer to one."""
CLOSING = 10.0
"""Seconds without progress after which a closed WebSocket's connection is cut."""
PIECE = 16 << 10
"""Bytes that are taken apart at once: of the smallest frames it is some 20 ms of work."""
UNPARSED = 256 << 10
"""Bytes that are read ahead."""


class Socket:
    def __init__(self, line: Line) -> None:
        self._line = line
        self._conn = Protocol(Side.SERVER, max_size=MESSAGE_MAX)
        self._raw = bytearray()
        self._text: bytearray | None = None
        """Of a message that has not come to its end; None where it is a binary one."""
        self._news = asyncio.Event()
        self._full = False
        self._heard = False
        self._over = False
        """Whether nothing of what comes is looked at any more."""

    def received(self, data: bytes) -> None:
        self._heard = True
        if not self._over:
            self._raw += data
            self._news.set()
            self._hold()

    def hold(self, *, full: bool) -> None:
        """Nothing more is read, but what has come, while the taker of messages is `full`."""
        self._full = full
        self._hold()

    def _hold(self) -> None:
        self._line.hold(held=not self._over and (self._full or len(self._raw) > UNPARSED))

    async def messages(self) -> AsyncIterator[bytes | str]:
        """What comes, binary ones in pieces; ends when one side has closed, or done wrong."""
        while not self._over:
            await self._news.wait()
            self._news.clear()
            while self._raw and not self._over:
                piece = bytes(self._raw[:PIECE])
                del self._raw[:PIECE]
                self._conn.receive_data(piece)
                for frame in self._conn.events_received():
                    message = self._message(frame) if isinstance(frame, Frame) else None
                    if message and self._conn.state is State.OPEN:
                        yield message
                if self._flush():  # pongs: who takes none of them sends no more pings
                    await self._line.room()
                self._hold()
                await asyncio.sleep(0)

    def _message(self, frame: Frame) -> bytes | str | None:
        if frame.opcode is Opcode.TEXT:
            self._text = bytearray()
        elif frame.opcode is Opcode.BINARY:
            self._text = None
        elif frame.opcode is not Opcode.CONT:
            return None
        if self._text is None:
            return bytes(frame.data)
        self._text += frame.data
        if not frame.fin:
            return None
        try:
            return self._text.decode()
        except UnicodeDecodeError:
            self.fail(1007, "a text frame is no UTF-8")
            return None

    async def send(self, message: bytes | str) -> None:
        """Once there is room for it. CallerGone."""
        self.put(message)
        await self._line.room()

    def put(self, message: bytes | str) -> None:
        """Without waiting for room: for what is small. CallerGone."""
        if self._conn.state is not State.OPEN:
            raise CallerGone
        if isinstance(message, str):
            self._conn.send_text(message.encode())
        else:
            self._conn.send_binary(message)
        self._flush()

    def fail(self, code: int, reason: str) -> None:
        """Closes it for what the client does wrong; nothing more is taken of it."""
        self._conn.fail(code, _short(reason))
        self._flush()

    async def close(self, code: int, reason: str = "") -> None:
        """Ends it, if it has not ended, and waits until all was taken, and the connection is gone.

        Somebody has to go on taking `messages`, of which there will be none.
        """
        if self._conn.state is State.OPEN:
            self._conn.send_close(code, _short(reason))
            self._flush()
        self.hold(full=False)
        unsent = -1
        while not self._line.gone.is_set():
            try:
                async with asyncio.timeout(CLOSING):
                    await self._line.gone.wait()
            except TimeoutError:
                if self._line.unsent in {0, unsent}:
                    self._line.abort()
                unsent = self._line.unsent

    async def beat(self) -> None:
        """Shows that it is alive, and finds out whether the other side is.

        Who has not taken what was sent before cannot answer, nor who is not read from.
        """
        await asyncio.sleep(PING)
        while self._conn.state is State.OPEN:
            self._heard = self._full or self._line.unsent > 0
            if not self._heard:
                self._conn.send_ping(b"")
                self._flush()
            await asyncio.sleep(PING)
            if not self._heard and not self._full and not self._line.unsent:
                self.fail(1011, f"no answer to a ping within {PING:g} s")

    def _flush(self) -> bool:
        """Whether there was something to send."""
        parts = self._conn.data_to_send()
        if data := b"".join(parts):
            self._line.write(data)
        if SEND_EOF in parts:
            self._over = True
            self._raw.clear()
            self._hold()
            self._news.set()
            self._line.end()
        return bool(data)


def _short(reason: str) -> str:
    return reason.encode()[:REASON_MAX].decode(errors="ignore")
