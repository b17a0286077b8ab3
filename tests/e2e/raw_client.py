"""A client that does what no ordinary one does: asyncssh, driven packet by packet."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncssh
from asyncssh.constants import MSG_CHANNEL_REQUEST
from asyncssh.packet import Boolean, String

from tests.e2e.service_lab import PATIENCE, Service

NO_LIMIT = 2**32 - 1
"""A window that lets the server send 4 GB without asking again."""


class Talk(asyncssh.SSHClientSession[bytes]):
    """One session: what came, and how it ended."""

    def __init__(self) -> None:
        self.out = bytearray()
        self.err = bytearray()
        self.received = 0
        self.digest = hashlib.sha256()
        self.keep = 1 << 20
        self.chan: Any = None
        self._news = asyncio.Event()
        self.closed = asyncio.Event()

    def connection_made(self, chan: Any) -> None:
        self.chan = chan

    def data_received(self, data: bytes, datatype: int | None) -> None:
        kept = self.out if datatype is None else self.err
        if len(kept) < self.keep:
            kept += data
        self.received += len(data)
        self.digest.update(data)
        self._news.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()
        self._news.set()

    async def until(self, text: bytes) -> None:
        """Waits until the script has written `text` to stdout."""
        async with asyncio.timeout(PATIENCE):
            while text not in self.out:
                assert not self.closed.is_set(), (self.out[:200], self.err)
                self._news.clear()
                await self._news.wait()

    async def end(self) -> int | None:
        """The exit status; None where the service sent none."""
        async with asyncio.timeout(PATIENCE):
            await self.closed.wait()
        status: int | None = self.chan.get_exit_status()
        return status

    def request(self, kind: bytes, *payload: bytes) -> None:
        """A channel request that wants no answer."""
        self.chan.send_packet(MSG_CHANNEL_REQUEST, String(kind), Boolean(False), *payload)

    async def failed(self, status: int, *words: str) -> None:
        """It ended so, and said why in one line of the service's that has all these words."""
        assert await self.end() == status, self.err
        line = self.err.decode()
        assert line.startswith("cmdsvc: "), line
        assert line.count("\n") == 1, line
        for word in words:
            assert word in line


class Peer(asyncssh.SSHClient):
    """Notes why its connection ended."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()
        self.why: Exception | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        self.why = exc
        self.lost.set()


def options(service: Service, user: str = "alice", **more: Any) -> dict[str, Any]:
    return {
        "host": "127.0.0.1",
        "port": service.port,
        "username": user,
        "client_keys": [str(service.key(user))],
        "known_hosts": None,
        "config": None,
        "agent_path": None,
        "keepalive_interval": 0,
        **more,
    }


@contextlib.asynccontextmanager
async def connected(
    service: Service, user: str = "alice", **more: Any
) -> AsyncIterator[asyncssh.SSHClientConnection]:
    """A logged-in connection, which is cut at the end, whatever goes on in it."""
    conn = await asyncssh.connect(**options(service, user, **more))
    try:
        yield conn
    finally:
        conn.abort()
        await conn.wait_closed()


async def talk(conn: asyncssh.SSHClientConnection, command: str | None = None, **more: Any) -> Talk:
    """A session in which `command` was asked for (a shell without one)."""
    _, session = await conn.create_session(Talk, command, encoding=None, **more)
    return session


async def say(conn: asyncssh.SSHClientConnection, command: str, **more: Any) -> Talk:
    """The same, ended on our side and waited for."""
    session = await talk(conn, command, **more)
    session.chan.write_eof()
    await session.end()
    return session


class Wire:
    """A TCP relay to the service that can stop passing on what the service sends."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open = asyncio.Event()
        self._open.set()
        self._up = asyncio.Event()
        self._up.set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Wire:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def block(self) -> None:
        """Nothing of the service's is taken any more."""
        self._open.clear()

    def unblock(self) -> None:
        self._open.set()

    def hold(self) -> None:
        """Nothing is sent to the service any more; it goes out in one piece with `release`."""
        self._up.clear()

    def release(self) -> None:
        self._up.set()

    def cut(self) -> None:
        """Resets every connection."""
        for task in self._tasks:
            task.cancel()
        for writer in self._writers:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, here = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers |= {writer, here}
        for source, target, gate in ((reader, here, self._up), (there, writer, self._open)):
            self._tasks.add(asyncio.create_task(self._pass(source, target, gate)))

    async def _pass(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, gate: asyncio.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while True:
                await gate.wait()
                data = await source.read(1 << 18)
                held = bytearray(data)
                while not gate.is_set():  # what came meanwhile waits, and goes along
                    await gate.wait()
                    if data:
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout(0.05):
                                held += await source.read(1 << 18)
                target.write(held)
                await target.drain()
                if not data:
                    break
        target.close()


def sleeper(mark: str) -> int | None:
    """The process on this machine that runs `sleep MARK`."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[:2] == [b"sleep", mark.encode()]:
            return int(path.parent.name)
    return None


class Sandboxed:
    """A process in a sandbox, of which the test wants to see the end."""

    def __init__(self, mark: str) -> None:
        pid = sleeper(mark)
        assert pid is not None, f"nothing runs sleep {mark}"
        self._fd = os.pidfd_open(pid)

    async def gone(self, seconds: float = 1.0) -> None:
        """It ends within `seconds`."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(self._fd, ended.set)
        try:
            async with asyncio.timeout(seconds):
                await ended.wait()
        finally:
            loop.remove_reader(self._fd)
            os.close(self._fd)


def marks() -> Iterator[str]:
    """Numbers of seconds that nothing else sleeps for."""
    number = 10_000_000 + (os.getpid() % 100_000) * 1000
    while True:
        number += 1
        yield str(number)


MARKS = marks()
