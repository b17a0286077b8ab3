"""A command at the other end of a WebSocket: its stdin, its output, its terminal."""

from __future__ import annotations

import asyncio
import base64
import binascii
import codecs
import hashlib
import json
import re
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from signal import Signals

from cmdsvc.errors import BusyError, CmdError, UsageError, one_line
from cmdsvc.metadata import Http
from cmdsvc.model import Door, Reason, Terminal
from cmdsvc.relay import CallerGone, Event, Resize, Signal
from cmdsvc.service.invocation import Request
from cmdsvc.service.runs import Runs
from cmdsvc.web.ahead import Ahead
from cmdsvc.web.asked import Asked
from cmdsvc.web.forwarded import PORTS
from cmdsvc.web.frames import Socket
from cmdsvc.web.out import Out
from cmdsvc.web.problems import RequestError

SUBPROTOCOL = "cmdsvc.v1"
TERM = "xterm-256color"
"""What the terminals in browsers understand."""
STDIN_HIGH = 256 << 10
"""Bytes of stdin that wait to be put elsewhere, above which nothing more is read from the client."""
EVENTS_MAX = 64
CONTROL_MAX = 4096
"""Characters of a control frame."""
SIZE_MAX = 65535
"""Columns or rows of a terminal: what a kernel takes."""
FAILED = 4000
"""What an exit status is added to, as the code of a Close frame (RFC 6455, 7.4.2: for private use)."""

MakeAhead = Callable[[AsyncIterator[bytes]], Ahead]

_PORT = re.compile(r":[0-9]+$")
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3


def wanted(asked: Asked) -> bool:
    """Whether it asks for a WebSocket (RFC 6455, 4.2.1)."""
    return (
        asked.method == "GET"
        and asked.protocol == "HTTP/1.1"
        and "upgrade" in map(str.lower, asked.words(b"connection"))
        and "websocket" in map(str.lower, asked.words(b"upgrade"))
    )


async def serve(
    asked: Asked, out: Out, runs: Runs, request: Request, http: Http, *, ahead: MakeAhead
) -> None:
    """Runs it over the WebSocket that `asked` becomes. RequestError where it does not become one.

    `ahead`: by what stdin is read on where the script does not read it.
    """
    _check_origin(asked, http)
    head, subprotocol = _accepted(asked)
    request = replace(request, door=Door.WEBSOCKET, terminal=_terminal(asked))
    socket = Socket(asked.line)
    caller = SocketCaller(socket, ahead, plain=not subprotocol)
    out.status, out.run = 101, request.id
    asked.line.switch(socket.received)
    lines = [*head, ("x-cmd-run-id", request.id)]
    text = "".join(f"{name}: {value}\r\n" for name, value in lines)
    asked.line.write(f"HTTP/1.1 101 Switching Protocols\r\n{text}\r\n".encode())
    tasks = [
        asyncio.create_task(asked.line.serve(caller.listen())),
        asyncio.create_task(socket.beat()),
    ]
    tasks[0].add_done_callback(lambda _: caller.leave())
    try:
        async with caller.ahead:
            ended = await _ended(runs, request, caller)
        await caller.end(*ended)
    finally:
        for task in tasks:
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
    for error in found:
        if isinstance(error, Exception) and not isinstance(error, CallerGone):
            raise error


async def _ended(runs: Runs, request: Request, caller: SocketCaller) -> tuple[int, str, int]:
    """The exit status, a message of the service's, the code to close with; 0 for the usual one."""
    going_down, full = 1012, 1013  # "service restart", "try again later"
    try:
        outcome = await runs.run(request, caller)
    except CmdError as error:
        busy = isinstance(error, BusyError)
        return error.exit_status, str(error), busy and (going_down if runs.draining else full)
    lost = outcome.reason is Reason.LOST and runs.draining
    return outcome.exit_status, outcome.message, going_down if lost else 0


