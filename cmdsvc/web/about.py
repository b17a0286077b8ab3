"""/healthz, /readyz and /openapi.json."""

from __future__ import annotations

from collections.abc import Mapping

from cmdsvc.errors import BusyError
from cmdsvc.service.health import Health
from cmdsvc.web.asked import Asked
from cmdsvc.web.openapi import document
from cmdsvc.web.out import Out
from cmdsvc.web.problems import not_allowed
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


def _check(asked: Asked) -> None:
    if asked.method not in {"GET", "HEAD"}:
        raise not_allowed(asked.method, ["GET", "HEAD"])


async def _say(out: Out, word: str) -> None:
    headers = [("content-type", "text/plain; charset=utf-8"), ("cache-control", "no-store")]
    await out.whole(200, headers, f"{word}\n".encode())
