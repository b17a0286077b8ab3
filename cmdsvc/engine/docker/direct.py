"""Containers whose first program is the launcher: it comes to a socket of this server's.

What a run reads and writes does not pass the Docker engine then, where each way takes half of a
millisecond. It needs an engine that runs its containers on this machine and sees this server's files;
with any other, runs are handed over through the engine (prepared.py).

The launcher lies where Docker has its own init, the socket beside it: nobody listens there any more,
and the server's file is gone, before a script begins.
"""

from __future__ import annotations

import asyncio
import logging
import platform
import secrets
import select
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cmdsvc.engine import Invocation, Usage, launch
from cmdsvc.engine.docker import sandbox
from cmdsvc.engine.docker.container import Container, untold
from cmdsvc.engine.docker.doors import Door, Doors, mount
from cmdsvc.engine.docker.http import Api
from cmdsvc.engine.docker.janitor import Janitor
from cmdsvc.engine.docker.sandbox import GIVE_TIMEOUT, START_TIMEOUT, EndedError, Shape
from cmdsvc.engine.launch import READY, Handed, LaunchedJob, Task
from cmdsvc.engine.launch.job import KILLED, OUT_OF_MEMORY
from cmdsvc.errors import EngineError
from cmdsvc.model import Outcome, Reason

log = logging.getLogger(__name__)

INIT: Final = "/sbin/docker-init"
"""Where Docker mounts its own init, which such a container has not."""

_PAUSE: Final = 300.0
"""Seconds after a failure until it is tried again."""

_LOOK: Final = 2.0
"""Seconds until a launcher that has not come is looked for."""


class NoDoorError(EngineError):
    """The server has no socket to let a launcher come to."""


class Direct:
    """How they are made; `folder` is for the launcher and the sockets."""

    def __init__(self, folder: Path, host: str, api: Api, janitor: Janitor) -> None:
        self._doors = Doors(folder, host, f"{INIT}.socket", socket.SOCK_SEQPACKET)
        self._launcher = folder / "launch"
        self._api = api
        self._janitor = janitor
        self._possible = self._doors.here and platform.machine() in launch.MACHINES
        self._not_before = 0.0
        self._why = ""

    def open(self) -> None:
        """Removes what a dead server left, and lays the launcher ready. OSError."""
        self._doors.clear()
        if self._possible:
            self._launcher.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._launcher.write_bytes(launch.program().read_bytes())
            self._launcher.chmod(0o111)  # which closes its /proc/1 from its first instruction on

    def suits(self, shape: Shape) -> bool:
        """Whether to try it: another runtime may be a machine of its own."""
        return self._possible and shape.runtime is None and time.monotonic() >= self._not_before

    def give_up(self, error: EngineError) -> None:
        """For a while: it failed with `error` where the other way did not."""
        self._not_before = time.monotonic() + _PAUSE
        if str(error) != self._why:
            log.info("runs are handed over through the Docker engine: %s", error)
            self._why = str(error)

    @contextmanager
    def door(self) -> Iterator[Door]:
        """For one container."""
        try:
            door = self._doors.make(secrets.token_hex(8))
        except OSError as error:
            raise NoDoorError(f"a socket cannot be made: {error}") from error
        door.listener.setblocking(False)
        try:
            yield door
        finally:
            door.close()

    def description(
        self,
        shape: Shape,
        labels: Mapping[str, str],
        cpus: float,
        door: Door,
        mounts: Sequence[Mapping[str, Any]],
    ) -> Mapping[str, Any]:
        """See `sandbox.description`."""
        mounts = [*mounts, mount(self._launcher, INIT), door.mount]
        return sandbox.launched(shape, labels, cpus, [INIT, door.target], mounts)

    async def start(self, container: str, door: Door, shape: Shape) -> Launched:
        """Starts it; returns when it can be handed a run."""
        await self._api.call("POST", f"/containers/{container}/start", timeout=START_TIMEOUT)
        async with _patience(START_TIMEOUT):
            sock = await self._came(container, door)
            try:
                said = await asyncio.get_running_loop().sock_recv(sock, len(READY) + 1)
            except BaseException:
                sock.close()
                raise
        if said != READY:
            sock.close()
            raise _ended()
        return Launched(shape, container, sock, self._api, self._janitor)

    async def _came(self, container: str, door: Door) -> socket.socket:
        loop = asyncio.get_running_loop()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    return (await loop.sock_accept(door.listener))[0]
            if not (await Container(self._api, container).state())["Running"]:
                raise _ended()


