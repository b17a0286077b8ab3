"""The server's side of the spawner: prepared stubs, taken one for each sandbox."""

from __future__ import annotations

import asyncio
import collections
import itertools
import json
import logging
import secrets
import socket
import subprocess
import sys
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmdsvc.engine.bubblewrap.cgroups import Cgroups
from cmdsvc.engine.bubblewrap.stub import MAX_MESSAGE, START_TIMEOUT, Stub, answer, error_of
from cmdsvc.errors import EngineError
from cmdsvc.model import Limits

log = logging.getLogger(__name__)

SPAWNER = Path(__file__).with_name("spawner.py")
REFILL_DELAY = 0.05
"""Seconds; bench/run.py has a run in a third less with it, on two processors."""
LOW = 1
"""Stubs below which there is no waiting."""
PREPARED = 2
"""Stubs kept ready. One takes some 30 ms to make, most of it waiting for the kernel to move it into
its control groups, and about 1 MB."""
BYTES_PER_INODE = 4096
"""Of a sandbox's file system: an inode costs about as much memory as a page of content."""
AT_ONCE = 8
"""Stubs that are made at the same time; more would be slower for all, and overflow the socket."""
STOP_TIMEOUT = 20.0
"""Seconds."""
USERS = 65536


@dataclass(frozen=True, slots=True)
class Place:
    """Where stubs find things, and as whom they run.

    `uid` is None where the server has no root: then they run as the server's own user.
    """

    uid: int | None
    folder: str
    upper: str
    store: str
    bwrap: str
    binds: Mapping[str, str]


