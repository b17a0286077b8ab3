"""The HTTP door: listens, holds the connections, and lets go of them in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from cmdsvc.errors import CmdError
from cmdsvc.service.answers import Answers
from cmdsvc.service.health import Health
from cmdsvc.service.hooks import Hooks
from cmdsvc.service.runs import Runs
from cmdsvc.service.sharing import Sharing
from cmdsvc.service.top import Resource
from cmdsvc.web import about
from cmdsvc.web.certificate import Certificate
from cmdsvc.web.connection import HEAD_MAX, Connection
from cmdsvc.web.credentials import Doorkeeper
from cmdsvc.web.forwarded import Proxies
from cmdsvc.web.hook import HookRoute
from cmdsvc.web.listener import Listener
from cmdsvc.web.run import RunRoute
from cmdsvc.web.runs import RunsRoute
from cmdsvc.web.site import Site

log = logging.getLogger("cmdsvc.http")

KEEP_ALIVE = 30
"""Seconds that a connection may be idle between two requests."""
LOOK = 5
"""Of uvicorn's ticks, which are a tenth of a second, between two looks at the connections."""


@dataclass(frozen=True, slots=True)
class WebSettings:
    host: str
    port: int
    max_connections: int
    max_body: int
    """Bytes."""
    folder: Path
    """For bodies that are needed whole before they are run with; nothing stays there."""
    certificate: tuple[Path, Path] | None = None
    """With its key."""
    proxies: tuple[str, ...] = ()
    """Addresses and networks of those that say truly who their client is."""
    metrics_token: str = ""
    """Who wants the figures has to say it; "" where nobody has to."""
    socket: socket.socket | None = None
    """One that listens already, in the place of host and port."""


@dataclass(frozen=True, slots=True)
class WebServices:
    runs: Runs
    sharing: Sharing
    hooks: Hooks
    answers: Answers
    health: Health
    figures: Callable[[], Awaitable[bytes]]
    """All of them, in Prometheus' text format."""
    failed: Callable[[BaseException], None]
    """Told of what went wrong."""


class WebServer:
    def __init__(self, settings: WebSettings, services: WebServices) -> None:
        self.settings = settings
        self._proxies = Proxies(settings.proxies)
        doorkeeper = Doorkeeper(services.sharing)
        run = RunRoute(
            services.runs,
            doorkeeper,
            services.answers,
            max_body=settings.max_body,
            folder=settings.folder,
        )
        self._site = Site(
            {
                b"run": run,
                b"runs": RunsRoute(services.runs.live, doorkeeper),
                b"hook": HookRoute(services.hooks, max_body=settings.max_body),
                **about.routes(services.health),
                b"metrics": about.metrics(services.figures, settings.metrics_token),
            },
            self._proxies,
            services.failed,
        )
        self._server = _Server(self._site, settings.max_body)
        self._serving: asyncio.Task[None] | None = None
        self._listener: Listener | None = None
        self._host, self._port = settings.host, settings.port

    async def open(self) -> None:
        """Listens. CmdError where the address cannot be had, or the certificate not be used."""
        settings = self.settings
        certificate = Certificate(*settings.certificate) if settings.certificate else None
        if certificate is not None:
            certificate.open()
        sock = settings.socket or _listening(settings.host, settings.port)
        address, self._port = sock.getsockname()[:2]
        self._host = address if settings.socket else settings.host
        self._listener = Listener(
            sock,
            self._server.connection,
            self._server.addresses,
            most=settings.max_connections,
            many=self._proxies.trusts,
            certificate=certificate,
        )
        self._serving = asyncio.create_task(self._server.serve())
        self._listener.start()

    @property
    def url(self) -> str:
        """To reach it by, from this machine where it listens on all addresses."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)  # noqa: S104
        scheme = "https" if self.settings.certificate else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self._port}"

    def load(self) -> Resource:
        refused = self._listener.refused if self._listener else 0
        most = self.settings.max_connections
        return Resource("http", len(self._server.addresses()), most, errors=refused)

    async def drain(self, grace: float) -> bool:
        """Takes no connection; True when the requests at work were answered within `grace` seconds.

        Each connection ends with the reply to its next request.
        """
        self._site.draining = True
        if self._listener is not None:
            await self._listener.stop()
        try:
            async with asyncio.timeout(grace):
                while tasks := set(self._server.server_state.tasks):
                    await asyncio.wait(tasks)
        except TimeoutError:
            return False
        return True

    async def aclose(self) -> None:
        """Ends every connection, and all that was asked for over it."""
        if self._listener is not None:
            await self._listener.stop()
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise CmdError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            "set CMDSVC_HTTP_LISTEN to a free address",
        ) from None


class _Server(uvicorn.Server):
    """Of connections that others take, and of a program that sees to signals itself."""

    def __init__(self, site: Site, discard: int) -> None:
        config = uvicorn.Config(
            site,
            http=Connection,
            ws="none",
            interface="asgi3",
            lifespan="off",
            log_config=None,
            log_level="critical",  # what strangers send is not worth a line
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE,
            h11_max_incomplete_event_size=HEAD_MAX,
        )
        config.load()
        super().__init__(config)
        self._discard = discard

    def connection(self) -> Connection:
        return Connection(self.config, self.server_state, {}, discard=self._discard)

    def addresses(self) -> list[str]:
        """Of the other end of each connection."""
        return [(getattr(c, "client", None) or ("",))[0] for c in self.server_state.connections]

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        return contextlib.nullcontext()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        del sockets
        self.servers = []
        self.started = True

    async def on_tick(self, counter: int) -> bool:
        if counter % LOOK == 0:
            now = time.monotonic()
            for connection in list(self.server_state.connections):
                if isinstance(connection, Connection):
                    connection.look(now)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        del sockets
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        while tasks := set(self.server_state.tasks):
            await asyncio.wait(tasks)
