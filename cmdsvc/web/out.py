"""The reply to one request, as it goes out: whole, or never taken for whole."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from cmdsvc.errors import CmdError
from cmdsvc.relay import CallerGone
from cmdsvc.web.asked import Asked
from cmdsvc.web.problems import body_of, headers_of, status_of
from cmdsvc.web.record import Record

Pairs = Sequence[tuple[str, str]]

BODILESS = frozenset({204, 304})


class Out:
    """`closing`: the connection ends with this reply."""

    def __init__(self, asked: Asked, *, closing: bool) -> None:
        self.asked = asked
        self.status = 0
        """That was sent; 0 before."""
        self.run = ""
        """The id of the run whose reply it is."""
        self.record: Record | None = None
        self.ran = False
        """Whether there was a run whose reply it is."""
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
        pairs = self._pairs(headers)
        if self.record is not None:
            self.record.begin(status, pairs)
        await self._begin(status, pairs)

    async def data(self, data: bytes) -> None:
        """A piece of the body, once there is room for it. CallerGone."""
        if self.record is not None:
            self.record.add(data)
        await self._send(data, more=True)
        if self.asked.line.gone.is_set() and not self.stays:
            raise CallerGone

    async def end(self) -> None:
        await self.settle(whole=True)
        self._over = True
        await self._send(b"", more=False)

    async def whole(self, status: int, headers: Iterable[tuple[str, str]], body: bytes) -> None:
        pairs = self._pairs(headers)
        if self.record is not None:
            self.record.begin(status, pairs)
            self.record.add(body)
            await self.settle(whole=True)
        if status in BODILESS:
            body = b""
        else:
            pairs.append(("content-length", str(len(body))))
        await self._begin(status, pairs)
        self._over = True
        await self._send(body, more=False)

    async def json(
        self, status: int, document: object, headers: Iterable[tuple[str, str]] = ()
    ) -> None:
        pairs = [*headers, ("content-type", "application/json"), ("cache-control", "no-store")]
        await self.whole(
            status, pairs, json.dumps(document, separators=(",", ":")).encode() + b"\n"
        )

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
            await self.settle(whole=False)
            self._over = True
            await self.asked.line.cut(framed=self.asked.framed)

    async def settle(self, *, whole: bool) -> None:
        if self.record is not None:
            await self.record.settle(ran=self.ran, whole=whole)

    def _pairs(self, headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        run = [("x-cmd-run-id", self.run)] if self.run else []
        return [*headers, *self.more, *run]

    async def _begin(self, status: int, pairs: Pairs) -> None:
        self.status = status
        if self._closing:
            pairs = [*pairs, ("connection", "close")]
        await self.asked.send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(k.encode("latin-1"), v.encode("latin-1")) for k, v in pairs],
            }
        )

    async def _send(self, body: bytes, *, more: bool) -> None:
        await self.asked.send({"type": "http.response.body", "body": body, "more_body": more})
