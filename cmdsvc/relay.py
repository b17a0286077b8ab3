"""Bytes between who asked and what runs.

A `Caller` is whoever asked for a run: an SSH channel, later an HTTP request or a stored delivery,
in tests a test. A `Job` is what runs: a container or a sandbox. `relay` joins the two.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Protocol

from cmdsvc.model import Outcome, Reason


@dataclass(frozen=True, slots=True)
class Resize:
    columns: int
    rows: int


@dataclass(frozen=True, slots=True)
class Signal:
    """`name` is a POSIX signal's without SIG, as RFC 4254 section 6.9 writes it: INT, TERM ..."""

    name: str


Event = Resize | Signal

SPELL = 16
"""Pieces of output after which others have a turn: a program that floods never lets its reader wait, and
a caller who has no use for it never lets it wait either."""


class CallerGone(Exception):  # noqa: N818 - a state of the other side, not an error
    """The caller went away before the end: what it asked for is to be stopped."""


class Caller(Protocol):
    """Who asked. The three methods are used by one task each, at the same time."""

    def stdin(self) -> AsyncIterator[bytes]:
        """What the caller sends; ends at its end of file, raises CallerGone if it leaves instead.

        No more is taken from the caller than is asked for here, but for a bounded buffer.
        """
        ...

    def events(self) -> AsyncIterator[Event]:
        """What else the caller wants, never held up by unread stdin. Raises CallerGone."""
        ...

    async def write(self, fd: int, data: bytes) -> None:
        """Sends to the caller's stdout (1) or stderr (2), waiting for room. Raises CallerGone."""
        ...


class Job(Protocol):
    """One run in its sandbox. Every method may be called in any state and `aclose` repeatedly.

    `send` and `output` may wait for the program; nothing else does. After the program's end
    `send`, `send_eof`, `resize` and `signal` do nothing.
    """

    async def send(self, data: bytes) -> None:
        """Gives bytes to the program's stdin, waiting for room; dropped when it does not read."""
        ...

    async def send_eof(self) -> None:
        """Ends the program's stdin; its output goes on."""
        ...

    async def resize(self, columns: int, rows: int) -> None:
        """Tells the terminal's new size; nothing without a terminal."""
        ...

    async def signal(self, name: str) -> None:
        """Sends a signal (name without SIG) to the program and its process group.

        A name that is unknown is ignored.
        """
        ...

    def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """(1 or 2, bytes) until the program has ended and all that it wrote was given.

        With a terminal all is 1. Unread output stops the program (back-pressure), with bounded
        memory. To be iterated once.
        """
        ...

    async def wait(self) -> Outcome:
        """How the program ended; to be awaited after `output` ended (or after `aclose`).

        Raises EngineError when the engine lost the run.
        """
        ...

    async def aclose(self) -> None:
        """Kills what still runs, removes the sandbox with all that it held; after it nothing is left.

        Tear-down that the caller need not wait for may go on in the background of the engine,
        which finishes it before the engine's own `aclose` returns; processes are dead on return.
        """
        ...


async def relay(caller: Caller, job: Job, *, timeout: float) -> Outcome:  # noqa: ASYNC109
    """Runs `job` for `caller` to its end, for at most `timeout` seconds; the job is closed by then.

    A caller that leaves and a time limit end the job; both are told in the Outcome. EngineError
    passes through.
    """

    async def upstream() -> None:
        async for data in caller.stdin():
            await job.send(data)
        await job.send_eof()

    async def control() -> None:
        async for event in caller.events():
            match event:
                case Resize(columns, rows):
                    await job.resize(columns, rows)
                case Signal(name):
                    await job.signal(name)

    async def downstream() -> Outcome:
        pieces = 0
        async for fd, data in job.output():
            await caller.write(fd, data)
            pieces += 1
            if pieces % SPELL == 0:
                await asyncio.sleep(0)
        return await job.wait()

    beside = _Beside()
    try:
        async with asyncio.timeout(timeout) as scope:
            beside.start(scope, upstream(), control())
            return await downstream()
    except (CallerGone, TimeoutError) as error:
        return _ended_by(beside.error or error, timeout)
    finally:
        try:
            await beside.cancel()
        finally:
            await job.aclose()


def _ended_by(error: BaseException, timeout: float) -> Outcome:
    match error:
        case CallerGone():
            return Outcome(129, Reason.HANGUP, "the caller went away")
        case TimeoutError():
            why = f"timed out after {timeout:g} s; give it more time"
            return Outcome(124, Reason.TIMEOUT, why)
    raise error


class _Beside:
    """Tasks that go on beside what is done in a scope, which ends with the first `error` of theirs."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self._scope: asyncio.Timeout | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, scope: asyncio.Timeout, *work: Coroutine[None, None, None]) -> None:
        self._scope = scope
        self._tasks = [asyncio.create_task(one) for one in work]
        for task in self._tasks:
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and self._scope is not None and not self._scope.expired():
            self.error = error
            self._scope.reschedule(0)
            self._scope = None

    async def cancel(self) -> None:
        """Returns when they have ended."""
        self._scope = None
        going = [task for task in self._tasks if not task.done()]
        for task in going:
            task.cancel()
        if going:
            await asyncio.wait(going)
