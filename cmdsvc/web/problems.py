"""How a request is refused: as RFC 9457 says it to who accepts JSON, else in one line of text."""

from __future__ import annotations

import json
from collections.abc import Iterable
from http import HTTPStatus

from cmdsvc.errors import BusyError, CmdError, NotFoundError, one_line
from cmdsvc.service.signatures import ChallengedError
from cmdsvc.web.cgi import Headers

RETRY_AFTER = 5
"""Seconds after which what was busy may be asked again."""


class RequestError(CmdError):
    """What only a request over HTTP can be wrong with."""

    def __init__(
        self, status: int, what: str, hint: str = "", headers: Iterable[tuple[str, str]] = ()
    ) -> None:
        super().__init__(what, hint)
        self.status = status
        self.headers = tuple(headers)


def unauthorized(what: str = "who asks is not known") -> RequestError:
    return RequestError(
        401,
        what,
        "send a token: Authorization: Bearer cmd_...",
        [
            ("www-authenticate", 'Bearer realm="cmdsvc"'),
            ("www-authenticate", 'Basic realm="cmdsvc", charset="UTF-8"'),
        ],
    )


def not_found(what: str = "there is nothing here") -> NotFoundError:
    return NotFoundError(what, "see /openapi.json")


def too_large(most: int) -> RequestError:
    return RequestError(413, f"the body is larger than {most} bytes", "send less")


def not_allowed(method: str, methods: Iterable[str]) -> RequestError:
    allowed = ", ".join(methods)
    return RequestError(
        405, f"{one_line(method)[:32]} is not for this", f"use {allowed}", [("allow", allowed)]
    )


def status_of(error: CmdError) -> int:
    return error.status if isinstance(error, RequestError) else error.http_status


def headers_of(error: CmdError) -> list[tuple[str, str]]:
    match error:
        case RequestError():
            return list(error.headers)
        case ChallengedError():
            return [("www-authenticate", error.challenge)]
        case BusyError():
            return [("retry-after", str(RETRY_AFTER))]
    return []


def body_of(error: CmdError, *, json_: bool) -> tuple[str, bytes]:
    """The media type and the document."""
    if not json_:
        return "text/plain; charset=utf-8", f"{error}\n".encode()
    status = status_of(error)
    document = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": str(error),
    }
    return "application/problem+json", json.dumps(document).encode()


def accepts_json(headers: Headers) -> bool:
    """Whether JSON is asked for by name: `*/*` is what clients send for people too."""
    for name, value in headers:
        if name != b"accept":
            continue
        for part in value.decode("latin-1").lower().split(","):
            media, *parameters = (word.strip() for word in part.split(";"))
            if media in {"application/json", "application/*"} or (
                media.startswith("application/") and media.endswith("+json")
            ):
                return not any(p.replace(" ", "") in {"q=0", "q=0.0"} for p in parameters)
    return False
