"""A client's TCP connection, with the bounds that asyncssh leaves to its user."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Collection
from typing import cast

import asyncssh
from asyncssh.channel import SSHChannel
from asyncssh.constants import (
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_EXTENDED_DATA,
    MSG_CHANNEL_WINDOW_ADJUST,
    MSG_IGNORE,
    MSG_KEX_LAST,
    MSG_KEXINIT,
    MSG_NEWKEYS,
    MSG_USERAUTH_FAILURE,
    MSG_USERAUTH_FIRST,
    MSG_USERAUTH_LAST,
)
from asyncssh.packet import PacketDecodeError, SSHPacket, SSHPacketLogger

from cmdsvc.ssh.identities import Login
from cmdsvc.ssh.restrictions import FREE
from cmdsvc.store import Notice

UNSENT_HIGH = 512 << 10
"""Bytes that the client has not taken, above which nobody writes to it."""
UNSENT_MAX = 2 << 20
"""Bytes that it has not taken, above which nothing is read from it: what it asks for is answered."""
DEFERRED_MAX = 16384
"""Packets that may wait for the end of a key exchange, which is the client's to end."""
ATTEMPTS_MAX = 32
"""Answers to attempts to log in, each key that is offered one; then the connection ends."""
SMALL = 512
BURST_MAX = 2000
"""Small packets of output that are sent in one go; a client may ask for it byte by byte."""
LOOK = 1 << 20
"""Bytes received between two looks at what the client has made us keep."""


