"""Takes connections, as many as are good for the service."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Collection

from cmdsvc.web.certificate import Certificate

log = logging.getLogger("cmdsvc.http")

HANDSHAKE_TIME = 10.0
"""Seconds for a TLS handshake."""
PAUSE = 0.5
"""Seconds until the next try where none could be taken: there are no descriptors left."""

_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\n"
    b"connection: close\r\ncontent-length: 0\r\n\r\n"
)
_OPTIONS = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),  # a reply is more than one write
    # Who has vanished without a word is found out within a minute.
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)


class Listener:
    """`held` says the address of each connection's other end; `most` may be, half of one address.

    Of those that `many` is true of, proxies, there may be as many as there is room for.
    """

    def __init__(
        self,
        sock: socket.socket,
        make: Callable[[], asyncio.Protocol],
        held: Callable[[], Collection[str]],
        *,
        most: int,
        many: Callable[[str], bool],
        certificate: Certificate | None,
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._make = make
        self._held = held
        self._most = most
        self._many = many
        self._certificate = certificate
        self._greeting: dict[asyncio.Task[None], str] = {}
        """Connections that are none yet."""
        self._accepting: asyncio.Task[None] | None = None
        self.refused = 0
        """How many were too many, since the start."""

    def start(self) -> None:
        self._accepting = asyncio.create_task(self._accept())

    async def stop(self) -> None:
        """Takes no more, and hangs up on who is not through with the handshake."""
        tasks = [*filter(None, [self._accepting]), *self._greeting]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._sock.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(0)  # what waits to be taken must not keep others from their turn
            try:
                sock, address = await loop.sock_accept(self._sock)
            except OSError as error:
                log.warning("no connection could be taken: %s", error)
                await asyncio.sleep(PAUSE)
                continue
            if self._too_many(address[0]):
                self.refused += 1
                self._refuse(sock)
                continue
            task = asyncio.create_task(self._greet(sock))
            self._greeting[task] = address[0]
            task.add_done_callback(self._greeting.pop)

    def _too_many(self, address: str) -> bool:
        held = [*self._held(), *self._greeting.values()]
        if len(held) >= self._most:
            return True
        half = self._most // 2
        return len(held) > half and held.count(address) > half and not self._many(address)

    def _refuse(self, sock: socket.socket) -> None:
        with sock:
            if self._certificate is None:
                with contextlib.suppress(OSError):
                    sock.send(_FULL)

    async def _greet(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        tls = self._certificate
        try:
            for level, option, value in _OPTIONS:
                sock.setsockopt(level, option, value)
            if tls is None:
                await loop.connect_accepted_socket(self._make, sock)
            else:
                await loop.connect_accepted_socket(
                    self._make, sock, ssl=tls.context, ssl_handshake_timeout=HANDSHAKE_TIME
                )
        except (OSError, TimeoutError):  # a handshake that was none
            sock.close()
        except asyncio.CancelledError:
            sock.close()
            raise
