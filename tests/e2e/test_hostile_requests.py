"""Requests as no ordinary client makes them: none harms another session."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator

import asyncssh
import pytest
from asyncssh.packet import Boolean, String, UInt32

from tests.e2e.raw_client import (
    SH,
    Talk,
    connected,
    harmless,
    quoted,
    talk,
    whoami,
)
from tests.e2e.service_lab import PATIENCE, Service

pytestmark = pytest.mark.any_engine

SESSIONS = 256
"""Of one connection."""


@pytest.fixture(autouse=True)
async def unharmed(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:
        if "door" in request.fixturenames:
            await stack.enter_async_context(harmless(request.getfixturevalue("door")))
        yield


@pytest.fixture
def sh(service: Service) -> Iterator[str]:
    """A command that runs its first argument, on each engine."""
    service.create("sh-requests", SH).ok()
    yield "sh-requests"
    service.ssh(":delete", "sh-requests").ok()


# What a session may ask for


async def test_a_second_command_on_a_channel_is_refused(door: Service):
    async with connected(door) as conn:
        session = await talk(conn, quoted("echo one; read -r line; echo $line"))
        await session.until(b"one")
        session.request(b"exec", String("sh 'echo two'"))
        session.request(b"shell")
        session.request(b"subsystem", String("sftp"))
        session.chan.write(b"three\n")
        assert await session.end() == 0
        assert session.out == b"one\nthree\n"


async def test_a_nul_in_the_command(door: Service):
    async with connected(door) as conn:
        await (await talk(conn, "sh 'a\0b'")).failed(64, "NUL")


async def test_long_commands_are_split_at_once(door: Service):
    """What fits into a packet, in the shapes that cost most; the others do not notice."""
    size = 250_000
    async with connected(door) as conn, connected(door, "bob") as other:
        begun = time.monotonic()
        for words in ("a" * size, "a " * (size // 2), "\\a" * (size // 2), "''" * (size // 2)):
            session = await talk(conn, f"no-such-command {words}")
            await session.failed(127, "no-such-command")
        for words in ('"' * (size - 1), "'" + "a" * size, "a\\"):
            await (await talk(conn, f"no-such-command {words}")).failed(64, "split")
        assert await whoami(other) == "bob"
        assert time.monotonic() - begun < 10


@pytest.mark.parametrize(
    "words", ["--x " * 60_000, "-j " * 60_000, "-" + "j" * 200_000, "a " * 9999]
)
async def test_many_words_for_a_builtin_are_refused_at_once(door: Service, words: str):
    async with connected(door) as conn:
        await (await talk(conn, f":ls {words}")).failed(64, "too many words")


@pytest.mark.parametrize("size", [100_000, 140_000, 250_000])
async def test_an_argument_of_any_size_that_fits_into_a_packet(
    service: Service, sh: str, size: int
):
    """Linux takes arguments of up to 128 KB (execve(2))."""
    async with connected(service) as conn:
        session = await talk(conn, f"{sh} 'echo ${{#2}}' {'a' * size}")
        if size < 1 << 17:
            assert await session.end() == 0
            assert session.out.split() == [b"%d" % size]
        else:
            await session.failed(126, "Argument list too long")


def test_a_command_of_a_megabyte_is_refused(door: Service):
    done = subprocess.run(
        [*door.command_line(), "sh", "true", *["a" * 100_000] * 10],
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    # The refusal may be lost when the connection is cut while the client still sends.
    assert (done.returncode, done.stdout) == (255, b"")
    assert len(done.stderr.splitlines()) <= 1, done.stderr
    door.ssh(":whoami").ok()


async def test_odd_environments(service: Service, sh: str):
    env = {
        b"LC_A=B": b"1",
        b"LC_\0": b"2",
        b"LC_C": b"3\0",
        b"": b"4",
        b"=": b"5",
        b"LC_\xff": b"\xfe",
        b"LC_OK": b"a\nb",
        b"LD_PRELOAD": b"/x",
        b"LC_" + b"n" * 1000: b"6",
        **{b"X%d" % n: b"y" for n in range(3000)},
    }
    async with connected(service) as conn:
        session = await talk(conn, f"{sh} 'env | od -An -c | tr -d \" \\n\"'", env=env)
        assert await session.end() == 0, session.err
        seen = session.out.decode()
        assert "LC_OK=a\\nb" in seen
        for never in ("LC_A", "LC_C", "LD_PRELOAD", "=5", "X1"):
            assert never not in seen
        assert await whoami(conn) == "alice"


async def test_environment_by_the_megabyte_ends_its_connection_alone(door: Service):
    async with connected(door) as conn, connected(door, "bob") as other:
        session = await talk(conn, quoted("exec sleep 1000"))
        for n in range(100):
            session.request(b"env", String(b"K%d" % n), String(bytes(100_000)))
        await session.end()
        await conn.wait_closed()
        assert await whoami(other) == "bob"


@pytest.mark.parametrize(
    ("term", "seen"),
    [
        ("xterm", b"xterm"),
        ("a\nb", b"dumb"),
        ("x" * 10_000, b"dumb"),
        ("../../etc/passwd", b"dumb"),
    ],
)
async def test_odd_terminals(service: Service, sh: str, term: str, seen: bytes):
    async with connected(service) as conn:
        session = await talk(
            conn,
            f"{sh} 'stty size; echo \"<$TERM>\"'",
            request_pty=True,
            term_type=term,
            term_size=(0, 4294967295, 0, 0),
        )
        assert await session.end() == 0
        # stty takes what is above 30,000 for no size.
        assert bytes(session.out) == b"24 80\r\n<" + seen + b">\r\n"


async def test_a_terminal_with_a_name_that_is_not_ascii_harms_no_other_connection(door: Service):
    async with connected(door) as conn, connected(door, "bob") as other:
        with contextlib.suppress(asyncssh.Error):
            await talk(conn, quoted("true"), request_pty=True, term_type="\xfc")
        assert await whoami(other) == "bob"


async def test_thousands_of_resizes_and_signals(service: Service, sh: str):
    script = (
        "echo begun; while read -r line; do [ $line = end ] && break; done; "
        "until stty size | grep -x '\\''33 77'\\''; do :; done"
    )
    async with connected(service) as conn:
        session = await talk(conn, f"{sh} '{script}'", request_pty=True, term_type="vt100")
        await session.until(b"begun")
        for n in range(3000):
            session.chan.change_terminal_size(n * 7919 % 2**32, 0)
            session.chan.change_terminal_size(4294967295, 4294967295, 4294967295, 4294967295)
            for name in ("NONSENSE", "WINCH", "", "x" * 100, "../x", "0", "-9", "SIGKILL", "\xfc"):
                session.request(b"signal", String(name))
            if n % 100 == 0:
                await asyncio.sleep(0)
        session.chan.change_terminal_size(77, 33)
        assert await whoami(conn) == "alice"
        session.chan.write(b"end\n")
        assert await session.end() == 0
        assert session.out.endswith(b"33 77\r\n"), session.out


async def test_what_the_service_does_not_offer_is_refused(door: Service):
    async with connected(door) as conn:
        with pytest.raises(asyncssh.Error):
            await conn.start_sftp_client()
        with pytest.raises(asyncssh.ChannelOpenError):
            await conn.open_connection("127.0.0.1", door.port)
        with pytest.raises(asyncssh.ChannelOpenError):
            await conn.open_unix_connection("/run/docker.sock")
        with pytest.raises(asyncssh.ChannelOpenError):
            await conn.open_tun()
        with pytest.raises(asyncssh.ChannelListenError):
            await conn.forward_remote_port("127.0.0.1", 0, "127.0.0.1", 1)
        with pytest.raises(asyncssh.ChannelListenError):
            await conn.forward_remote_path("/tmp/x", "/tmp/y")
        session = await talk(conn, quoted("read -r line; env"))
        x11 = (Boolean(False), String("MIT-MAGIC-COOKIE-1"), String("00" * 16), UInt32(0))
        assert not await session.chan._make_request(b"x11-req", *x11)
        assert not await session.chan._make_request(b"nonsense@example.com")
        session.chan.write_eof()
        assert await session.end() == 0
        assert b"DISPLAY" not in session.out
        assert b"SSH_AUTH_SOCK" not in session.out


# How many


async def test_sessions_of_a_connection_are_bounded_and_freed(door: Service):
    async with connected(door) as conn:
        for _ in range(3):
            tried = await asyncio.gather(
                *(talk(conn, f":create s{n}") for n in range(300)), return_exceptions=True
            )
            sessions = [s for s in tried if isinstance(s, Talk)]
            assert len(sessions) == SESSIONS
            assert all(isinstance(s, Talk | asyncssh.ChannelOpenError) for s in tried)
            async with connected(door, "bob") as other:
                assert await whoami(other) == "bob"
            for session in sessions:
                session.chan.abort()
            await session.end()


def test_twenty_sessions_at_once_over_one_connection(door: Service):
    master = ("-o", f"ControlPath={door.home}/mux")
    first = subprocess.Popen([*door.command_line(*master, "-M", "-N")], stderr=subprocess.PIPE)
    try:
        while not (door.home / "mux").exists():
            assert first.poll() is None
        script = 'read -r line; echo "$1 $line" >&2; head -c 100000 /dev/zero; exit "$1"'
        clients = [
            door.popen("sh", script.replace("$1", str(n)), options=master) for n in range(20)
        ]
        for n, client in enumerate(clients):
            out, err = client.communicate(b"%d\n" % (n * n), PATIENCE)
            assert (len(out), err, client.returncode) == (100_000, b"%d %d\n" % (n, n * n), n)
    finally:
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=PATIENCE)


async def test_output_asked_for_byte_by_byte_costs_nobody_else(door: Service):
    async with connected(door) as conn, connected(door, "bob") as other:
        script = "head -c 1000000 /dev/zero; exec sleep 1000"
        session = await talk(conn, quoted(script), max_pktsize=1)
        async with asyncio.timeout(10):
            await conn.wait_closed()
            assert await whoami(other) == "bob"
        assert session.received < 100_000
