"""The routes, and what holds for each request: refused in order, logged in one line."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping

from starlette.types import Receive, Scope, Send

from cmdsvc.errors import CmdError, InternalError, printable
from cmdsvc.relay import CallerGone
from cmdsvc.web.asked import Asked
from cmdsvc.web.connection import HEAD_MAX
from cmdsvc.web.forwarded import Proxies
from cmdsvc.web.out import Out
from cmdsvc.web.problems import RequestError, not_found

log = logging.getLogger("cmdsvc.http")

Route = Callable[[Asked, Out], Awaitable[None]]

QUIET = frozenset({b"healthz", b"readyz", b"metrics", b"openapi.json"})
"""Asked for every few seconds: not worth a line."""


class Site:
    """An ASGI application. `routes`: by the first segment of a path; `failed` is told of errors."""

    def __init__(
        self,
        routes: Mapping[bytes, Route],
        proxies: Proxies,
        failed: Callable[[BaseException], None],
    ) -> None:
        self._routes = routes
        self._proxies = proxies
        self._failed = failed
        self.draining = False
        """Whether each connection ends with the reply to its next request."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = time.monotonic()
        asked = Asked(scope, receive, send, self._proxies)
        out = Out(asked, closing=self.draining)
        door = asked.path.split(b"/", 2)[1] if asked.path.startswith(b"/") else asked.path
        try:
            await self._answer(door, asked, out)
        except CallerGone:
            await out.cut()
        except CmdError as error:
            self._failed(error)
            await out.problem(error)
        except Exception:
            log.exception("a request failed", extra={"fields": {"run": out.run}})
            await out.problem(InternalError("internal error", "see the service's log"))
        if door not in QUIET:
            _log(asked, out, time.monotonic() - begun)

    async def _answer(self, door: bytes, asked: Asked, out: Out) -> None:
        # h11 asks this only of a head that comes in pieces.
        fields = sum(len(name) + len(value) + 4 for name, value in asked.headers)
        if len(asked.path) + len(asked.query) + fields > HEAD_MAX:
            raise RequestError(431, f"its head is larger than {HEAD_MAX} bytes", "send less")
        # RFC 9112, 6.1: both is what a smuggled request has.
        if asked.values(b"content-length") and asked.values(b"transfer-encoding"):
            out.more.append(("connection", "close"))
            raise RequestError(400, "a body with two lengths", "send one of the headers")
        route = self._routes.get(door)
        if route is None:
            raise not_found()
        await route(asked, out)


def _log(asked: Asked, out: Out, seconds: float) -> None:
    parts = asked.path.split(b"/")[:4]  # arguments may be anything, credentials too
    fields = {
        "method": printable(asked.method)[:16],
        "path": b"/".join(parts).decode(errors="replace")[:150],
        "status": out.status,
        "run": out.run,
        "address": asked.origin.address,
        "seconds": round(seconds, 4),
    }
    log.info("request", extra={"fields": fields})
