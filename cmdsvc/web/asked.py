"""A request as the routes see it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT

from cmdsvc.relay import CallerGone
from cmdsvc.web import cgi
from cmdsvc.web.connection import Line
from cmdsvc.web.forwarded import PORTS, Origin, Proxies
from cmdsvc.web.problems import accepts_json, too_large

_ABSOLUTE = re.compile(rb"https?://[^/?]*", re.IGNORECASE)


class Asked:
    """Who has it must take its body by `body`, if at all."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, proxies: Proxies) -> None:
        self.receive = receive
        self.send = send
        self.method: str = scope.get("method", "GET")
        self.protocol = f"HTTP/{scope['http_version']}"
        self.headers: cgi.Headers = scope["headers"]
        self.query: bytes = scope["query_string"]
        self.line: Line = scope["state"]["line"]
        self.path: bytes = _ABSOLUTE.sub(b"", scope["raw_path"], count=1) or b"/"
        """As it was sent; of a whole URL (RFC 9112, 3.2.2) its path."""
        scheme = scope["scheme"].replace("ws", "http")
        address, _ = scope["client"] or ("", 0)
        host, port = scope["server"] or ("", None)
        self.origin = proxies.origin(
            Origin(address, scheme, host, port or PORTS[scheme]), self.headers
        )

    def values(self, name: bytes) -> list[bytes]:
        """Of all headers of that name (in lower case)."""
        return [value for key, value in self.headers if key == name]

    def words(self, name: bytes) -> list[str]:
        """Of all headers of that name, as one list."""
        found = b",".join(self.values(name)).decode("latin-1").split(",")
        return [word.strip() for word in found if word.strip()]

    @property
    def framed(self) -> bool:
        """Whether a reply's length can be told apart from the connection's end."""
        return self.protocol != "HTTP/1.0"

    @property
    def json(self) -> bool:
        return accepts_json(self.headers)

    @property
    def length(self) -> int | None:
        """Bytes of the body, where that was said."""
        values = self.values(b"content-length")
        return int(values[0]) if values and not self.values(b"transfer-encoding") else None

    @property
    def held_up(self) -> bool:
        """Whether so much of a body may come that the connection is not read for a while."""
        return bool(self.values(b"transfer-encoding")) or (self.length or 0) > HIGH_WATER_LIMIT

    def flag(self, name: bytes) -> str | None:
        """The value of a field of the query, decoded; None where it is not there."""
        found = (value for key, value in cgi.fields(self.query) if key == name)
        value = next(found, None)
        return None if value is None else value.decode(errors="replace")

    def accepts(self, media: str) -> bool:
        accepted = b",".join(self.values(b"accept")).decode("latin-1").lower()
        return any(part.partition(";")[0].strip() == media for part in accepted.split(","))

    async def body(self, most: int) -> AsyncIterator[bytes]:
        """As it comes, no more being read than is taken.

        CallerGone where it ends early; RequestError (413) above `most` bytes.
        """
        left = most
        if (self.length or 0) > most:
            raise too_large(most)
        while True:
            message = await self.receive()
            if message["type"] != "http.request":
                raise CallerGone
            piece: bytes = message.get("body", b"")
            left -= len(piece)
            if left < 0:
                raise too_large(most)
            if piece:
                yield piece
            if not message.get("more_body"):
                return
