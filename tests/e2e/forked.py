"""`python -m MODULE` without its imports: a process that has done them forks itself for each call.

What runs is the module's file as ever, with its own arguments, environment, folder and streams;
only that what it imports is there already. A second's processor time each, hundreds of times.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO

CHECKOUT = Path(__file__).parents[2]
MODULES = (
    "cmdsvc.app",
    "cmdsvc.backup",
    "cmdsvc.check",
    "cmdsvc.cli",
    "cmdsvc.engine.bubblewrap",
    "cmdsvc.engine.docker",
    "cmdsvc.log",
    "cmdsvc.store.postgres",
    "cmdsvc.store.sql",
    "cmdsvc.store.sqlite",
    "sqlalchemy.dialects.postgresql.asyncpg",
    "sqlalchemy.dialects.sqlite.aiosqlite",
    "uvicorn.lifespan.off",
)
"""What a server or a command imports sooner or later."""
PATIENCE = 60.0
"""Seconds that a child may take on a busy machine; nothing waits for it to pass."""
SIZE = struct.Struct("!I")
STATUS = struct.Struct("!i")


class Forked:
    """A call that goes on: what is used here of a subprocess.Popen."""

    def __init__(self, reply: socket.socket, stdout: IO[bytes] | None) -> None:
        self._reply = reply
        data, (self._fd,), _, _ = socket.recv_fds(reply, STATUS.size, 1)
        (self.pid,) = STATUS.unpack(data)
        self.stdout = stdout
        self.returncode: int | None = None

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status; negative is the signal's number."""
        if self.returncode is None:
            if not select.select([self._reply], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            (self.returncode,) = STATUS.unpack(self._reply.recv(STATUS.size))
            self._reply.close()
            os.close(self._fd)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def popen(words: list[str], env: Mapping[str, str], cwd: Path, stderr: IO[bytes]) -> Forked:
    """Starts a call whose stdout is read from a pipe."""
    reading, writing = os.pipe()
    try:
        with Path(os.devnull).open("rb") as stdin:
            reply = _ask(words, env, cwd, [stdin.fileno(), writing, stderr.fileno()])
    finally:
        os.close(writing)
    return Forked(reply, os.fdopen(reading, "rb"))


def run(
    words: list[str], env: Mapping[str, str], cwd: Path, stdin: bytes, timeout: float
) -> tuple[int, bytes, bytes]:
    """A call to its end: its exit status, and what it wrote to both."""
    file = tempfile.TemporaryFile
    with file() as given, file() as out, file() as err:
        given.write(stdin)
        given.seek(0)
        call = Forked(_ask(words, env, cwd, [f.fileno() for f in (given, out, err)]), None)
        try:
            status = call.wait(timeout)
        finally:
            call.kill()
            call.wait()
        out.seek(0)
        err.seek(0)
        return status, out.read(), err.read()


async def child(*words: str | Path) -> tuple[int, bytes, bytes]:
    """A call to its end, with this process's environment, from the checkout."""
    line = [*map(str, words)]
    return await asyncio.to_thread(run, line, os.environ, CHECKOUT, b"", PATIENCE)


_asking = threading.Lock()


def _ask(words: list[str], env: Mapping[str, str], cwd: Path, fds: list[int]) -> socket.socket:
    data = json.dumps([words, dict(env), str(cwd)]).encode()
    mine, its = socket.socketpair()
    with its, _asking:
        control = _ready()
        socket.send_fds(control, [SIZE.pack(len(data))], [*fds, its.fileno()])
        control.sendall(data)
    return mine


@functools.cache
def _ready() -> socket.socket:
    """To the process that forks itself; it ends with this one."""
    mine, its = socket.socketpair()
    with its:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(its.fileno())],
            pass_fds=[its.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd=CHECKOUT,
        )

    def end() -> None:
        mine.close()
        process.terminate()
        process.wait()

    atexit.register(end)
    return mine


def _serve(control: socket.socket) -> str:
    """Returns in a process that is to be `python -m` this module; otherwise not before the end."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no parent waits for the keepers
    while True:
        size, fds, _, _ = socket.recv_fds(control, SIZE.size, 4)
        if not size:
            sys.exit()
        data = bytearray()
        while len(data) < SIZE.unpack(size)[0]:
            data += control.recv(1 << 16)
        if os.fork() == 0:
            break
        for fd in fds:
            os.close(fd)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    control.close()
    *streams, reply = fds
    if pid := os.fork():
        _keep(pid, streams, reply)
    os.close(reply)
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
        os.close(fd)
    (module, *words), env, cwd = json.loads(data)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = [module, *words]
    return str(module)


def _keep(pid: int, streams: list[int], reply: int) -> None:
    """Says when the call ended, and how; it has none of its streams meanwhile."""
    for fd in streams:
        os.close(fd)
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_RDWR), 2)
    with socket.socket(fileno=reply) as sock, contextlib.suppress(BrokenPipeError):
        handle = os.pidfd_open(pid)
        socket.send_fds(sock, [STATUS.pack(pid)], [handle])
        sock.sendall(STATUS.pack(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
    os._exit(0)


if __name__ == "__main__":
    for name in MODULES:
        importlib.import_module(name)
    gc.freeze()
    module = _serve(socket.socket(fileno=int(sys.argv[1])))
    runpy.run_module(module, run_name="__main__", alter_sys=True)
