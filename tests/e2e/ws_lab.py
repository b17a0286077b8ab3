"""A client of WebSockets that is not ours, and a bare socket for what no client does."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import quote

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from tests.e2e.http_lab import Web
from tests.e2e.service_lab import PATIENCE

V1 = Subprotocol("cmdsvc.v1")


@dataclass
class Talk:
    """One WebSocket of cmdsvc.v1, from its beginning to its end."""

    ws: ClientConnection
    out: bytearray = field(default_factory=bytearray)
    err: bytearray = field(default_factory=bytearray)
    exit: dict[str, Any] | None = None

    async def eof(self) -> Self:
        return await self.say(type="eof")

    async def say(self, **control: Any) -> Self:
        await self.ws.send(json.dumps(control))
        return self

    async def next(self) -> None:
        message = await self.ws.recv()
        if isinstance(message, str):
            assert self.exit is None
            self.exit = json.loads(message)
        else:
            assert self.exit is None
            {1: self.out, 2: self.err}[message[0]].extend(message[1:])

    async def until(self, text: bytes) -> None:
        async with asyncio.timeout(PATIENCE):
            while text not in self.out:
                await self.next()

    async def end(self) -> int:
        """The code that it was closed with."""
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await self.next()
            await self.ws.wait_closed()
        assert self.ws.close_code is not None
        return self.ws.close_code


def address(web: Web, script: str, command: str = "sh", query: str = "") -> str:
    path = f"/run/{web.user}/{command}/{quote(script, safe='')}"
    return f"ws{web.service.url.removeprefix('http')}{path}" + (f"?{query}" if query else "")


@contextlib.asynccontextmanager
async def opened(
    web: Web, script: str, command: str = "sh", query: str = "", **more: Any
) -> AsyncIterator[ClientConnection]:
    more = {"additional_headers": web.bearer(), "ping_interval": None, **more}
    url = address(web, script, command, query)
    async with connect(url, open_timeout=PATIENCE, proxy=None, **more) as ws:
        yield ws


@contextlib.asynccontextmanager
async def talking(web: Web, script: str, query: str = "", **more: Any) -> AsyncIterator[Talk]:
    async with opened(web, script, query=query, subprotocols=[V1], **more) as ws:
        assert ws.subprotocol == V1
        yield Talk(ws)


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, masked: bool = True) -> bytes:
    size = len(payload)
    head = bytes([fin << 7 | opcode])
    mark = masked << 7
    if size < 126:
        head += bytes([mark | size])
    elif size < 1 << 16:
        head += bytes([mark | 126]) + struct.pack("!H", size)
    else:
        head += bytes([mark | 127]) + struct.pack("!Q", size)
    return head + (bytes(4) if masked else b"") + payload


def upgrade(web: Web, script: str, *lines: str, query: str = "", method: str = "GET") -> bytes:
    key = base64.b64encode(os.urandom(16)).decode()
    return web.head(
        script,
        "Connection: keep-alive, Upgrade",
        "Upgrade: WebSocket",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
        *lines,
        query=query,
        method=method,
    )


@contextlib.contextmanager
def bare(
    web: Web, script: str, *lines: str, query: str = "", window: int = 0
) -> Iterator[socket.socket]:
    """After the handshake; `window`: bytes that its kernel takes without its reading them."""
    with web.socket() as sock:
        if window:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        sock.sendall(upgrade(web, script, *lines, query=query))
        head = b""
        while b"\r\n\r\n" not in head:
            head += sock.recv(1)
        assert head.startswith(b"HTTP/1.1 101 "), head
        yield sock


def closing(data: bytes) -> tuple[int, str]:
    """The code and the reason of the Close frame that `data`, all that a server sent, ends with."""
    at = 0
    while at < len(data):
        opcode, size = data[at] & 15, data[at + 1]
        at += 2
        if size == 126:
            size, at = int.from_bytes(data[at : at + 2]), at + 2
        elif size == 127:
            size, at = int.from_bytes(data[at : at + 8]), at + 8
        if opcode == 8:
            assert at + size == len(data)
            return int.from_bytes(data[at : at + 2]), data[at + 2 :].decode()
        at += size
    return 1006, ""