class SocketCaller:
    """`plain`: stdout as text, whatever comes as stdin; else as SUBPROTOCOL has it."""

    def __init__(self, socket: Socket, ahead: MakeAhead, *, plain: bool) -> None:
        self.ahead = ahead(self._taken())
        self._socket = socket
        self._plain = plain
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._unread = bytearray()
        self._eof = False
        self._left = False
        self._events: deque[Event] = deque(maxlen=EVENTS_MAX)
        self._stdin_wake = asyncio.Event()
        self._event_wake = asyncio.Event()

    async def listen(self) -> None:
        """Takes what the client sends, until it has closed."""
        async for message in self._socket.messages():
            try:
                if isinstance(message, bytes) or self._plain:
                    self._take(message if isinstance(message, bytes) else message.encode())
                else:
                    self._control(message)
            except _RefusedError as error:
                self._socket.fail(error.code, str(error))

    def leave(self) -> None:
        """Nobody is there any more."""
        self._left = True
        self._stdin_wake.set()
        self._event_wake.set()

    def _take(self, data: bytes) -> None:
        if self._eof:
            raise _RefusedError(1008, "stdin was ended by an eof before")
        self._unread += data
        self._stdin_wake.set()
        if len(self._unread) > STDIN_HIGH:
            self._socket.hold(full=True)

    def _control(self, text: str) -> None:
        try:
            said = json.loads(text) if len(text) <= CONTROL_MAX else None
        except (ValueError, RecursionError):
            raise _RefusedError(1003, "a text frame is JSON; send stdin as binary ones") from None
        match said:
            case {"type": "eof"}:
                self._eof = True
                self._stdin_wake.set()
                return
            case {"type": "resize", "cols": int(cols), "rows": int(rows)} if _fit(cols, rows):
                self._events.append(Resize(cols, rows))
            case {"type": "signal", "signal": str(name)} if f"SIG{name}" in Signals.__members__:
                self._events.append(Signal(name))
            case {"type": "resize"}:
                raise _RefusedError(1008, f"a resize has cols and rows of 1 to {SIZE_MAX}")
            case {"type": "signal"}:
                raise _RefusedError(1008, 'a signal is named such as "INT" or "TERM"')
            case _:
                raise _RefusedError(1008, "a control frame has the type eof, resize or signal")
        self._event_wake.set()

    def stdin(self) -> AsyncIterator[bytes]:
        return self.ahead.pieces()

    async def _taken(self) -> AsyncIterator[bytes]:
        while True:
            if self._unread:
                data = bytes(self._unread)
                self._unread.clear()
                self._socket.hold(full=False)
                yield data
            elif self._left:
                raise CallerGone
            elif self._eof:
                return
            else:
                self._stdin_wake.clear()
                await self._stdin_wake.wait()

    async def events(self) -> AsyncIterator[Event]:
        while True:
            while self._events:
                yield self._events.popleft()
            if self._left:
                raise CallerGone
            self._event_wake.clear()
            await self._event_wake.wait()

    async def write(self, fd: int, data: bytes) -> None:
        if not self._plain:
            await self._socket.send(bytes([fd]) + data)
        elif fd == 1 and (text := self._decoder.decode(data)):
            await self._socket.send(text)

    async def end(self, exit_status: int, message: str, code: int) -> None:
        """Says how it ended, and closes with `code`, where it is not 0."""
        usual = FAILED + exit_status if self._plain and exit_status else 1000
        if not self._left:
            self._put_end(exit_status, message)
        await self._socket.close(code or usual, one_line(message))

    def _put_end(self, exit_status: int, message: str) -> None:
        if self._plain:
            if text := self._decoder.decode(b"", final=True):
                self._socket.put(text)
            return
        said: dict[str, str | int] = {"type": "exit", "exit_status": exit_status}
        if message:
            said["message"] = message
        self._socket.put(json.dumps(said, separators=(",", ":")))


class _RefusedError(Exception):
    """What the client sent is not for the service, in words for it; `code` is of RFC 6455, 7.4.1."""

    def __init__(self, code: int, what: str) -> None:
        super().__init__(what)
        self.code = code


def _check_origin(asked: Asked, http: Http) -> None:
    """A browser opens a WebSocket for any page, with what it knows of the user's credentials."""
    for value in asked.values(b"origin"):
        origin = value.decode("latin-1")
        if not (is_ours(origin, asked) or origin in http.cors or "*" in http.cors):
            raise RequestError(
                403,
                f"it is not for pages of {one_line(origin)[:80]}",
                "its script can allow them: [http] cors",
            )


def is_ours(origin: str, asked: Asked) -> bool:
    """Whether it is that of the address that was asked, as the client or a proxy names it."""
    scheme, _, host = origin.lower().partition("://")
    if host in (value.decode("latin-1").lower() for value in asked.values(b"host")):
        return True
    with_port = host if _PORT.search(host) else f"{host}:{PORTS.get(scheme)}"
    return with_port == f"{asked.origin.host}:{asked.origin.port}"


def _accepted(asked: Asked) -> tuple[list[tuple[str, str]], str]:
    """The headers that accept it, and the subprotocol, "" for none. RequestError."""
    if asked.values(b"sec-websocket-version") != [b"13"]:
        raise RequestError(
            426,
            "not this version of WebSocket",
            "use 13",
            [("upgrade", "websocket"), ("sec-websocket-version", "13")],
        )
    keys = asked.values(b"sec-websocket-key")
    if len(keys) != 1 or not _is_key(keys[0]):
        raise RequestError(400, "no WebSocket: its Sec-WebSocket-Key is none", "see RFC 6455")
    if asked.length or asked.values(b"transfer-encoding"):
        raise RequestError(400, "a WebSocket does not begin with a body", "send it in frames")
    offered = asked.words(b"sec-websocket-protocol")
    if offered and SUBPROTOCOL not in offered:
        raise RequestError(400, "no such subprotocol", f"offer {SUBPROTOCOL}, or none")
    proof = base64.b64encode(hashlib.sha1(keys[0] + _GUID, usedforsecurity=False).digest())
    head = [
        ("upgrade", "websocket"),
        ("connection", "Upgrade"),
        ("sec-websocket-accept", proof.decode()),
    ]
    if not offered:
        return head, ""
    return [*head, ("sec-websocket-protocol", SUBPROTOCOL)], SUBPROTOCOL


def _is_key(value: bytes) -> bool:
    try:
        return len(base64.b64decode(value, validate=True)) == 16
    except binascii.Error:
        return False


def _terminal(asked: Asked) -> Terminal | None:
    """None where none is wanted. UsageError (400)."""
    if asked.flag(b"tty") is None:
        return None
    words = asked.flag(b"cols") or "80", asked.flag(b"rows") or "24"
    try:
        cols, rows = (int(word) for word in words if word.isascii() and word.isdigit())
    except ValueError:
        cols = rows = 0
    if not _fit(cols, rows):
        raise UsageError("no size of a terminal", f"cols and rows are 1 to {SIZE_MAX}")
    return Terminal(TERM, cols, rows)


def _fit(columns: int, rows: int) -> bool:
    return 0 < columns <= SIZE_MAX and 0 < rows <= SIZE_MAX