class Stubs:
    """Starts the spawner and keeps stubs ready. `take` one, `put_away` every one that was taken."""

    def __init__(self, place: Place, cgroups: Cgroups | None, limits: Limits) -> None:
        self.place = place
        self.cgroups = cgroups
        self.limits = limits
        self._numbers = itertools.count(1)
        self._series = secrets.token_hex(4)
        self._stubs: dict[int, Stub] = {}
        self._ready: collections.deque[Stub] = collections.deque()
        self._coming = 0
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._started: asyncio.Future[None] | None = None
        self._closing = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def ready(self) -> int:
        """How many wait to be taken."""
        return len(self._ready)

    async def open(self) -> None:
        """Starts the spawner. EngineError if it cannot do its work on this machine."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        config = {
            "fd": theirs.fileno(),
            "place": self.place.folder,
            "uid": self.place.uid,
            "users": USERS,
            "binds": dict(self.place.binds),
            "upper": self.place.upper,
            "cgroups": [str(path) for path in self.cgroups.parents] if self.cgroups else [],
        }
        command = [sys.executable, "-I", "-S", str(SPAWNER), json.dumps(config)]
        loop = asyncio.get_running_loop()
        with theirs:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - fork and exec, no wait
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={},
                start_new_session=True,
            )
        ours.setblocking(False)
        self._control = ours
        self._started = loop.create_future()
        loop.add_reader(ours, self._heard)
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await self._started
        except BaseException as error:
            await self.aclose()
            if isinstance(error, TimeoutError):
                raise EngineError("the spawner does not start", "see the server's log") from error
            raise
        self._closing = False
        self._refill()

    async def aclose(self) -> None:
        """Ends every sandbox and the spawner. Repeatable."""
        self._closing = True
        self._refill()  # ends the timer
        while self._ready:
            await self.put_away(self._ready.popleft())
        control, self._control = self._control, None
        if control is not None:
            asyncio.get_running_loop().remove_reader(control)
            control.close()
        process, self._process = self._process, None
        if process is not None:
            await asyncio.to_thread(_wait, process)
        for stub in list(self._stubs.values()):
            stub.gone.set()
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def take(self) -> Stub:
        """A stub with the default limits. EngineError if none can be made."""
        while self._ready:
            stub = self._ready.popleft()
            if not stub.gone.is_set():
                self._refill_later()
                return stub
            await self.put_away(stub)
        return await self.make(self.limits)

    async def make(self, limits: Limits) -> Stub:
        """A new stub, which takes some time. EngineError if it cannot be made."""
        async with self._turn:
            return await self._make(limits)

    async def _make(self, limits: Limits) -> Stub:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        number = next(self._numbers)
        stub = Stub(number, f"{self._series}-{number}", limits, ours)
        request = {
            "op": "stub",
            "id": stub.number,
            "group": stub.group,
            "values": self.cgroups.values(limits) if self.cgroups else [],
            "disk": limits.disk,
            "inodes": inodes(limits.disk),
        }
        self._stubs[stub.number] = stub
        try:
            try:
                self._ask(request, theirs)
            except EngineError:
                stub.gone.set()
                raise
            [stub.pidfd] = await answer(ours)
        except BaseException:
            stub.sock.close()
            self.background(self.put_away(stub))
            raise
        return stub

    async def put_away(self, stub: Stub) -> None:
        """Ends `stub`: its processes are dead on return; its groups are removed in the background."""
        stub.kill()
        stub.sock.close()
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await stub.gone.wait()
        except TimeoutError:
            log.error("sandbox %d does not end", stub.number)  # noqa: TRY400 - nothing to trace
        stub.close()
        if self._stubs.pop(stub.number, None) is not None and self.cgroups is not None:
            self.background(self.cgroups.remove(stub.group))

    async def users(self) -> int:
        """A descriptor of a user namespace that maps USERS users."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            self._ask({"op": "users"}, theirs)
            fds = await answer(ours)
        return fds[0]

    def _refill_later(self) -> None:
        """Lets the run that took a stub have the processor first, while others are left."""
        if len(self._ready) < LOW:
            self._refill()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(REFILL_DELAY, self._refill)

    def _refill(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._closing and len(self._ready) + self._coming < PREPARED:
            self._coming += 1
            self.background(self._one_more())

    async def _one_more(self) -> None:
        try:
            stub = await self.make(self.limits)
        except EngineError as error:
            log.warning("no sandbox could be prepared: %s", error)
            return
        finally:
            self._coming -= 1
        if self._closing:
            await self.put_away(stub)
            return
        self._ready.append(stub)
        self._refill()

    def _ask(self, request: Mapping[str, object], sock: socket.socket) -> None:
        with sock:
            if self._control is None:
                raise EngineError("the engine is closed")
            try:
                socket.send_fds(self._control, [json.dumps(request).encode()], [sock.fileno()])
            except OSError as error:
                raise EngineError("no sandbox can be made now", f"{error}") from error

    def _heard(self) -> None:
        """What the spawner says."""
        assert self._control is not None  # noqa: S101 - the reader is removed with it
        assert self._started is not None  # noqa: S101
        while True:
            try:
                data = self._control.recv(MAX_MESSAGE)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._lost()
                return
            if data.startswith(b"error "):
                if not self._started.done():
                    self._started.set_exception(error_of(data))
                continue
            message = json.loads(data)
            if "gone" in message:
                if stub := self._stubs.get(message["gone"]):
                    stub.gone.set()
            elif not self._started.done():
                self._started.set_result(None)

    def _lost(self) -> None:
        """The spawner has ended, and everything with it."""
        assert self._control is not None  # noqa: S101
        assert self._started is not None  # noqa: S101
        asyncio.get_running_loop().remove_reader(self._control)
        self._control.close()
        self._control = None
        if not self._started.done():
            self._started.set_exception(EngineError("the spawner ended at its start"))
        elif not self._closing:
            log.error("the spawner has ended")
        for stub in self._stubs.values():
            stub.lost = True
            stub.gone.set()

    async def settled(self) -> None:
        """Waits for what goes on in the background now."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    @property
    def alive(self) -> bool:
        return self._control is not None

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Does `work`, which `aclose` waits for."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def inodes(disk: int) -> int:
    return max(1024, disk // BYTES_PER_INODE)


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
