"""One run in its sandbox, joined to the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import struct
import termios
from collections.abc import AsyncIterator, Awaitable, Callable

from cmdsvc.engine import Agent
from cmdsvc.engine.bubblewrap.stubs import Stub
from cmdsvc.errors import EngineError
from cmdsvc.model import SCRIPT_PATH, Outcome, Reason

MESSAGE = struct.Struct("=ii")
READY, COMPLETE, NOT_EXECUTED, ENDED = range(4)
"""What the launcher says (launch/launch.c)."""
CHUNK = 1 << 18
"""Bytes read at once."""
PIPE = 1 << 20
"""Bytes that a pipe holds, where the kernel grants it (pipe(7))."""
MAX_WORDS = 2000
"""Bytes of bwrap's own complaint that are kept."""
END_OF_FILE = b"\x04"


class BubblewrapJob:
    """See `relay.Job`. Takes over its descriptors, which do not block.

    `said` is what bwrap may complain to. `inputs` is written to, `sources` maps what is read to 1 or
    2. With a terminal there is neither: both become its master, which comes from inside.
    `out_of_memory` tells whether the kernel has killed for want of memory; `release` is
    awaited when the sandbox is to go; it is told whether every process of the program is dead.
    """

    def __init__(
        self,
        stub: Stub,
        said: int,
        inputs: int,
        sources: dict[int, int],
        *,
        terminal: bool,
        program: bytes,
        out_of_memory: Callable[[], bool],
        release: Callable[[bool], Awaitable[None]],
        agent: Agent | None = None,
    ) -> None:
        self._stub = stub
        self._said = said
        self._inputs = inputs
        self._sources = sources
        self._fds = {said, *sources, *(() if terminal else (inputs,))}
        self._terminal = terminal
        self._program = program
        self._out_of_memory = out_of_memory
        self._release = release
        self._agent = agent
        self._loop = asyncio.get_running_loop()
        self._complete = asyncio.Event()
        """The sandbox is there, or will never be."""
        self._done = asyncio.Event()
        self._wake = asyncio.Event()
        self._writable = asyncio.Event()
        self._eof_sent = False
        self._built = False
        self._size: tuple[int, int] | None = None
        self._errno: int | None = None
        self._status: int | None = None
        self._failure: EngineError | None = None
        self._words = b""
        self._closing: asyncio.Future[None] | None = None
        self._loop.add_reader(stub.sock, self._heard)

    @property
    def group(self) -> str:
        """The name of its control groups."""
        return self._stub.group

    async def began(self) -> bool:
        """Whether the sandbox got its task; where it did not, the program was never started."""
        await self._complete.wait()
        return self._built

    async def send(self, data: bytes) -> None:
        if self._terminal:
            await self._complete.wait()
        view = memoryview(data)
        while view and not self._eof_sent and not self._done.is_set():
            try:
                view = view[os.write(self._inputs, view) :]
            except BlockingIOError:
                self._writable.clear()
                self._loop.add_writer(self._inputs, self._writable.set)
                try:
                    await self._writable.wait()
                finally:
                    if self._inputs in self._fds:
                        self._loop.remove_writer(self._inputs)
            except OSError:  # it has closed its stdin
                return

    async def send_eof(self) -> None:
        if self._eof_sent or self._done.is_set():
            return
        if self._terminal:
            await self.send(END_OF_FILE)
            self._eof_sent = True
        else:
            self._eof_sent = True
            self._close(self._inputs)

    async def resize(self, columns: int, rows: int) -> None:
        self._size = (columns, rows)
        if self._terminal and self._built and self._inputs in self._fds:
            set_size(self._inputs, columns, rows)

    async def signal(self, name: str) -> None:
        number = signal.Signals.__members__.get(f"SIG{name}")
        if number is not None and not self._done.is_set():
            # Not read before the program is there: the launcher waits for that first.
            with contextlib.suppress(OSError):
                self._stub.sock.send(struct.pack("=i", number))

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        await self._complete.wait()
        if not self._built:
            self._words = self._left_over()
            return
        while self._sources:
            done = self._done.is_set()
            found = False
            for fd, number in list(self._sources.items()):
                data = self._read(fd)
                if data:
                    found = True
                    yield number, data
                elif data is not None:
                    self._sources.pop(fd, None)
            if self._closing is not None:
                return
            if not found and self._sources:
                # A terminal hands over what was written only when it is closed on the other side.
                if done and not self._terminal:
                    return
                await self._readable()

    async def wait(self) -> Outcome:
        await self._done.wait()
        oom = self._out_of_memory()
        if self._errno is not None:
            return self._not_executed(self._errno)
        if self._status is not None:
            return _outcome(self._status, oom=oom)
        if oom:
            return _outcome(signal.SIGKILL, oom=True)
        if self._failure is not None:
            raise self._failure
        if self._stub.lost:
            raise EngineError("the sandbox was lost", "run it again")
        if self._closing is not None or self._built:
            return _outcome(signal.SIGKILL, oom=False)
        words = (self._words or self._left_over()).decode("utf-8", "replace").strip()
        raise EngineError(
            f"the sandbox could not be made: {words or 'it ended'}",
            "`cmdsvc check` tells what is missing",
        )

    async def aclose(self) -> None:
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._end())
        await asyncio.shield(self._closing)

    async def _end(self) -> None:
        self._stub.kill()
        self._finish()
        for fd in list(self._fds):
            self._close(fd)
        self._sources.clear()
        await self._release(self._status is not None)

    def _heard(self) -> None:
        """A message of the launcher; or of the stub, if it could not become a sandbox.

        It may come from the program, which can make the launcher say anything about this run.
        """
        try:
            # Once there is a program, what is attached is dropped unseen.
            data, fds, _, _ = socket.recv_fds(self._stub.sock, 1 << 12, 0 if self._built else 1)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if data.startswith(b"error ") and not self._built:
            self._failed(data)
        elif data == b"agent" and fds:
            if self._agent is not None:
                self._agent.listen(socket.socket(fileno=fds.pop()))
        elif len(data) == MESSAGE.size:
            what, value = MESSAGE.unpack(data)
            if what == COMPLETE and not self._built:
                self._built = True
                self._close(self._said)
                if self._terminal:
                    self._use_terminal(fds)
                self._complete.set()
            elif what == NOT_EXECUTED and self._errno is None:
                self._errno = value
            elif what == ENDED and self._status is None:
                self._status = value & 0xFFFF
                self._finish()
        else:
            self._finish()

    def _use_terminal(self, fds: list[int]) -> None:
        """The master has come."""
        for fd in fds:
            os.set_inheritable(fd, False)
            os.set_blocking(fd, False)
            self._inputs = fd
            self._fds.add(fd)
            self._sources[fd] = 1
            if self._size is not None:
                set_size(fd, *self._size)

    def _failed(self, data: bytes) -> None:
        try:
            text = str(json.loads(data.removeprefix(b"error "))["text"])
        except (ValueError, KeyError, TypeError):
            text = "it ended"
        self._failure = EngineError(f"the sandbox could not be made: {text}")
        self._finish()

    def _finish(self) -> None:
        """The program has ended: nothing that it may have left behind goes on."""
        if self._done.is_set():
            return
        self._loop.remove_reader(self._stub.sock)
        self._stub.kill()
        self._done.set()
        self._complete.set()
        self._wake.set()
        self._writable.set()

    def _not_executed(self, number: int) -> Outcome:
        name = repr(self._program.decode("utf-8", "replace")[:200])
        if self._program == SCRIPT_PATH:
            name = "its interpreter"
        if number in {errno.ENOENT, errno.ENOTDIR}:
            return Outcome(127, Reason.EXIT, f"{name} is not in the image; add its package")
        why = os.strerror(number)
        return Outcome(126, Reason.EXIT, f"{name} cannot be executed: {why}; see its first lines")

    def _read(self, fd: int) -> bytes | None:
        """What is there, b"" at the end, None if there is nothing yet."""
        if fd not in self._fds:
            return b""
        try:
            return os.read(fd, CHUNK)
        except BlockingIOError:
            return None
        except OSError:  # EIO: a terminal that is closed on the other side
            return b""

    async def _readable(self) -> None:
        """Until something can be read, or the program has ended since it was last asked."""
        self._wake.clear()
        armed = [fd for fd in self._sources if fd in self._fds]
        for fd in armed:
            self._loop.add_reader(fd, self._wake.set)
        try:
            if not self._done.is_set() or self._terminal:
                await self._wake.wait()
        finally:
            for fd in armed:
                if fd in self._fds:
                    self._loop.remove_reader(fd)

    def _left_over(self) -> bytes:
        """What bwrap has said, where there is no program that could have said it."""
        return (self._read(self._said) or b"")[-MAX_WORDS:]

    def _close(self, fd: int) -> None:
        if fd in self._fds:
            self._fds.discard(fd)
            self._loop.remove_reader(fd)
            self._loop.remove_writer(fd)
            os.close(fd)


def _outcome(status: int, *, oom: bool) -> Outcome:
    """Of a wait status."""
    code = os.waitstatus_to_exitcode(status) if not os.WIFSTOPPED(status) else 0
    killed = 128 + signal.SIGKILL
    if oom and code in {-signal.SIGKILL, killed}:
        return Outcome(killed, Reason.MEMORY, "out of memory; let it use less")
    if code < 0:
        return Outcome(128 - code, Reason.SIGNAL)
    return Outcome(code)


def set_size(fd: int, columns: int, rows: int) -> None:
    """Of a terminal, in characters; the kernel tells the foreground processes (SIGWINCH)."""
    size = [min(max(number, 0), 0xFFFF) for number in (rows, columns)]
    with contextlib.suppress(OSError):
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))


def pipe() -> tuple[int, int]:
    """A large pipe: (to read, to write)."""
    ends = os.pipe2(os.O_CLOEXEC)
    with contextlib.suppress(OSError):  # the user has his share (pipe-user-pages-soft)
        fcntl.fcntl(ends[0], fcntl.F_SETPIPE_SZ, PIPE)
    return ends
