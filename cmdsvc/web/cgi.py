"""What a script is told of a request: CGI/1.1 (RFC 3875) meta-variables, and arguments; pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from cmdsvc.errors import UsageError
from cmdsvc.web.forwarded import Origin

Headers = Sequence[tuple[bytes, bytes]]
"""As they came, their names in lower case."""

ACCESS_TOKEN = b"access_token"

NAMES = re.compile(rb"[a-z0-9-]+")
"""What makes one variable and no other: `X_A` and `X-A` would be the same."""
WITHHELD = frozenset(
    {
        *(b"authorization", b"proxy-authorization"),
        b"proxy",  # HTTP_PROXY means something to programs: https://httpoxy.org
        *(b"content-length", b"content-type"),  # these have variables of their own
    }
)
# W3C Trace Context, 3.2: version (not ff), trace id, parent id (neither all zero), flags.
TRACEPARENT = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)


@dataclass(frozen=True, slots=True)
class Target:
    """What a path below /run/ or /hook/ means."""

    owner: str
    name: str
    rest: tuple[bytes, ...]
    """The segments after the name, each decoded; an empty one at the end is none."""
    script_name: bytes
    path_info: bytes


def target(path: bytes) -> Target | None:
    """Of /DOOR/OWNER/NAME[/...], as it was sent; None where it has not as many parts."""
    parts = path.split(b"/")
    if len(parts) < 4 or parts[0]:
        return None
    door, owner, name = (unquote_to_bytes(part) for part in parts[1:4])
    rest = parts[4:]
    path_info = b"/" + unquote_to_bytes(b"/".join(rest)) if rest else b""
    if rest and not rest[-1]:
        rest.pop()
    return Target(
        owner=owner.decode(errors="replace"),
        name=name.decode(errors="replace"),
        rest=tuple(map(unquote_to_bytes, rest)),
        script_name=b"/" + b"/".join((door, owner, name)),
        path_info=path_info,
    )


def fields(query: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The fields of a query, decoded."""
    for field in query.split(b"&"):
        if field:
            name, _, value = field.partition(b"=")
            yield _decoded(name), _decoded(value)


def arguments(where: Target, query: bytes) -> list[bytes]:
    """The path's, then those of each `args`, split on white space. UsageError (400) for a NUL."""
    args = list(where.rest)
    for name, value in fields(query):
        if name == b"args":
            args += value.split()
    if b"\0" in where.path_info or any(b"\0" in arg for arg in args):
        raise UsageError("a NUL byte in an argument", "leave it out, or send it in the body")
    return args


def without_token(query: bytes) -> bytes:
    """As it was sent, less the field that is a credential."""
    if b"%" not in query and ACCESS_TOKEN not in query:
        return query
    return b"&".join(
        field for field in query.split(b"&") if _decoded(field.partition(b"=")[0]) != ACCESS_TOKEN
    )


def request_uri(path: bytes, query: bytes) -> bytes:
    """As it was sent, less the credential."""
    left = without_token(query)
    return path + b"?" + left if left else path


def variables(
    *,
    method: str,
    protocol: str,
    path: bytes,
    query: bytes,
    headers: Headers,
    where: Target,
    origin: Origin,
    auth_type: str = "",
    user: str = "",
    token: str = "",
) -> dict[bytes, bytes]:
    """The meta-variables of a request but those of the service itself (SERVER_SOFTWARE, CMD_*).

    `protocol` is such as HTTP/1.1; `auth_type` "" where nobody in particular asks.
    """
    made = {
        b"GATEWAY_INTERFACE": b"CGI/1.1",
        b"PATH_INFO": where.path_info,
        b"QUERY_STRING": without_token(query),
        b"REMOTE_ADDR": origin.address.encode(),
        b"REQUEST_METHOD": method.encode(),
        b"REQUEST_SCHEME": origin.scheme.encode(),
        b"REQUEST_URI": request_uri(path, query),
        b"SCRIPT_NAME": where.script_name,
        b"SERVER_NAME": origin.host.encode(),
        b"SERVER_PORT": str(origin.port).encode(),
        b"SERVER_PROTOCOL": protocol.encode(),
    }
    if origin.scheme == "https":
        made[b"HTTPS"] = b"on"
    if auth_type:
        made[b"AUTH_TYPE"] = auth_type.encode()
        made[b"REMOTE_USER"] = user.encode()
    if token:
        made[b"CMD_TOKEN"] = token.encode()
    return {**_of_headers(headers), **made}


def _of_headers(headers: Headers) -> dict[bytes, bytes]:
    made: dict[bytes, bytes] = {}
    chunked = False
    for name, value in headers:
        match name:
            case b"content-length" | b"content-type":
                made[name.upper().replace(b"-", b"_")] = value
            case b"transfer-encoding":
                chunked = True
            case b"traceparent" if TRACEPARENT.fullmatch(value):
                made[b"TRACEPARENT"] = value
        if name in WITHHELD or not NAMES.fullmatch(name):
            continue
        key = b"HTTP_" + name.upper().replace(b"-", b"_")
        told = _without_token_in(value) if name == b"referer" else value
        if key in made:
            made[key] += (b"; " if name == b"cookie" else b", ") + told
        else:
            made[key] = told
    if chunked:
        made.pop(b"CONTENT_LENGTH", None)
    return made


def _without_token_in(url: bytes) -> bytes:
    path, mark, query = url.partition(b"?")
    return request_uri(path, query) if mark else url


def _decoded(text: bytes) -> bytes:
    return unquote_to_bytes(text.replace(b"+", b" "))
