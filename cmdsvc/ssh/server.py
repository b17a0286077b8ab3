"""The SSH door: listens, authenticates, fixes who asks; sessions do the rest."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from dataclasses import dataclass
from typing import Any

import asyncssh

from cmdsvc import __version__
from cmdsvc.errors import CmdError
from cmdsvc.model import TOKEN_PREFIX, Identity
from cmdsvc.service.failures import Failures
from cmdsvc.service.top import Resource
from cmdsvc.ssh import ciphers
from cmdsvc.ssh.blobs import SIGNATURES, fingerprint
from cmdsvc.ssh.identities import Identities, Login
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

SESSIONS_PER_CONNECTION = 256
LOGGING_IN_LEAST = 40
"""Connections that may be before the end of their login, however few may be in all."""
ENVIRONMENT_MAX = 1 << 20
"""Bytes of environment that the sessions of one connection may have sent."""
KEEPALIVE = 15.0
"""Seconds between looks whether a silent client is still there; it is gone after three."""
FAREWELL = 2.0
"""Seconds in which the sessions of who has to leave may still tell how they ended."""


@dataclass(frozen=True, slots=True)
class SshSettings:
    host: str
    port: int
    max_connections: int
    login_timeout: float
    operators: frozenset[str]
    socket: socket.socket | None = None
    """One that listens already, in the place of host and port."""


def logging_in_most(max_connections: int) -> int:
    """How many connections may be before the end of their login."""
    return max(LOGGING_IN_LEAST, max_connections // 10)


class SshServer:
    def __init__(
        self,
        settings: SshSettings,
        key: asyncssh.SSHKey,
        identities: Identities,
        services: Services,
    ) -> None:
        self.settings = settings
        self.identities = identities
        self.services = services
        self.connections: set[Connection] = set()
        self.logging_in: Counter[str] = Counter()
        self.failures = Failures()
        self._sessions: set[Session] = set()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._key = key
        self._listener: asyncio.Server | None = None
        self.refused = 0
        """Connections that were too many, since the start."""

    async def open(self) -> None:
        """Listens. CmdError where the address cannot be had."""
        settings = self.settings
        ciphers.use()
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
                **_where(settings),
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

    def load(self) -> Resource:
        """Connections, and who among them is not logged in yet."""
        most = self.settings.max_connections
        return Resource(
            "connections",
            len(self.connections),
            most,
            self.logging_in.total(),
            logging_in_most(most),
            self.refused,
        )

    def oust(self, user: str) -> None:
        """Ends the connections of a user, and of who came by one of his tokens."""
        for connection in list(self.connections):
            if connection.user == user:
                connection.oust()

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


def _where(settings: SshSettings) -> dict[str, Any]:
    if settings.socket is not None:
        return {"sock": settings.socket}
    return {"host": settings.host, "port": settings.port, "reuse_address": True}


class Connection(asyncssh.SSHServer):
    """One client's connection, from its first byte on."""

    def __init__(self, server: SshServer) -> None:
        self._server = server
        self._conn: Link | None = None
        self._identity: Identity | None = None
        self._address = ""
        self._sessions: set[Session] = set()
        self._counted = False
        self._tried = False
        """Whether it has tried to log in, and has not yet."""
        self._leaving: asyncio.TimerHandle | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        assert isinstance(conn, Link)  # noqa: S101 - nothing else is made where it listens
        self._conn = conn
        conn.received_much = self._look
        conn.find = self._find
        conn.proved = self._server.identities.proved
        self._address = str((conn.get_extra_info("peername") or ("",))[0])
        server = self._server
        waiting = server.logging_in
        most = logging_in_most(server.settings.max_connections)
        if (
            len(server.connections) >= server.settings.max_connections
            or waiting.total() >= most
            or waiting[self._address] >= most // 2  # one address leaves room for the others
            or server.failures.too_many(self._address)
        ):
            server.refused += 1
            log.warning(
                "too many connections or failed logins",
                extra={"fields": {"address": self._address}},
            )
            conn.abort()
            return
        server.connections.add(self)
        waiting[self._address] += 1
        self._counted = True

    @property
    def user(self) -> str | None:
        """Who came, once that is known."""
        return self._identity.user if self._identity else None

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
        if self._tried:
            self._server.failures.note(self._address)
        self._server.connections.discard(self)
        if self._leaving is not None:
            self._leaving.cancel()
        for session in list(self._sessions):  # also those that asyncssh never began
            session.connection_lost(exc)

    async def begin_auth(self, username: str) -> bool:
        """Whether more is needed than the name: a claim, no more, unless it is a token.

        Another name on the same connection counts as another login.
        """
        failures = self._server.failures
        if self._tried:
            failures.note(self._address)
            if failures.too_many(self._address) and self._conn is not None:
                self._conn.abort()
                return True
        self._tried = True
        if not username.startswith(TOKEN_PREFIX):
            return True
        self._identity = await self._server.services.sharing.identify(username)
        return self._identity is None

    def public_key_auth_supported(self) -> bool:
        return True

    async def _find(self, name: str, offered: bytes, signature: bytes) -> Login | None:
        if name.startswith(TOKEN_PREFIX):  # who means a token does not mean his key
            return None
        return await self._server.identities.find(name, offered, signature, self._address)

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """The link has asked already whose it is; here it is only the same key."""
        del username
        return self._conn is not None and key.public_data == self._conn.offered

    def auth_completed(self) -> None:
        self._logged_in()
        self._tried = False
        login = self._conn.login if self._conn is not None else None
        if login is None:
            return
        self._identity = Identity(
            user=login.user,
            via=login.via,
            key=fingerprint(login.key),
            operator=login.user in self._server.settings.operators,
        )

    def session_requested(self) -> Session | bool:
        conn, identity = self._conn, self._identity
        if conn is None or identity is None or self._leaving is not None:
            return False
        if len(self._sessions) >= SESSIONS_PER_CONNECTION:
            return False
        if conn.login is not None and not self._server.identities.holds(conn.login):
            return False
        session = Session(self._server.services, identity, self._address, conn, self._session_over)
        self._sessions.add(session)
        self._server.session_begins(session)
        return session

    def _session_over(self, session: Session) -> None:
        self._sessions.discard(session)
        self._server.session_over(session)
        if self._leaving is not None and not self._sessions:
            self.close()

    def oust(self) -> None:
        """Closes it when its sessions are over, which they have to be soon."""
        if self._leaving is None:
            delay = FAREWELL if self._sessions else 0.0
            self._leaving = asyncio.get_running_loop().call_later(delay, self.close)

    def close(self) -> None:
        if self._conn is not None:
            self._conn.close()

    async def wait_closed(self) -> None:
        if self._conn is not None:
            await self._conn.wait_closed()
