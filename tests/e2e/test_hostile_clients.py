"""Clients that go away, at the worst of moments: nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from asyncssh.constants import MSG_CHANNEL_OPEN, MSG_DISCONNECT
from asyncssh.packet import String, UInt32

from tests.e2e.raw_client import (
    MARKS,
    SH,
    Sleeper,
    Talk,
    Wire,
    connected,
    harmless,
    quoted,
    rows,
    say,
    serving,
    sleeper,
    talk,
    until,
    whoami,
)
from tests.e2e.service_lab import HELLO, Service
from tests.kit import Kit, Server

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
    service.create("sh-hostile", SH).ok()
    yield "sh-hostile"
    service.ssh(":delete", "sh-hostile").ok()


# Clients that go away


@pytest.mark.parametrize("way", ["channel", "tcp"])
async def test_a_client_that_leaves_while_its_stdin_is_held_back(
    service: Service, sh: str, way: str
):
    mark = next(MARKS)
    async with Wire(service) as wire, connected(service, port=wire.port) as conn:
        session = await talk(conn, f"{sh} 'echo begun; exec sleep {mark}'")
        await session.until(b"begun")
        session.chan.write(bytes(10 << 20))
        assert await whoami(conn) == "alice"  # what can be sent was sent
        assert session.chan.get_write_buffer_size() > 4 << 20
        asleep = Sleeper(mark)
        await asleep.there()
        if way == "channel":
            session.chan.abort()
            await asleep.gone()
            assert await whoami(conn) == "alice"
        else:
            wire.cut()
            await asleep.gone()


async def test_a_held_session_that_closed_no_longer_counts(door: Service):
    mark = next(MARKS)
    async with connected(door) as conn:
        for _ in range(3):
            session = await talk(conn, quoted(f"exec sleep {mark}"))
            session.chan.write(bytes(4 << 20))
            await whoami(conn)
            session.chan.abort()
        await until(lambda: sleeper(mark) is None)
        await whoami(conn)
        sessions = [await talk(conn, ":create x") for _ in range(SESSIONS)]
        with pytest.raises(asyncssh.ChannelOpenError):
            await talk(conn, ":create x")
        assert len(sessions) == SESSIONS


async def test_stdin_that_was_held_back_is_whole(door: Service):
    data = os.urandom(6 << 20)
    script = "trap 'exec sha256sum' USR1; echo begun; while :; do sleep 1000 & wait; done"
    async with connected(door) as conn:
        session = await talk(conn, quoted(script))
        await session.until(b"begun\n")
        session.chan.write(data)
        session.chan.write_eof()
        await whoami(conn)
        assert session.chan.get_write_buffer_size() > 0
        session.chan.send_signal("USR1")
        assert await session.end() == 0
        assert session.out.split()[1].decode() == hashlib.sha256(data).hexdigest()


class Early(Talk):
    """Sends its stdin, in small packets, before it asks for a command."""

    def connection_made(self, chan: Any) -> None:
        super().connection_made(chan)
        for _ in range(10_000):
            chan.write(b"xy")
        chan.write_eof()


async def test_stdin_in_small_packets_before_the_command(door: Service):
    """That none is kept by itself is seen in tests/ssh/test_session.py."""
    async with connected(door) as conn:
        _, session = await conn.create_session(Early, quoted("exec wc -c"), encoding=None)
        assert await session.end() == 0
        assert session.out.strip() == b"20000"


@pytest.mark.parametrize("cut", [False, True], ids=["channel", "tcp"])
async def test_a_client_that_leaves_at_any_moment_of_a_run(service: Service, sh: str, cut: bool):
    """Each run has an end on record, and none leaves its sandbox."""
    mark = next(MARKS)
    command = f"{sh} 'exec sleep {mark}'"
    for step in range(40):
        async with connected(service) as conn:
            session = await talk(conn, command)
            await asyncio.sleep(step / 2000)
            if cut:
                conn.abort()
            else:
                session.chan.abort()
                assert await whoami(conn) == "alice"
    await until(lambda: rows(service, "select * from runs where ended_at is null") == [])
    await until(lambda: sleeper(mark) is None, 5.0)


async def test_leaving_before_a_session_began_does_not_hold_up_the_shutdown(
    own_service: Service,
):
    """A channel that is opened after the farewell, in the same segment, never comes to be."""
    own_service.settings = {**own_service.settings, "CMDSVC_DRAIN": "100s"}
    own_service.start()
    async with connected(own_service, encryption_algs="aes128-gcm@openssh.com") as conn:
        sock: socket.socket = conn.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        conn.send_packet(MSG_DISCONNECT, UInt32(11), String("bye"), String(""))
        for n in range(3):
            conn.send_packet(
                MSG_CHANNEL_OPEN, String("session"), UInt32(n), UInt32(1 << 20), UInt32(1 << 15)
            )
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
        await conn.wait_closed()
    begun = time.monotonic()
    assert own_service.stop() == 0
    assert time.monotonic() - begun < 50


async def test_what_the_shutdown_cuts_off_is_recorded(own_service: Service):
    own_service.settings = {**own_service.settings, "CMDSVC_DRAIN": "100ms"}
    own_service.start()
    own_service.create("sh", SH).ok()
    mark = next(MARKS)
    async with connected(own_service) as conn:
        sessions = [await talk(conn, quoted(f"echo begun; exec sleep {mark}")) for _ in "123"]
        for session in sessions:
            await session.until(b"begun")
        assert await asyncio.to_thread(own_service.stop) == 0
    assert sleeper(mark) is None
    assert rows(own_service, "select reason, count(*) from runs group by 1") == [("lost", 3)]
    assert "Traceback" not in own_service.log


# Builds and uploads


@pytest.fixture
def slow_door(
    request: pytest.FixtureRequest, kit: Kit, mirror: Server, tmp_path: Path
) -> Iterator[Service]:
    """A package source that answers, and never ends."""
    yield from serving(
        request,
        kit,
        mirror,
        tmp_path,
        CMDSVC_ALPINE_MIRROR=f"{mirror.url}/_hang/main {mirror.url}/_hang/community",
    )


def left(service: Service) -> set[str]:
    """What is in the data folder, but for what is in the layers."""
    found = set()
    for folder, folders, files in os.walk(service.home / "var"):  # what goes meanwhile is no error
        found |= {f"{folder}/{name}" for name in (*folders, *files)}
        folders[:] = [name for name in folders if name != "root"]
    return found


def builders(service: Service) -> int:
    """Package managers that are at work for this server's own mirror."""
    count = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            count += b"add" in words and any(w.endswith(b"apk") for w in words[:1])
    return count


