"""What clients make the server keep: memory, descriptors, threads."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asyncssh.constants import MSG_GLOBAL_REQUEST
from asyncssh.packet import Boolean, String

from tests.e2e.raw_client import (
    AT_HAND,
    MARKS,
    NO_LIMIT,
    SH,
    Sleeper,
    Talk,
    Wire,
    connected,
    deaf,
    descriptors,
    memory,
    peak_below,
    quoted,
    say,
    sleeper,
    talk,
    threads,
    together,
    until,
    whoami,
)
from tests.e2e.service_lab import PATIENCE, Service

MUCH = 128 << 20
ZEROS = f"echo begun; exec head -c {MUCH} /dev/zero"


def zeros() -> str:
    """The digest of what ZEROS prints."""
    digest = hashlib.sha256(b"begun\n")
    for _ in range(MUCH >> 20):
        digest.update(bytes(1 << 20))
    return digest.hexdigest()


@pytest.fixture
def sh(service: Service) -> Iterator[str]:
    """A command that runs its first argument, on each engine."""
    service.create("sh-memory", SH).ok()
    yield "sh-memory"
    service.ssh(":delete", "sh-memory").ok()


async def others(service: Service, command: str, *conns: Any) -> None:
    """Sessions of others go on as if nothing were."""
    for conn in conns:
        data = os.urandom(100_000)
        session = await talk(conn, f"{command} 'exec sha256sum'")
        session.chan.write(data)
        session.chan.write_eof()
        assert await session.end() == 0
        assert session.out.split()[0].decode() == hashlib.sha256(data).hexdigest()


@pytest.mark.slow
async def test_a_session_that_does_not_read_128_mb(service: Service, sh: str):
    """Others on its connection and elsewhere do not notice; then it reads, and gets every byte."""
    async with connected(service) as conn, connected(service) as elsewhere:
        with peak_below(service, 32):
            session = await talk(conn, f"{sh} '{ZEROS}'")
            await session.until(b"begun\n")
            session.chan.pause_reading()
            for _ in range(5):
                await others(service, sh, conn, elsewhere)
            assert not session.closed.is_set()
            session.chan.resume_reading()
            assert await session.end() == 0
        assert session.received == MUCH + len(b"begun\n")
        assert session.digest.hexdigest() == zeros()


@pytest.mark.slow
async def test_a_connection_that_claims_room_and_does_not_read(service: Service, sh: str):
    async with (
        Wire(service) as wire,
        connected(service, port=wire.port) as conn,
        connected(service) as elsewhere,
    ):
        with peak_below(service, 32):
            session = await talk(conn, f"{sh} '{ZEROS}'", window=NO_LIMIT)
            await session.until(b"begun\n")
            wire.block()
            for _ in range(5):
                await others(service, sh, elsewhere)
            bulk = await say(elsewhere, f"{sh} '{ZEROS}'")
            assert bulk.digest.hexdigest() == zeros()
            wire.unblock()
            assert await session.end() == 0
        assert session.digest.hexdigest() == zeros()


async def test_a_client_that_does_not_finish_a_key_exchange(door: Service):
    async with connected(door) as conn, connected(door, "bob") as elsewhere:
        with peak_below(door, 32):
            session = await talk(conn, quoted(f"read -r line; {ZEROS}"), window=NO_LIMIT)
            session.chan.write(b"go\n")
            conn._send_kexinit()
            deaf(conn)
            assert (await say(elsewhere, ":whoami")).out.startswith(b"bob")
            async with connected(door) as third:
                bulk = await say(third, quoted(ZEROS))
                assert bulk.received > MUCH


@pytest.mark.slow
async def test_a_client_that_asks_and_does_not_listen(door: Service):
    """A quarter of a million questions whose answers nobody takes: 10 MB of them."""
    async with (
        Wire(door) as wire,
        connected(door, port=wire.port) as conn,
        connected(door, "bob") as elsewhere,
    ):
        wire.block()
        with peak_below(door, 6):
            for n in range(250):
                with together(conn):
                    for _ in range(1000):
                        conn.send_packet(
                            MSG_GLOBAL_REQUEST, String("keepalive@openssh.com"), Boolean(True)
                        )
                if n % 50 == 0:
                    assert await whoami(elsewhere) == "bob"
                await asyncio.sleep(0)
            async with connected(door) as third:
                bulk = await say(third, quoted(ZEROS))
                assert bulk.received > MUCH


async def test_environment_by_the_hundred_megabytes(door: Service):
    async with connected(door) as conn:
        with peak_below(door, 16):
            session = await talk(conn, quoted("exec sleep 1000"))
            for n in range(1000):
                session.request(b"env", String(b"K%d" % n), String(bytes(100_000)))
                await asyncio.sleep(0)
            await session.end()


@pytest.mark.slow
def test_128_mb_in_and_out(service: Service, sh: str, tmp_path: Path):
    """With the real client, every byte; half of it through each direction at the same time."""
    source = tmp_path / "source"
    digest = hashlib.sha256()
    with source.open("wb") as file:
        for n in range(MUCH >> 20):
            part = n.to_bytes(4, "big") * (1 << 18)
            digest.update(part)
            file.write(part)
    with peak_below(service, 32), source.open("rb") as stdin:
        client = subprocess.Popen(
            [*service.command_line(), f"{sh} 'exec cat'"], stdin=stdin, stdout=subprocess.PIPE
        )
        assert client.stdout is not None
        with client.stdout:
            back = hashlib.file_digest(client.stdout, "sha256")  # type: ignore[arg-type]
        assert client.wait(PATIENCE) == 0
    assert back.hexdigest() == digest.hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGCONT, signal.SIGKILL])
async def test_a_client_that_is_stopped(service: Service, sh: str, end: signal.Signals):
    """Stopped in mid-stream, it costs nothing; continued it gets all, killed it leaves nothing."""
    mark = next(MARKS)
    script = f"sleep {mark} & {ZEROS}"
    client = subprocess.Popen(  # noqa: ASYNC220 - it does not wait
        [*service.command_line(), f"{sh} '{script}'"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert client.stdout is not None
    try:
        with peak_below(service, 32):
            assert await asyncio.to_thread(client.stdout.readline) == b"begun\n"
            client.send_signal(signal.SIGSTOP)
            asleep = Sleeper(mark)
            await asleep.there()
            async with connected(service) as elsewhere:
                bulk = await say(elsewhere, f"{sh} '{ZEROS}'")
                assert bulk.received > MUCH
            client.send_signal(end)
            if end is signal.SIGCONT:
                rest = await asyncio.to_thread(hashlib.file_digest, client.stdout, "sha256")
                whole = hashlib.sha256()
                for _ in range(MUCH >> 20):
                    whole.update(bytes(1 << 20))
                assert rest.hexdigest() == whole.hexdigest()
                assert client.wait(PATIENCE) == 0
                await asleep.gone()
            else:
                await asleep.gone()
    finally:
        client.kill()
        client.communicate()


@pytest.mark.slow
async def test_hundreds_of_runs_over_one_connection(door: Service):
    """Memory, descriptors and threads are after 600 runs what they were after 200."""
    async with connected(door) as conn:

        async def runs(count: int) -> None:
            for _ in range(count // 10):
                said = await asyncio.gather(*(say(conn, quoted("echo hi")) for _ in range(10)))
                assert all(session.out == b"hi\n" for session in said)

        await runs(200)
        await whoami(conn)
        before = memory(door, "VmRSS"), descriptors(door), threads(door)
        await runs(400)
        await whoami(conn)
        grown = memory(door, "VmRSS") - before[0]
        print(f"400 runs: {grown:.1f} MB")
        assert grown < 4
        await until(lambda: descriptors(door) <= before[1] + AT_HAND, 10.0)
        # asyncio's own pool of threads is filled as it is used (ThreadPoolExecutor).
        assert threads(door) <= before[2] + min(32, (os.cpu_count() or 1) + 4)


async def test_connections_and_sessions_that_end_badly_leave_nothing(door: Service):
    """Hundreds of connections, each cut in the middle of something else."""

    async def each(n: int) -> None:
        async with connected(door) as conn:
            session: Talk | None = None
            if n % 4 == 0:
                session = await talk(conn, quoted("cat"))
                session.chan.write(bytes(1 << 20))
            elif n % 4 == 1:
                await talk(conn, ":create x")
            elif n % 4 == 2:
                await talk(conn, quoted("exec yes"), request_pty=True, term_type="vt100")
            else:
                await talk(conn, quoted(f"exec sleep {mark}"))
            if n % 3 == 0 and session is not None:
                session.chan.abort()

    mark = next(MARKS)
    for n in range(40):
        await each(n)
    await until(lambda: sleeper(mark) is None)
    before = memory(door, "VmRSS"), descriptors(door)
    for n in range(200):
        await each(n)
    await until(lambda: sleeper(mark) is None)
    await until(lambda: descriptors(door) <= before[1] + AT_HAND, 10.0)
    grown = memory(door, "VmRSS") - before[0]
    print(f"200 connections cut: {grown:.1f} MB")
    assert grown < 20
