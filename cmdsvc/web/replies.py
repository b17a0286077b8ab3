"""What becomes of a run's output: a plain reply, one that the script shapes, events."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import Protocol

from cmdsvc.errors import CmdError
from cmdsvc.metadata import Http, Response
from cmdsvc.model import Outcome, Reason
from cmdsvc.web import cgireply
from cmdsvc.web.events import EVENT_HEADERS, Mode, Place, Teller
from cmdsvc.web.out import Out
from cmdsvc.web.problems import RequestError

HELD = 1 << 20
"""Bytes of output that wait for the status of the run."""
QUIET = 15.0
"""Seconds of silence after which a stream of events shows that it is alive."""

SAFE = ("x-content-type-options", "nosniff")
FRESH = ("cache-control", "no-store")


def status_of(outcome: Outcome) -> int:
    if outcome.exit_status == 0:
        return 200
    if outcome.reason is Reason.TIMEOUT:
        return 504
    return 503 if outcome.reason is Reason.LOST else 500


class Reply(Protocol):
    """`begin`, then `write` for each piece, then `end`, each of them CallerGone; `stop` comes last."""

    async def begin(self) -> None: ...

    async def write(self, fd: int, data: bytes) -> None: ...

    async def end(self, outcome: Outcome) -> None: ...

    async def failed(self, error: CmdError) -> None:
        """Instead of `end`, and of all where it has not begun."""
        ...

    async def stop(self) -> None: ...


class Body:
    """The script's stdout is the reply; up to `held` bytes of it wait until it is known how it ended."""

    def __init__(self, out: Out, http: Http, held: int) -> None:
        self._out = out
        self._held = held
        self._shaped = http.response is Response.CGI
        self._head = cgireply.Head(None, (("content-type", http.content_type), FRESH))
        self._raw = bytearray()
        """Header fields that have not come to their end."""
        self._body = bytearray()
        self._wrong = ""

    async def begin(self) -> None: ...

    async def write(self, fd: int, data: bytes) -> None:
        if fd != 1 or self._wrong:
            return
        if self._shaped:
            data = self._shape(data)
        if self._out.started:
            if self._out.bodied:
                await self._out.data(data)
            return
        self._body += data
        if len(self._body) > self._held:
            await self._out.begin(self._head.status or self._head.implied, self._headers)
            data, self._body = bytes(self._body), bytearray()
            if self._out.bodied:
                await self._out.data(data)

    @property
    def _headers(self) -> list[tuple[str, str]]:
        return [*self._head.headers, SAFE]

    def _shape(self, data: bytes) -> bytes:
        """What of `data` is the body's."""
        self._raw += data
        found = cgireply.split(bytes(self._raw))
        if found is None:
            if len(self._raw) > cgireply.HEAD_MAX:
                self._wrong = f"there is no blank line in its first {cgireply.HEAD_MAX} bytes"
            return b""
        self._shaped = False
        try:
            head = cgireply.head(found[0])
        except cgireply.MalformedError as error:
            self._wrong = str(error)
            return b""
        told = {name for name, _ in head.headers}
        ours = [(name, value) for name, value in self._head.headers if name not in told]
        self._head = replace(head, headers=(*ours, *head.headers))
        return found[1]

    async def end(self, outcome: Outcome) -> None:
        if self._out.started:
            await (self._out.cut() if outcome.exit_status else self._out.end())
            return
        self._out.more.append(("x-cmd-exit-status", str(outcome.exit_status)))
        status = self._head.implied if outcome.exit_status == 0 else status_of(outcome)
        if (self._wrong or self._shaped) and outcome.exit_status == 0:
            why = self._wrong or "its header fields have no end"
            await self.failed(RequestError(502, f"the script's reply is malformed: {why}"))
        elif outcome.message and not self._body:
            await self.failed(RequestError(status, outcome.message))
        else:
            await self._out.whole(self._head.status or status, self._headers, bytes(self._body))

    async def failed(self, error: CmdError) -> None:
        await self._out.problem(error)

    async def stop(self) -> None: ...


class Events:
    """Server-sent events: what it writes, on which stream, and how it ended."""

    def __init__(self, out: Out, mode: Mode, place: Place | None = None) -> None:
        self._out = out
        self._teller = Teller(mode, place or Place())
        self._pulse: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        await self._out.begin(200, [*EVENT_HEADERS, SAFE])
        self._pulse = asyncio.create_task(self._beat())

    async def write(self, fd: int, data: bytes) -> None:
        if told := self._teller.written(fd, data):
            await self._out.data(told)

    async def left_out(self, size: int) -> None:
        """So many bytes are not kept."""
        await self._out.data(self._teller.left_out(size))

    async def end(self, outcome: Outcome) -> None:
        await self._out.data(self._teller.ended(outcome))
        await self.stop()
        await self._out.end()

    async def failed(self, error: CmdError) -> None:
        if self._out.started:
            await self.end(Outcome(error.exit_status, Reason.ENGINE, str(error)))
        else:
            await self._out.problem(error)

    async def stop(self) -> None:
        """Nothing more is said by itself."""
        if self._pulse is not None:
            self._pulse.cancel()
            await asyncio.wait([self._pulse])

    async def _beat(self) -> None:
        with contextlib.suppress(Exception):  # who has gone is found out by who writes
            while True:
                await asyncio.sleep(QUIET)
                await self._out.data(b": alive\n\n")
