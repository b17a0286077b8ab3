"""A run in its container: as the first program there, or handed to one that waited for it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from signal import Signals
from typing import Final

from cmdsvc.engine import Usage
from cmdsvc.engine.docker.attached import Attached
from cmdsvc.engine.docker.container import Container, untold
from cmdsvc.engine.docker.http import Api, ApiError
from cmdsvc.engine.docker.janitor import Janitor
from cmdsvc.engine.docker.sandbox import Handed, resize
from cmdsvc.engine.docker.waiter import GROUP, Trailer
from cmdsvc.engine.launch.job import KILLED, OUT_OF_MEMORY
from cmdsvc.model import Outcome, Reason

_PASSED_ON: Final = frozenset(
    {"ALRM", "HUP", "INT", "KILL", "PIPE", "QUIT", "TERM", "USR1", "USR2"}
)
"""Signals that the container's init passes on to the program's process group."""

_DEADLY: Final = frozenset({"ABRT", "FPE", "ILL", "SEGV"})
"""The others of RFC 4254 section 6.10: the kernel drops them for an init, so they are sent inside."""

_END_OF_FILE: Final = b"\x04"
"""A terminal's VEOF, ^D."""

_NUMBERS: Final = frozenset(int(number) for number in Signals)


class DockerJob:
    """Implements `cmdsvc.relay.Job`, for a container whose only business is the run."""

    _find = "whom=-1;"
    """Shell text that sets `whom` to what kill(1) takes for the program and what it began."""

    def __init__(
        self, api: Api, janitor: Janitor, attached: Attached, closed: Callable[[DockerJob], None]
    ) -> None:
        self._api = api
        self._janitor = janitor
        self._attached = attached
        self._container = Container(api, attached.container)
        self._closed = closed
        self._in_line = False
        self._killed = False
        self._outcome: Outcome | None = None
        self._closing: asyncio.Task[None] | None = None

    @property
    def container(self) -> str:
        return self._container.id

    async def send(self, data: bytes) -> None:
        if data and not self._over:
            self._in_line = not data.endswith((b"\n", b"\r"))
            await self._attached.write(data)

    async def send_eof(self) -> None:
        if self._over:
            return
        if self._attached.terminal:
            # As typed: closing the stream would end the output too. In a line the first one only
            # hands over what was typed of it.
            await self._attached.write(_END_OF_FILE * (2 if self._in_line else 1))
        else:
            self._attached.write_eof()

    async def resize(self, columns: int, rows: int) -> None:
        if self._attached.terminal and not self._over:
            with suppress(ApiError):  # it has just ended
                await resize(self._api, self.container, columns, rows)

    async def signal(self, name: str) -> None:
        if self._over:
            return
        with suppress(ApiError):  # it has just ended
            if name in _PASSED_ON:
                self._killed = self._killed or name == "KILL"
                await self._container.call("kill", signal=name)
            elif name in _DEADLY:
                await self._signal_inside(name)

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        while piece := await self._attached.next():
            if piece[0] in (1, 2):
                yield piece
        self._attached.close()  # lets go whoever waits for the program to read

    async def wait(self) -> Outcome:
        if self._outcome is None:
            self._outcome = await self._conclude()
        return self._outcome

    async def usage(self) -> Usage | None:
        """None where it has ended, or the engine does not tell."""
        return None if self._over else await self._container.usage()

    async def aclose(self) -> None:
        if self._closing is None:
            self._closing = self._janitor.spawn(self._close())
        await asyncio.shield(self._closing)

    @property
    def _status(self) -> int | None:
        """The program's, where that is known before the container's end."""
        return None

    @property
    def _over(self) -> bool:
        return self._closing is not None or self._container.gone or self._status is not None

    async def _close(self) -> None:
        try:
            if self._status is None and not self._container.gone:
                await self._container.kill()
        finally:
            self._attached.close()
            self._closed(self)
            self._janitor.discard(self.container)

    async def _conclude(self) -> Outcome:
        if self._closing is not None and self._status is None:
            return Outcome(KILLED, Reason.SIGNAL, "killed")
        status = self._status
        if status is None:
            status = await self._ended()
        if status == KILLED and not self._killed and await self._container.out_of_memory():
            return OUT_OF_MEMORY
        reason = Reason.SIGNAL if status - 128 in _NUMBERS else Reason.EXIT
        return Outcome(status, reason)

    async def _ended(self) -> int:
        """The container's own status."""
        return await self._container.status(killed=self._killed)

    async def _signal_inside(self, name: str) -> None:
        """Where the image has a shell."""
        script = f"{self._find} kill -s {name} -- $whom"
        made = await self._api.call(
            "POST",
            f"/containers/{self.container}/exec",
            body={"Cmd": ["/bin/sh", "-c", script]},
        )
        await self._api.call("POST", f"/exec/{made['Id']}/start", body={"Detach": True})


class HandedJob(DockerJob):
    """For a container that waited for its run: that program's end is told by the waiter."""

    _find = f'read -r group <{GROUP} && whom="-$group" &&'

    def __init__(
        self, api: Api, janitor: Janitor, handed: Handed, closed: Callable[[DockerJob], None]
    ) -> None:
        super().__init__(api, janitor, handed.attached, closed)
        self._ahead = handed.ahead
        streams = (1,) if handed.attached.terminal else (1, 2)
        self._trailers = {fd: Trailer(handed.nonce) for fd in streams}

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        ahead = deque(self._ahead)
        while self._status is None:
            piece = ahead.popleft() if ahead else await self._attached.next()
            if piece is None:
                break
            fd, data = piece
            if fd in self._trailers and (data := self._trailers[fd].feed(data)):
                yield fd, data
        for fd, trailer in self._trailers.items():
            if data := trailer.rest():
                yield fd, data
        self._attached.close()  # lets go whoever waits for the program to read

    async def _ended(self) -> int:
        """The container's own status, where a kill took the waiter's word."""
        status = await super()._ended()
        if status != KILLED and self._closing is None:
            raise untold()
        return status

    @property
    def _status(self) -> int | None:
        """Told once on every stream, for they are not in step."""
        if any(trailer.status is None for trailer in self._trailers.values()):
            return None
        return self._trailers[1].status
