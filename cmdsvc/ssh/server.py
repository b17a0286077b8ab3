"""The SSH door: listens, authenticates, fixes who asks; sessions do the rest."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from dataclasses import dataclass

import asyncssh

from cmdsvc import __version__
from cmdsvc.errors import CmdError
from cmdsvc.model import Identity, Via
from cmdsvc.ssh.keys import KeyRing
from cmdsvc.ssh.session import Session
from cmdsvc.ssh.verbs import Services

log = logging.getLogger("cmdsvc.ssh")

# Curve25519 first: cheap, and one widespread client fails with asyncssh's own order.
KEX = (
    "curve25519-sha256",
    "curve25519-sha256@libssh.org",
    "ecdh-sha2-nistp256",
    "ecdh-sha2-nistp384",
    "ecdh-sha2-nistp521",
    "diffie-hellman-group16-sha512",
    "diffie-hellman-group18-sha512",
    "diffie-hellman-group14-sha256",
)
CIPHERS = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes256-ctr",
    "aes192-ctr",
    "aes128-ctr",
)
MACS = (
    "hmac-sha2-256-etm@openssh.com",
    "hmac-sha2-512-etm@openssh.com",
    "hmac-sha2-256",
    "hmac-sha2-512",
)
SIGNATURES = (
    "ssh-ed25519",
    "sk-ssh-ed25519@openssh.com",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ecdsa-sha2-nistp256@openssh.com",
    "rsa-sha2-512",
    "rsa-sha2-256",
)

SESSIONS_PER_CONNECTION = 256
PER_ADDRESS = 20
"""Connections from one address that may be before the end of their login."""
KEEPALIVE = 15.0
"""Seconds between looks whether a silent client is still there; it is gone after three."""


@dataclass(frozen=True, slots=True)
class SshSettings:
    host: str
    port: int
    max_connections: int
    login_timeout: float
    operators: frozenset[str]


class SshServer:
    def __init__(
        self, settings: SshSettings, key: asyncssh.SSHKey, ring: KeyRing, services: Services
    ) -> None:
        self.settings = settings
        self.ring = ring
        self.services = services
        self.connections: set[Connection] = set()
        self.logging_in: Counter[str] = Counter()
        self._sessions: set[Session] = set()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._key = key
        self._acceptor: asyncssh.SSHAcceptor | None = None

    async def open(self) -> None:
        """Listens. CmdError where the address cannot be had."""
        settings = self.settings
        try:
            self._acceptor = await asyncssh.listen(
                settings.host,
                settings.port,
                server_factory=lambda: Connection(self),
                server_host_keys=[self._key],
                server_version=f"cmdsvc_{__version__}",
                config=None,
                kex_algs=KEX,
                encryption_algs=CIPHERS,
                mac_algs=MACS,
                signature_algs=SIGNATURES,
                compression_algs=("none",),
                login_timeout=settings.login_timeout,
                keepalive_interval=KEEPALIVE,
                password_auth=False,
                kbdint_auth=False,
                host_based_auth=False,
                gss_host=None,
                agent_forwarding=False,
                x11_forwarding=False,
                line_editor=False,
                encoding=None,
                allow_scp=False,
                reuse_address=True,
                backlog=512,
            )
        except OSError as error:
            raise CmdError(
                f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}",
                "set CMDSVC_SSH_LISTEN to a free address",
            ) from None

    @property
    def port(self) -> int:
        """The port in use, also where 0 was asked for."""
        assert self._acceptor is not None  # noqa: S101 - open() comes first
        return self._acceptor.get_port()

    @property
    def fingerprint(self) -> str:
        return self._key.get_fingerprint()

    def stop_listening(self) -> None:
        if self._acceptor is not None:
            self._acceptor.close()

    def session_begins(self, session: Session) -> None:
        self._sessions.add(session)
        self._quiet.clear()

    def session_over(self, session: Session) -> None:
        self._sessions.discard(session)
        if not self._sessions:
            self._quiet.set()

    async def drain(self, grace: float) -> bool:
        """Stops listening; True when the sessions going on ended within `grace` seconds."""
        self.stop_listening()
        try:
            async with asyncio.timeout(grace):
                await self._quiet.wait()
        except TimeoutError:
            return False
        return True

    async def aclose(self) -> None:
        """Ends every connection."""
        self.stop_listening()
        connections = list(self.connections)
        for connection in connections:
            connection.close()
        await asyncio.gather(*(c.wait_closed() for c in connections), return_exceptions=True)
        if self._acceptor is not None:
            await self._acceptor.wait_closed()


class Connection(asyncssh.SSHServer):
    """One client's connection, from its first byte on."""

    def __init__(self, server: SshServer) -> None:
        self._server = server
        self._conn: asyncssh.SSHServerConnection | None = None
        self._offered: tuple[str, str] | None = None
        self._identity: Identity | None = None
        self._address = ""
        self._sessions = 0
        self._counted = False

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._conn = conn
        self._address = str((conn.get_extra_info("peername") or ("",))[0])
        server = self._server
        waiting = server.logging_in
        if (
            len(server.connections) >= server.settings.max_connections
            or waiting.total() >= max(PER_ADDRESS, server.settings.max_connections // 10)
            or waiting[self._address] >= PER_ADDRESS
        ):
            log.warning("too many connections", extra={"fields": {"address": self._address}})
            conn.abort()
            return
        server.connections.add(self)
        waiting[self._address] += 1
        self._counted = True
        self._acknowledge()

    def _acknowledge(self) -> None:
        """Has the kernel acknowledge the client at once, again and again until the login's end.

        The client sends its half of the handshake in small pieces with Nagle's algorithm on, so
        each delayed acknowledgement costs 40 ms. TCP_QUICKACK does not last (tcp(7)).
        """
        if self._conn is None or not self._counted:
            return
        sock = self._conn.get_extra_info("socket")
        if sock is None or sock.fileno() < 0 or sock.family == socket.AF_UNIX:
            return
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        asyncio.get_running_loop().call_later(0.001, self._acknowledge)

    def _logged_in(self) -> None:
        """No longer counts among those before the end of their login."""
        if self._counted:
            self._counted = False
            waiting = self._server.logging_in
            waiting[self._address] -= 1
            if not waiting[self._address]:
                del waiting[self._address]

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._logged_in()
        self._server.connections.discard(self)

    def begin_auth(self, username: str) -> bool:
        del username  # a claim, no more
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """Whether the key is somebody's; asked before its signature is checked, and for every key."""
        del username
        owner = self._server.ring.owner(key)
        self._offered = (owner and (owner, key.get_fingerprint())) or None
        return owner is not None

    def auth_completed(self) -> None:
        self._logged_in()
        if self._offered is None:
            return
        user, fingerprint = self._offered
        self._identity = Identity(
            user=user,
            via=Via.KEY,
            key=fingerprint,
            operator=user in self._server.settings.operators,
        )

    def session_requested(self) -> Session | bool:
        if self._identity is None or self._sessions >= SESSIONS_PER_CONNECTION:
            return False
        self._sessions += 1
        session = Session(self._server.services, self._identity, self._address, self._session_over)
        self._server.session_begins(session)
        return session

    def _session_over(self, session: Session) -> None:
        self._sessions -= 1
        self._server.session_over(session)

    def close(self) -> None:
        if self._conn is not None:
            self._conn.close()

    async def wait_closed(self) -> None:
        if self._conn is not None:
            await self._conn.wait_closed()
