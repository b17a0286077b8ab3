"""/healthz, /readyz, /metrics and /openapi.json."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping

from cmdsvc.errors import BusyError
from cmdsvc.service.figures import CONTENT_TYPE
from cmdsvc.service.health import Health
from cmdsvc.web.asked import Asked
from cmdsvc.web.openapi import document
from cmdsvc.web.out import Out
from cmdsvc.web.problems import RequestError, not_allowed
from cmdsvc.web.site import Route


def routes(health: Health) -> Mapping[bytes, Route]:
    async def alive(asked: Asked, out: Out) -> None:
        _check(asked)
        await _say(out, "ok")

    async def ready(asked: Asked, out: Out) -> None:
        _check(asked)
        if faults := await health.faults():
            raise BusyError("; ".join(faults), "ask again later")
        await _say(out, "ready")

    async def described(asked: Asked, out: Out) -> None:
        _check(asked)
        await out.json(200, document(), [("access-control-allow-origin", "*")])

    return {b"healthz": alive, b"readyz": ready, b"openapi.json": described}


def metrics(figures: Callable[[], Awaitable[bytes]], token: str) -> Route:
    """Where there is a `token`, for who has it only."""
    wanted = f"bearer {token}".encode()

    async def measured(asked: Asked, out: Out) -> None:
        _check(asked)
        scheme, _, given = b"".join(asked.values(b"authorization")).partition(b" ")
        if token and not hmac.compare_digest(scheme.lower() + b" " + given.strip(), wanted):
            raise RequestError(
                401,
                "the figures are for who has the token of CMDSVC_METRICS_TOKEN",
                "send Authorization: Bearer TOKEN",
                [("www-authenticate", 'Bearer realm="cmdsvc metrics"')],
            )
        headers = [("content-type", CONTENT_TYPE), ("cache-control", "no-store")]
        await out.whole(200, headers, await figures())

    return measured


def _check(asked: Asked) -> None:
    if asked.method not in {"GET", "HEAD"}:
        raise not_allowed(asked.method, ["GET", "HEAD"])


async def _say(out: Out, word: str) -> None:
    headers = [("content-type", "text/plain; charset=utf-8"), ("cache-control", "no-store")]
    await out.whole(200, headers, f"{word}\n".encode())