@pytest.mark.parametrize("cut", [False, True], ids=["channel", "tcp"])
async def test_a_client_that_leaves_during_its_build(
    slow_door: Service, mirror: Server, name: str, cut: bool
):
    def asked() -> int:
        return sum(n for path, n in mirror.requests.items() if path.startswith("/_hang/"))

    before, wanted = left(slow_door), asked()
    async with connected(slow_door) as conn:
        session = await talk(conn, f":create {name}")
        session.chan.write(b"#!cmd alpine jq\n#!/bin/sh\ntrue\n")
        session.chan.write_eof()
        await until(lambda: asked() > wanted)
        assert builders(slow_door)
        if cut:
            conn.abort()
        else:
            session.chan.abort()
        await until(lambda: not builders(slow_door), 5.0)
    async with connected(slow_door) as conn:
        assert (await say(conn, ":ls")).out.split(b"\t")[0] == b"sh"
        await until(lambda: left(slow_door) == before, 10.0)


async def test_an_upload_whose_channel_closes_without_its_end(door: Service, name: str):
    async with connected(door) as conn:
        session = await talk(conn, f":create {name}")
        session.chan.write(HELLO)
        await whoami(conn)
        session.chan.abort()
        await whoami(conn)
        assert await (await talk(conn, name)).end() == 127
        session = await talk(conn, f":create {name}")  # nothing of the first one is in the way
        session.chan.write(HELLO)
        session.chan.write_eof()
        assert await session.end() == 0
        assert (await say(conn, name)).out == b"hello\n"
