"""A reply as a script shapes it: header fields, a blank line, a body (RFC 3875, 6); pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

HEAD_MAX = 64 << 10
"""Bytes of header fields."""

_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_STATUS = re.compile(r"([2-5][0-9]{2})(?: .*)?")
_END = re.compile(rb"(?:^|\n)\r?\n")

_OURS = frozenset(
    {
        # Of the connection (RFC 9110, 7.6.1), and of its framing.
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization"),
        *("proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "content-length"),
        # Of the server.
        *("date", "server", "x-content-type-options"),
        # Of the origin, which all commands share.
        *("strict-transport-security", "clear-site-data", "public-key-pins", "alt-svc"),
        *("service-worker-allowed", "nel", "report-to", "reporting-endpoints"),
    }
)
_PREFIX = "x-cmd-"


class MalformedError(ValueError):
    """What it is that is wrong."""


@dataclass(frozen=True, slots=True)
class Head:
    status: int | None
    """None where the script has not said."""
    headers: tuple[tuple[str, str], ...]

    @property
    def implied(self) -> int:
        """The status where it has not (RFC 3875, 6.2); a local redirect is for the client too."""
        return 302 if any(name == "location" for name, _ in self.headers) else 200


def split(data: bytes) -> tuple[bytes, bytes] | None:
    """The header fields and what follows the blank line; None where that has not come yet."""
    end = _END.search(data, 0, HEAD_MAX)
    return None if end is None else (data[: end.start() + 1], data[end.end() :])


def head(data: bytes) -> Head:
    """What the header fields say, less what is not the script's to set. Raises MalformedError."""
    status: int | None = None
    headers: list[tuple[str, str]] = []
    seen: set[str] = set()
    for line in data.split(b"\n"):
        line = line.removesuffix(b"\r")  # noqa: PLW2901 - the same line
        if not line:
            continue
        name, value = _field(line)
        if name in {"status", "content-type", "location"} and name in seen:
            raise MalformedError(f"there are two fields {name.title()}")
        seen.add(name)
        if name == "status":
            status = _status(value)
        elif name not in _OURS and not name.startswith(_PREFIX):
            headers.append((name, value))
    if not seen:
        raise MalformedError("there is no header field")
    return Head(status, tuple(headers))


def _field(line: bytes) -> tuple[str, str]:
    match = _FIELD.fullmatch(line)
    if match is None:
        raise MalformedError("a line is no header field")
    return match[1].decode().lower(), match[2].rstrip(b" \t").decode("latin-1")


def _status(value: str) -> int:
    match = _STATUS.fullmatch(value)
    if match is None:
        raise MalformedError("the Status is not one of 200 to 599")
    return int(match[1])
