"""One run in its sandbox, joined to the event loop: its streams are pipes, its end is told by a socket."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import signal
import socket
import struct
import termios
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine, Sequence

from cmdsvc.engine.launch.task import Handed
from cmdsvc.model import SCRIPT_PATH, Outcome, Reason

_MESSAGE = struct.Struct("=ii")
_READY, _COMPLETE, _NOT_EXECUTED, _ENDED = range(4)
"""What the launcher says (launch.c)."""
READY = _MESSAGE.pack(_READY, 0)
"""What it says when it can be given a task."""
_MAX_MESSAGE = 1 << 12
_CHUNK = 1 << 18
"""Bytes read at once."""
_END_OF_FILE = b"\x04"
KILLED = 128 + signal.SIGKILL
"""As an exit status."""
OUT_OF_MEMORY = Outcome(KILLED, Reason.MEMORY, "out of memory; let it use less")


class LaunchedJob(ABC):
    """See `relay.Job`. `sock` is the launcher's, which was given its task.

    Takes over the descriptors of `handed`, but not the socket. `program` is the first of its words.
    """

    def __init__(
        self, sock: socket.socket, handed: Handed, *, terminal: bool, program: bytes
    ) -> None:
        self._sock = sock
        self._inputs = handed.inputs
        self._sources = dict(handed.sources)
        self._fds = {*self._sources, *(() if terminal else (handed.inputs,))}
        self._armed: set[int] = set()
        """Of those that the event loop has looked at."""
        self._terminal = terminal
        self._program = program
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
        self._outcome: Outcome | None = None
        self._closing: asyncio.Task[None] | None = None
        self._loop.add_reader(sock.fileno(), self._heard)

    @abstractmethod
    def _kill(self) -> None:
        """Ends what may still go on in the sandbox."""

    @abstractmethod
    async def _out_of_memory(self) -> bool:
        """Whether the kernel has killed for want of memory: asked of a program that was killed."""

    @abstractmethod
    async def _untold(self) -> Outcome:
        """How a run ended whose launcher did not tell. EngineError."""

    @abstractmethod
    async def _release(self) -> None:
        """Called once, when the sandbox is to go."""

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """A task that goes on when the caller has left."""
        return asyncio.ensure_future(work)

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
                self._armed.add(self._inputs)
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
            await self.send(_END_OF_FILE)
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
                self._sock.send(struct.pack("=i", number))

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        await self._complete.wait()
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
        if self._outcome is None:
            self._outcome = await self._conclude()
        return self._outcome

    async def _conclude(self) -> Outcome:
        if self._errno is not None:
            return self._not_executed(self._errno)
        if self._status is None:
            return await self._untold()
        outcome = _outcome(self._status)
        if outcome.exit_status == KILLED and await self._out_of_memory():
            return OUT_OF_MEMORY
        return outcome

    async def aclose(self) -> None:
        """Where the launcher has told that all is dead, only the second call waits for the rest."""
        if self._closing is None:
            self._closing = self._spawn(self._end())
            if self._status is not None:
                return
        await asyncio.shield(self._closing)

    async def _end(self) -> None:
        self._kill()
        self._finish()
        for fd in list(self._fds):
            self._close(fd)
        self._sources.clear()
        await self._release()

    def _heard(self) -> None:
        """A message of the launcher.

        It may come from the program, which can make the launcher say anything about this run.
        """
        try:
            # Once there is a program, what is attached is dropped unseen.
            data, fds, _, _ = socket.recv_fds(self._sock, _MAX_MESSAGE, 0 if self._built else 1)
        except (BlockingIOError, ConnectionResetError):
            return  # a reset is told before what was said, and before the end
        except OSError:
            data, fds = b"", []
        if len(data) != _MESSAGE.size:
            self._heard_else(data, fds)
            return
        what, value = _MESSAGE.unpack(data)
        if what == _COMPLETE and not self._built:
            self._begin(fds)
        elif what == _NOT_EXECUTED and self._errno is None:
            self._errno = value
        elif what == _ENDED and self._status is None:
            self._status = value & 0xFFFF
            self._finish()

    def _begin(self, fds: Sequence[int]) -> None:
        """The program is about to be started."""
        self._built = True
        if self._terminal:
            self._use_terminal(fds)
        self._complete.set()

    def _heard_else(self, data: bytes, fds: Sequence[int]) -> None:
        """Something that the launcher does not say, or the end of all messages."""
        del data
        for fd in fds:
            os.close(fd)
        self._finish()

    def _use_terminal(self, fds: Sequence[int]) -> None:
        """The master has come."""
        for fd in fds:
            os.set_inheritable(fd, False)
            os.set_blocking(fd, False)
            self._inputs = fd
            self._fds.add(fd)
            self._sources[fd] = 1
            if self._size is not None:
                set_size(fd, *self._size)

    def _finish(self) -> None:
        """The program has ended: nothing that it may have left behind goes on."""
        if self._done.is_set():
            return
        self._loop.remove_reader(self._sock.fileno())
        self._kill()
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
            return os.read(fd, _CHUNK)
        except BlockingIOError:
            return None
        except OSError:  # EIO: a terminal that is closed on the other side
            return b""

    async def _readable(self) -> None:
        """Until something can be read, or the program has ended since it was last asked."""
        self._wake.clear()
        armed = [fd for fd in self._sources if fd in self._fds]
        self._armed.update(armed)
        for fd in armed:
            self._loop.add_reader(fd, self._wake.set)
        try:
            if not self._done.is_set() or self._terminal:
                await self._wake.wait()
        finally:
            for fd in armed:
                if fd in self._fds:
                    self._loop.remove_reader(fd)

    def _close(self, fd: int) -> None:
        if fd in self._fds:
            self._fds.discard(fd)
            if fd in self._armed:  # to ask the loop in vain is slow
                self._loop.remove_reader(fd)
                self._loop.remove_writer(fd)
            os.close(fd)


def _outcome(status: int) -> Outcome:
    """Of a wait status."""
    code = os.waitstatus_to_exitcode(status) if not os.WIFSTOPPED(status) else 0
    return Outcome(128 - code, Reason.SIGNAL) if code < 0 else Outcome(code)


def set_size(fd: int, columns: int, rows: int) -> None:
    """Of a terminal, in characters; the kernel tells the foreground processes (SIGWINCH)."""
    size = [min(max(number, 0), 0xFFFF) for number in (rows, columns)]
    with contextlib.suppress(OSError):
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
