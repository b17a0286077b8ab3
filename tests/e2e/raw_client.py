"""A client that does what no ordinary one does: asyncssh, driven packet by packet."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import os
import shlex
import socket
import sqlite3
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Self

import asyncssh
import pytest
from asyncssh.constants import MSG_CHANNEL_REQUEST
from asyncssh.packet import Boolean, String

from tests.e2e.service_lab import PATIENCE, WARM, Service
from tests.kit import Kit, Server

NO_LIMIT = 2**32 - 1
"""A window that lets the server send 4 GB without asking again."""

SH = '#!cmd alpine\n#!/bin/sh\neval "$1"\n'
AT_HAND = 8 + 5 * WARM
"""Descriptors more or fewer that a server has for sandboxes which wait for runs, in the making or
made."""
MARKS = map(str, itertools.count(10_000_000 + os.getpid() % 100_000 * 1000))
"""Numbers of seconds that nothing else sleeps for."""


def serving(
    request: pytest.FixtureRequest, kit: Kit, mirror: Server, home: Path, **settings: str
) -> Iterator[Service]:
    """A running server on the embedded engine, with a command `sh`; in the end it left no trace."""
    engines = request.config.getoption("--engine")
    if engines and "bubblewrap" not in engines:
        pytest.skip("of the door, whatever the engine: tried on bubblewrap")
    home.chmod(0o700)
    service = Service(
        home,
        {
            "CMDSVC_ENGINE": "bubblewrap",
            "CMDSVC_BASE_ALPINE": str(kit.base),
            "CMDSVC_APK_KEYS": str(kit.keys),
            "CMDSVC_ALPINE_MIRROR": f"{mirror.url}/main {mirror.url}/community",
            "CMDSVC_DISK": "64M",
            **settings,
        },
    )
    service.add_user("alice")
    service.add_user("bob")
    service.start()
    try:
        service.create("sh", SH).ok()
        yield service
    finally:
        if service.process is not None:
            assert service.stop() == 0, service.log
    assert "Traceback" not in service.log, service.log
    assert rows(service, "select * from runs where ended_at is null") == []


def rows(service: Service, query: str) -> list[tuple[Any, ...]]:
    database = sqlite3.connect(f"file:{service.home}/var/cmdsvc.db?mode=ro", uri=True)
    try:
        return database.execute(query).fetchall()
    finally:
        database.close()


def descriptors(service: Service) -> int:
    assert service.process is not None
    return sum(1 for _ in Path(f"/proc/{service.process.pid}/fd").iterdir())


def threads(service: Service) -> int:
    assert service.process is not None
    return sum(1 for _ in Path(f"/proc/{service.process.pid}/task").iterdir())


def memory(service: Service, what: str) -> float:
    """The server's own, in MB: VmRSS is now, VmHWM the peak."""
    assert service.process is not None
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith(f"{what}:")]
    return int(line.split()[1]) / 1024


@contextlib.contextmanager
def peak_below(service: Service, growth: float) -> Iterator[None]:
    """At no time in this block does the server take `growth` MB more than at its beginning."""
    assert service.process is not None
    before = memory(service, "VmRSS")
    Path(f"/proc/{service.process.pid}/clear_refs").write_text("5")  # the peak is now: proc(5)
    yield
    grown = memory(service, "VmHWM") - before
    print(f"peak memory grew by {grown:.1f} MB")
    assert grown < growth


async def until(true: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """For what the machine does not tell of by itself."""
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 - of other processes
            await asyncio.sleep(0.01)


def quoted(script: str) -> str:
    """The exec string that has `sh` run this."""
    return f"sh {shlex.quote(script)}"


class Talk(asyncssh.SSHClientSession[bytes]):
    """One session: what came, and how it ended."""

    def __init__(self) -> None:
        self.out = bytearray()
        self.err = bytearray()
        self.received = 0
        self.digest = hashlib.sha256()
        self.chan: Any = None
        self.closed = asyncio.Event()
        self._news = asyncio.Event()

    def connection_made(self, chan: Any) -> None:
        self.chan = chan

    def data_received(self, data: bytes, datatype: int | None) -> None:
        kept = self.out if datatype is None else self.err
        if len(kept) < 1 << 20:
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
                assert not self.closed.is_set(), (bytes(self.out[:200]), bytes(self.err))
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
        assert await self.end() == status, bytes(self.err)
        line = self.err.decode()
        assert line.startswith("cmdsvc: "), line
        assert line.count("\n") == 1, line
        for word in words:
            assert word in line


def options(service: Service, user: str = "alice", **more: Any) -> dict[str, Any]:
    return {
        "host": "127.0.0.1",
        "port": service.port,
        "username": user,
        "client_keys": [str(service.key(user))],
        "known_hosts": None,
        "config": None,
        "agent_path": None,
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
    """The same, with an empty stdin, to the end."""
    session = await talk(conn, command, **more)
    session.chan.write_eof()
    await session.end()
    return session


async def whoami(conn: asyncssh.SSHClientConnection) -> str:
    """Whom the service takes this connection for: it has taken all that was sent before, too."""
    session = await say(conn, ":whoami")
    return session.out.decode().split("\t")[0]


@contextlib.asynccontextmanager
async def harmless(service: Service) -> AsyncIterator[None]:
    """After this block the server is as before: it serves, holds no more, has had no fault."""
    async with connected(service) as conn:
        await whoami(conn)
        before, said = descriptors(service), len(service.log)
        yield
        assert await whoami(conn) == "alice"
        await until(lambda: descriptors(service) <= before + AT_HAND)
    assert "Traceback" not in service.log[said:], service.log[said:]
    await until(lambda: rows(service, "select * from runs where ended_at is null") == [])


def deaf(conn: Any) -> None:
    """From now on the client takes what comes, and heeds none of it."""
    conn.data_received = lambda data, datatype=None: None


@contextlib.contextmanager
def together(conn: Any) -> Iterator[None]:
    """What the client sends in this block is written at its end, in one piece."""
    pieces: list[bytes] = []
    conn._send = pieces.append
    try:
        yield
    finally:
        del conn._send
        conn._send(b"".join(pieces))


class Wire:
    """A TCP relay to the service that can stop taking what the service sends."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._open = asyncio.Event()
        self._open.set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def block(self) -> None:
        """Nothing of the service's is taken any more."""
        self._open.clear()

    def unblock(self) -> None:
        self._open.set()

    def cut(self) -> None:
        """Resets every connection."""
        for task in self._tasks:
            task.cancel()
        for writer in self._writers:
            sock = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):  # closed already
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, here = await asyncio.open_connection("127.0.0.1", self._service.port)
        self._writers |= {writer, here}
        always = asyncio.Event()
        always.set()
        for source, target, gate in ((reader, here, always), (there, writer, self._open)):
            self._tasks.add(asyncio.create_task(self._pass(source, target, gate)))

    async def _pass(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, gate: asyncio.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 18):
                await gate.wait()
                target.write(data)
                await target.drain()
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


class Sleeper:
    """The process in a sandbox that runs `sleep MARK`, of which the test wants to see the end."""

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._fd = -1

    async def there(self) -> None:
        await until(lambda: sleeper(self._mark) is not None)
        self._fd = os.pidfd_open(sleeper(self._mark) or 0)

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
