"""The SSH door: listens, authenticates, fixes who asks; sessions do the rest."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass

import asyncssh

from cmdsvc import __version__
from cmdsvc.errors import CmdError
from cmdsvc.model import Identity, Via
from cmdsvc.ssh.keys import KeyRing
from cmdsvc.ssh.link import Link
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
ENVIRONMENT_MAX = 1 << 20
"""Bytes of environment that the sessions of one connection may have sent."""
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
        self._listener: asyncio.Server | None = None

    async def open(self) -> None:
        """Listens. CmdError where the address cannot be had."""
        settings = self.settings
        options = asyncssh.SSHServerConnectionOptions(
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
        )
        loop = asyncio.get_running_loop()
        try:
            self._listener = await loop.create_server(
                lambda: Link(loop, options, SIGNATURES),
                settings.host,
                settings.port,
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
        assert self._listener is not None  # noqa: S101 - open() comes first
        port: int = self._listener.sockets[0].getsockname()[1]
        return port

    @property
    def fingerprint(self) -> str:
        return self._key.get_fingerprint()

    def stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()

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
        """Ends every connection, and all that was asked for over it."""
        self.stop_listening()
        connections = list(self.connections)
        for connection in connections:
            connection.close()
        await asyncio.gather(*(c.wait_closed() for c in connections), return_exceptions=True)
        await self._quiet.wait()
        if self._listener is not None:
            await self._listener.wait_closed()


class Connection(asyncssh.SSHServer):
    """One client's connection, from its first byte on."""

    def __init__(self, server: SshServer) -> None:
        self._server = server
        self._conn: Link | None = None
        self._offered: tuple[str, str] | None = None
        self._identity: Identity | None = None
        self._address = ""
        self._sessions: set[Session] = set()
        self._counted = False

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        assert isinstance(conn, Link)  # noqa: S101 - nothing else is made where it listens
        self._conn = conn
        conn.received_much = self._look
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

    def _logged_in(self) -> None:
        """No longer counts among those before the end of their login."""
        if self._counted:
            self._counted = False
            waiting = self._server.logging_in
            waiting[self._address] -= 1
            if not waiting[self._address]:
                del waiting[self._address]
        if self._conn is not None:
            self._conn.logging_in = False

    def _look(self) -> None:
        """Ends a connection whose client makes us keep more environment than a run could get."""
        kept = sum(session.environment_size() for session in self._sessions)
        if kept > ENVIRONMENT_MAX and self._conn is not None:
            self._conn.disconnect(asyncssh.DISC_PROTOCOL_ERROR, "too much environment")

    def connection_lost(self, exc: Exception | None) -> None:
        self._logged_in()
        self._server.connections.discard(self)
        for session in list(self._sessions):  # also those that asyncssh never began
            session.connection_lost(exc)

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
        conn, identity = self._conn, self._identity
        if conn is None or identity is None or len(self._sessions) >= SESSIONS_PER_CONNECTION:
            return False
        session = Session(self._server.services, identity, self._address, conn, self._session_over)
        self._sessions.add(session)
        self._server.session_begins(session)
        return session

    def _session_over(self, session: Session) -> None:
        self._sessions.discard(session)
        self._server.session_over(session)

    def close(self) -> None:
        if self._conn is not None:
            self._conn.close()

    async def wait_closed(self) -> None:
        if self._conn is not None:
            await self._conn.wait_closed()