@dataclass(frozen=True, slots=True, eq=False)
class Launched:
    """A container that is complete but for its run; see `warm.Member`."""

    kind: Shape
    container: str
    sock: socket.socket
    api: Api
    janitor: Janitor

    @property
    def alive(self) -> bool:
        """A launcher that waits says nothing."""
        ended = select.poll()
        ended.register(self.sock, select.POLLIN)
        return not ended.poll(0)

    async def begin(self, invocation: Invocation, closed: Callable[[DirectJob], None]) -> DirectJob:
        """Hands the run over; what fails is put away. EndedError where nothing has begun."""
        task = Task(invocation.argv, invocation.env, invocation.script, invocation.terminal)
        try:
            handed = launch.hand_over(self.sock, task)
        except BaseException as error:
            await self.aclose()
            if isinstance(error, ConnectionError):
                raise _ended() from error
            if isinstance(error, OSError):
                raise EngineError(f"the sandbox could not be started: {error}") from error
            raise
        job = DirectJob(self, handed, task, closed)
        try:
            async with _patience(GIVE_TIMEOUT):
                began = await job.began()
        except BaseException:
            await job.aclose()
            raise
        if not began:
            await job.aclose()
            raise _ended()
        return job

    async def aclose(self) -> None:
        """It is removed in the background."""
        self.janitor.discard(self.container, self.sock.close)


class DirectJob(LaunchedJob):
    def __init__(
        self,
        launched: Launched,
        handed: Handed,
        task: Task,
        closed: Callable[[DirectJob], None],
    ) -> None:
        super().__init__(
            launched.sock, handed, terminal=task.terminal is not None, program=task.program[0]
        )
        self._launched = launched
        self._container = Container(launched.api, launched.container)
        self._closed = closed
        self._killed = False

    @property
    def container(self) -> str:
        return self._container.id

    async def signal(self, name: str) -> None:
        self._killed = self._killed or name == "KILL"
        await super().signal(name)

    async def usage(self) -> Usage | None:
        """None where it has ended, or the engine does not tell."""
        return None if self._done.is_set() else await self._container.usage()

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        return self._launched.janitor.spawn(work)

    def _kill(self) -> None:
        """The launcher leaves, and all the rest with it.

        Not where its program has ended: a container that is torn down would have the processor
        before the caller has the end.
        """
        if self._status is None:
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)

    async def _out_of_memory(self) -> bool:
        return not self._killed and await self._container.out_of_memory()

    async def _untold(self) -> Outcome:
        if self._closing is not None:
            return Outcome(KILLED, Reason.SIGNAL, "killed")
        if await self._container.status(killed=self._killed) != KILLED:
            raise untold()
        if await self._out_of_memory():
            return OUT_OF_MEMORY
        return Outcome(KILLED, Reason.SIGNAL)

    async def _release(self) -> None:
        try:
            if self._status is None and not self._container.gone:
                await self._container.kill()
        finally:
            self._closed(self)
            await self._launched.aclose()


@asynccontextmanager
async def _patience(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except OSError as error:
        why = str(error) or f"it does not answer within {seconds:g} s"
        raise EngineError(f"the sandbox could not be started: {why}", "try again") from error


def _ended() -> EndedError:
    return EndedError("the sandbox ended before its run began", "try again")
