"""One client's connection: bounded in time and size while no request of it is at work."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from cmdsvc.relay import CallerGone

HEAD_MAX = 64 << 10
"""Bytes of a request's head."""
HEAD_TIME = 15.0
"""Seconds for it, and for the rest of a body that nobody wants any more."""
STALLED = 30.0
"""Seconds for which who has been answered may take nothing of it."""
FLUSH_TIME = 30.0
"""Seconds that a cut connection has to take what was sent before."""

_CLOSED = frozenset({7, 8})  # TCP_CLOSE, TCP_CLOSE_WAIT: include/net/tcp_states.h
_RESET = struct.pack("ii", 1, 0)
_TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Line:
    """A connection, for the request that came by it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._transport = connection.transport
        self.gone = asyncio.Event()
        """The other side is not there any more, or was cut off."""

    async def serve(self, work: Coroutine[None, None, None]) -> None:
        """Does it, but no longer than there is somebody to do it for."""
        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(self.gone.wait())
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
        finally:
            task.cancel()
            gone.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)

    async def cut(self, *, framed: bool) -> None:
        """Ends it so that the reply, which is not whole, does not look so.

        `framed`: what was sent says how long it is to be (HTTP/1.1).
        """
        if framed and not self.gone.is_set():
            self._transport.close()
            try:
                async with asyncio.timeout(FLUSH_TIME):
                    await self.gone.wait()
            except TimeoutError:
                self._transport.abort()
        elif not self.gone.is_set():
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._transport.abort()
        await self.gone.wait()

    def switch(self, received: Callable[[bytes], None]) -> None:
        """Another protocol from here on: `received` is given what comes, and what came too early."""
        self._connection.switch(received)

    @property
    def unsent(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return self._transport.get_write_buffer_size()

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    async def room(self) -> None:
        """Until little is unsent. CallerGone."""
        await self._connection.flow.drain()
        if self.gone.is_set():
            raise CallerGone

    def hold(self, *, held: bool) -> None:
        """Whether nothing is read from it."""
        flow = self._connection.flow
        (flow.pause_reading if held else flow.resume_reading)()

    def end(self) -> None:
        """Nothing more is sent; the other side is expected to close it."""
        if not self._transport.can_write_eof():
            self._transport.close()
            return
        try:
            self._transport.write_eof()
        except OSError:  # it was reset, of which the event loop has not heard yet
            self._transport.abort()

    def abort(self) -> None:
        self._transport.abort()


class Framing(h11.Connection):
    """HTTP's, of a server. The head of a reply that says its length goes out with what follows it."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, HEAD_MAX)
        self._head = b""

    def send(self, event: h11.Event) -> bytes | None:  # type: ignore[override]
        data = super().send(event)
        if isinstance(event, h11.Response) and _sized(event):
            self._head = data or b""
            return b""
        if self._head and data is not None:
            data, self._head = self._head + data, b""
        return data


class Connection(H11Protocol):
    """`discard`: bytes of a body that are still read after its request was answered."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        discard: int = 0,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn = Framing()
        self._timer: asyncio.TimerHandle | None = None
        self._room = self._discard = discard
        self._unsent = 0
        self._since = 0.0
        self._switched: Callable[[bytes], None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.line = Line(self)
        self.app_state = {**self.app_state, "line": self.line}
        self._set_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_timer()
        self.line.gone.set()

    def switch(self, received: Callable[[bytes], None]) -> None:
        """No more HTTP: see Line.switch."""
        self._switched = received
        self.cycle.disconnected = True  # nothing that uvicorn does is for this client any more
        early, _ = self.conn.trailing_data
        if early:
            received(early)
        self.flow.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self._switched is not None:
            self._switched(data)
            return
        super().data_received(data)
        if self.at_work:
            self._stop_timer()
            self._room = self._discard
        elif not self.transport.is_closing():
            self._set_timer()
            if self.conn.their_state is h11.SEND_BODY:
                self._room -= len(data)
                if self._room < 0:
                    self.transport.abort()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.at_work and self.conn.their_state is h11.SEND_BODY:
            self._set_timer()

    @property
    def at_work(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def send_400_response(self, msg: str) -> None:
        """Refuses what is no HTTP; called where h11 has said so."""
        del msg
        error = sys.exception()
        status = getattr(error, "error_status_hint", 400)
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            self.transport.abort()
            return
        if self.cycle is not None:  # what is at work has nobody to answer
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        words, _, _ = str(error).partition(": bytearray")  # what was sent, as Python writes it
        hint = "send HTTP/1.1 (RFC 9112)"
        if status == 431:
            words, hint = f"the head of the request is larger than {HEAD_MAX} bytes", "send less"
        body = f"{words}; {hint}\n".encode()
        head = h11.Response(
            status_code=status,
            headers=[
                ("content-type", "text/plain; charset=utf-8"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ],
        )
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def look(self, now: float) -> None:
        """To be called every now and then: ends it where its client has left unseen, or takes nothing.

        While nothing is read from a connection, the event loop does not hear of its end.
        """
        if self.flow.read_paused and _closed(self.transport):
            self.transport.abort()
            return
        unsent = self.transport.get_write_buffer_size()
        if not unsent or self.at_work or unsent != self._unsent:
            self._unsent, self._since = unsent, now
        elif now - self._since > STALLED:
            self.transport.abort()

    def _set_timer(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEAD_TIME, self._timed_out)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _timed_out(self) -> None:
        self._timer = None
        if self.at_work or self.transport.is_closing():
            return
        if self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
            self.transport.write(_TIMED_OUT)
        self.transport.close()


def _sized(head: h11.Response) -> bool:
    return any(name == b"content-length" for name, _ in head.headers)


def _closed(transport: asyncio.Transport) -> bool:
    """Whether the kernel knows that the other side has closed it."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0 or sock.family == socket.AF_UNIX:
        return False
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in _CLOSED
