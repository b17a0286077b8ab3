"""A caller's SSH agent, reached from inside his run (OpenSSH's PROTOCOL, section 2.3).

Each connection that a process of the run makes becomes a channel that the server opens to the
client. On the server's side there is nothing to connect to.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import asyncssh

from cmdsvc.relay import CallerGone
from cmdsvc.ssh.link import Link

log = logging.getLogger("cmdsvc.ssh")

CHANNELS_MAX = 32
"""Open to one client at the same time, in all of its runs; who connects beyond is hung up on."""
WINDOW = 64 << 10
"""Bytes that the client may send on one before the run has taken any."""
CHUNK = 16 << 10


class ForwardedAgent:
    """See `engine.Agent`. `say` shows the caller a line."""

    def __init__(self, link: Link, say: Callable[[str], Awaitable[None]]) -> None:
        self._link = link
        self._say = say
        self._tasks: set[asyncio.Task[None]] = set()

    def listen(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._start(self._accept(sock))

    def refuse(self, why: str) -> None:
        self._start(self._tell(f"no agent forwarding: {why}"))

    async def aclose(self) -> None:
        """The run is over: ends what it had."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _tell(self, text: str) -> None:
        with contextlib.suppress(CallerGone):
            await self._say(text)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                try:
                    conn, _ = await loop.sock_accept(listener)
                except OSError as error:
                    log.warning("an agent cannot be reached any more: %s", error)
                    return
                if len(self._link.agent_channels) < CHANNELS_MAX:
                    self._start(self._serve(conn, _Channel(self._link)))
                else:
                    conn.close()
                await asyncio.sleep(0)  # who connects without end is not alone here

    async def _serve(self, conn: socket.socket, channel: _Channel) -> None:
        """One connection, until the agent ends it."""
        asking: asyncio.Task[None] | None = None
        writer: asyncio.StreamWriter | None = None
        try:
            reader, writer = await asyncio.open_unix_connection(sock=conn)
            asking = self._start(_ask(reader, channel))
            async for data in channel.received():
                writer.write(data)
                await writer.drain()
        except OSError:  # the process has gone
            pass
        finally:
            channel.abort()
            if asking is not None:
                asking.cancel()
            if writer is not None:
                writer.close()


async def _ask(reader: asyncio.StreamReader, channel: _Channel) -> None:
    with contextlib.suppress(OSError):  # either side has gone
        await channel.opened()
        while data := await reader.read(CHUNK):
            await channel.write(data)
        channel.write_eof()


class _Channel(asyncssh.SSHUNIXSession[bytes]):
    """To the client's agent; opens from the start. It counts until the client has closed it too."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._chan: asyncssh.SSHUNIXChannel[bytes] | None = None
        self._unwanted = False
        self._ended = False
        self._unread = bytearray()
        self._open = asyncio.Event()
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        keeping = asyncio.create_task(self._keep())
        link.agent_channels.add(keeping)
        keeping.add_done_callback(link.agent_channels.discard)

    async def _keep(self) -> None:
        try:
            chan = self._link.create_agent_channel(WINDOW)
            await chan.open(lambda: self)
            if self._unwanted:
                chan.abort()
            await chan.wait_closed()
        except asyncssh.Error as error:  # it has no agent, after all
            log.debug("no channel to an agent: %s", error)
        finally:
            self._end()

    async def opened(self) -> None:
        """Waits for the client. ConnectionError where it refuses."""
        await self._open.wait()
        if self._ended:
            raise ConnectionResetError

    async def received(self) -> AsyncIterator[bytes]:
        while True:
            while self._unread:
                data = bytes(self._unread)
                self._unread.clear()
                if self._chan is not None:
                    self._link.release(self._chan)
                yield data
            if self._ended:
                return
            self._wake.clear()
            await self._wake.wait()

    async def write(self, data: bytes) -> None:
        """Waits for room. OSError where it is closed."""
        await self._link.writable()
        await self._room.wait()
        if self._chan is None:
            raise ConnectionResetError
        self._chan.write(data)

    def write_eof(self) -> None:
        if self._chan is not None:
            self._chan.write_eof()

    def abort(self) -> None:
        """Closes it, now or as soon as it is open."""
        self._unwanted = True
        if self._chan is not None:
            self._link.release(self._chan)
            self._chan.abort()

    def _end(self) -> None:
        self._ended = True
        for event in (self._open, self._wake, self._room):
            event.set()

    # What asyncssh calls.

    def connection_made(self, chan: asyncssh.SSHUNIXChannel[bytes]) -> None:
        self._chan = chan
        chan.resume_reading()  # see Session.connection_made
        self._open.set()

    def data_received(self, data: bytes, datatype: int | None) -> None:
        del datatype
        self._unread += data
        self._wake.set()
        if len(self._unread) > CHUNK and self._chan is not None:
            self._link.hold(self._chan)

    def eof_received(self) -> bool:
        self._end()
        return True

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self._chan is not None:
            self._link.release(self._chan)
            self._chan = None
        self._end()
