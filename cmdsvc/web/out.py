"""The reply to one request, as it goes out: whole, or never taken for whole."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from cmdsvc.errors import CmdError
from cmdsvc.relay import CallerGone
from cmdsvc.web.asked import Asked
from cmdsvc.web.problems import body_of, headers_of, status_of

Pairs = Sequence[tuple[str, str]]

BODILESS = frozenset({204, 304})
KEPT_MAX = 1 << 20
"""Bytes of a reply that are kept for who asks again."""


class Copy:
    """What was replied, as far as it is kept; `body` None: it was larger."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self.body: bytearray | None = bytearray()

    def add(self, data: bytes) -> None:
        if self.body is not None:
            self.body += data
            if len(self.body) > KEPT_MAX:
                self.body = None


class Out:
    """`closing`: the connection ends with this reply."""

    def __init__(self, asked: Asked, *, closing: bool) -> None:
        self.asked = asked
        self.status = 0
        """That was sent; 0 before."""
        self.run = ""
        """The id of the run whose reply it is."""
        self.copy: Copy | None = None
        self.more: list[tuple[str, str]] = []
        """Headers beside those that are given with a reply."""
        self.stays = False
        """Whether all goes on although nobody may be there to read it."""
        self._closing = closing
        self._over = False

    @property
    def started(self) -> bool:
        return self.status != 0

    @property
    def bodied(self) -> bool:
        """Whether what has begun may have a body (RFC 9110, 6.4.1)."""
        return self.status not in BODILESS

    async def begin(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        """The head of a reply whose length is not known."""
        pairs = [*headers, *self.more]
        if self.run:
            pairs.append(("x-cmd-run-id", self.run))
        if self.copy is not None:
            self.copy.status, self.copy.headers = status, pairs
        if self._closing:
            pairs = [*pairs, ("connection", "close")]
        self.status = status
        await self.asked.send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(k.encode("latin-1"), v.encode("latin-1")) for k, v in pairs],
            }
        )

    async def data(self, data: bytes) -> None:
        """A piece of the body, once there is room for it. CallerGone."""
        if self.copy is not None:
            self.copy.add(data)
        await self._send(data, more=True)
        if self.asked.line.gone.is_set() and not self.stays:
            raise CallerGone

    async def end(self) -> None:
        self._over = True
        await self._send(b"", more=False)

    async def whole(self, status: int, headers: Iterable[tuple[str, str]], body: bytes) -> None:
        pairs = list(headers)
        if status not in BODILESS:
            pairs.append(("content-length", str(len(body))))
        await self.begin(status, pairs)
        if self.copy is not None:
            self.copy.add(body)
        self._over = True
        await self._send(body if self.bodied else b"", more=False)

    async def json(
        self, status: int, document: object, headers: Iterable[tuple[str, str]] = ()
    ) -> None:
        pairs = [*headers, ("content-type", "application/json"), ("cache-control", "no-store")]
        await self.whole(status, pairs, json.dumps(document, separators=(",", ":")).encode() + b"\n")

    async def problem(self, error: CmdError) -> None:
        """Refuses; what has begun is cut off."""
        if self.started:
            await self.cut()
            return
        media, body = body_of(error, json_=self.asked.json)
        headers = [*headers_of(error), ("content-type", media), ("cache-control", "no-store")]
        headers.append(("x-content-type-options", "nosniff"))
        await self.whole(status_of(error), headers, body)

    async def cut(self) -> None:
        """Ends the connection, unless all was sent: what began is not to look whole."""
        if not self._over:
            self._over = True
            await self.asked.line.cut(framed=self.asked.framed)

    async def _send(self, body: bytes, *, more: bool) -> None:
        await self.asked.send({"type": "http.response.body", "body": body, "more_body": more})