class Link(asyncssh.SSHServerConnection):
    """asyncssh believes a client that claims room for gigabytes, and keeps what the socket refuses.

    Who writes waits for `writable` first. Who does not read calls `hold`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        options: asyncssh.SSHServerConnectionOptions,
        signatures: Collection[str],
    ) -> None:
        super().__init__(loop, options)
        self._signatures = frozenset(name.encode() for name in signatures)
        self.received_much: Callable[[], None] = lambda: None
        """Called after each LOOK bytes."""
        self.logging_in = True
        self.find: Callable[[str, bytes, bytes], Awaitable[Login | None]] = _nobody
        """Whose the key or certificate is that a client offers under a name, with its signature."""
        self.proved: Callable[[Login], None] = lambda _: None
        self.login: Login | None = None
        """Whom the newest valid signature was of."""
        self.told: Notice | None = None
        """The operator's notice that the client has seen."""
        self.offered = b""
        """The public key that `find` has just named somebody for."""
        self.agent_offered = False
        """Whether the client lets its SSH agent be used: for all its sessions, as in sshd(8)."""
        self.agent_channels: set[asyncio.Task[None]] = set()
        """Those that the client has not closed yet."""
        self._room = asyncio.Event()
        self._room.set()
        self._held: dict[SSHPacketLogger, list[tuple[bytes, ...]]] = {}
        self._socket_transport: asyncio.Transport | None = None
        self._full = False
        self._exchanging = False
        self._deferred = 0
        self._burst = 0
        self._attempts = 0
        self._unlooked = 0

    async def writable(self) -> None:
        """Waits until the client takes what it is sent, or is gone."""
        while not self._room.is_set():
            await self._room.wait()
        self._burst = 0

    def hold(self, channel: SSHChannel[bytes]) -> None:
        """The client may send what it was promised on this channel, and no more until `release`.

        Unlike asyncssh's own pause, this neither hides that the channel was closed nor keeps each
        packet by itself.
        """
        self._held.setdefault(channel, [])

    def release(self, channel: SSHChannel[bytes]) -> None:
        for packet in self._held.pop(channel, ()):
            if not channel.is_closing():
                self.send_packet(MSG_CHANNEL_WINDOW_ADJUST, *packet, handler=channel)

    async def validate_public_key(
        self, username: str, key_data: bytes, msg: bytes, signature: bytes
    ) -> bool:
        # asyncssh tells the client which algorithms are taken, and takes what the key can do: SHA-1.
        if msg and _algorithm(signature) not in self._signatures:
            return False
        login = await self.find(username, key_data, signature)
        if login is None:
            return False
        # Certificates are judged by `find`; the signature, over all that was offered, is their key's.
        self.offered = login.key
        if not await super().validate_public_key(username, login.key, msg, signature):
            return False
        if msg:
            self.login = login
            self.proved(login)
        return True

    async def reload_config(self) -> None:
        """There is no configuration file in which this user could have settings of his own.

        asyncssh makes all of them anew, in a thread, for each name that is claimed.
        """

    # What a certificate, or a line of a keys file, takes away: asyncssh asks, and sees to it.

    def get_key_option(self, option: str, default: object = None) -> object:
        if option == "command" and self.login is not None:
            return self.login.restrictions.command
        return super().get_key_option(option, default)

    def check_key_permission(self, permission: str) -> bool:
        given = self.login.restrictions if self.login is not None else FREE
        match permission:
            case "pty":
                return given.pty
            case "agent-forwarding":
                return given.agent_forwarding
        return super().check_key_permission(permission)

    async def create_agent_listener(self) -> bool:
        """Whether a request to forward the agent is granted: without a socket of asyncssh's own."""
        self.agent_offered = self.check_key_permission("agent-forwarding")
        return self.agent_offered

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket_transport = cast(asyncio.Transport, transport)
        self._socket_transport.set_write_buffer_limits(high=UNSENT_HIGH)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None = None) -> None:
        self._room.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes, datatype: int | None = None) -> None:
        transport = self._socket_transport
        if self.logging_in and transport is not None:
            _acknowledge(transport)
        self._burst = 0
        super().data_received(data, datatype)
        if transport is None or transport.is_closing():
            return
        if transport.get_write_buffer_size() > UNSENT_MAX:
            transport.pause_reading()
        self._unlooked += len(data)
        if self._unlooked >= LOOK:
            self._unlooked = 0
            self.received_much()

    def pause_writing(self) -> None:
        self._full = True
        self._tell_room()

    def resume_writing(self) -> None:
        self._full = False
        self._tell_room()
        if self._socket_transport is not None:
            self._socket_transport.resume_reading()

    def send_packet(
        self, pkttype: int, *args: bytes, handler: SSHPacketLogger | None = None
    ) -> None:
        if pkttype == MSG_IGNORE:
            # asyncssh puts one before each packet, for ciphers in CBC mode: none is offered.
            return
        if pkttype in {MSG_KEXINIT, MSG_NEWKEYS}:
            # Between the two asyncssh keeps all that is sent (RFC 4253, section 7.1).
            self._exchanging, self._deferred = pkttype == MSG_KEXINIT, 0
            self._tell_room()
        elif pkttype == MSG_CHANNEL_WINDOW_ADJUST and handler in self._held:
            self._held[handler].append(args)
            return
        elif self._exchanging and pkttype > MSG_KEX_LAST:
            self._deferred += 1
            if self._deferred > DEFERRED_MAX:
                self.abort()
                return
        if pkttype in {MSG_CHANNEL_DATA, MSG_CHANNEL_EXTENDED_DATA}:
            self._burst += sum(map(len, args)) < SMALL
            if self._burst > BURST_MAX:
                self.abort()
                raise asyncssh.ProtocolError("too many small packets")
        super().send_packet(pkttype, *args, handler=handler)
        if self.logging_in and (
            pkttype == MSG_USERAUTH_FAILURE or MSG_USERAUTH_FIRST <= pkttype <= MSG_USERAUTH_LAST
        ):
            self._attempts += 1
            if self._attempts == ATTEMPTS_MAX:
                self.disconnect(
                    asyncssh.DISC_NO_MORE_AUTH_METHODS_AVAILABLE, "too many attempts to log in"
                )

    def _tell_room(self) -> None:
        if self._full or self._exchanging:
            self._room.clear()
        else:
            self._room.set()


async def _nobody(name: str, offered: bytes, signature: bytes) -> Login | None:
    del name, offered, signature
    return None


def _algorithm(signature: bytes) -> bytes:
    """What made a signature (RFC 4253, section 6.6)."""
    try:
        return SSHPacket(signature).get_string()
    except PacketDecodeError:
        return b""


def _acknowledge(transport: asyncio.Transport) -> None:
    """Has the kernel acknowledge at once what came.

    The client sends its half of the handshake in small pieces with Nagle's algorithm on, so each
    delayed acknowledgement costs 40 ms. TCP_QUICKACK does not last (tcp(7)).
    """
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
