"""What schemes of signatures have in common: a request, and what it is held against; pure.

A signature is over the body as it came, byte for byte.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import unquote_to_bytes

from cmdsvc.errors import ForbiddenError, one_line

TOLERANCE = 300.0
"""Seconds that a signed timestamp may be off, either way."""
WORD = 200
"""Characters of a sender's words (an event, an id) that are kept."""

Headers = Sequence[tuple[bytes, bytes]]
"""As they came: names in any case, several of one name apart."""


class RefusedError(ForbiddenError):
    """The request does not show that it may; the words are for its sender."""


class ChallengedError(RefusedError):
    """The same, where the sender can be told how to show it (RFC 9110, 11.6.1)."""

    http_status: ClassVar[int] = 401

    def __init__(self, what: str, challenge: str) -> None:
        super().__init__(what, "see how the hook was made")
        self.challenge = challenge
        """For WWW-Authenticate."""


@dataclass(frozen=True, slots=True)
class Post:
    """A request to a hook, as it came."""

    headers: Headers
    query: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class Verified:
    """What a request that is genuine says of itself."""

    event: str = ""
    """What it is about, in the sender's words; fit for a line."""
    same: str | None = None
    """The sender's own id of it, which a repetition has too."""
    reply: str | None = None
    """What it is to be answered with, where it only asks whether somebody is here."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request to a hook, and what it is held against."""

    options: Mapping[str, str]
    secrets: Sequence[bytes]
    headers: Mapping[bytes, Sequence[bytes]]
    """Their names in lower case."""
    query: bytes
    body: bytes
    now: float

    def header(self, name: bytes) -> bytes | None:
        """Its value, if there is one. Refused where there are two: who reads which is not sure."""
        values = self.headers.get(name, ())
        if len(values) > 1:
            raise RefusedError(f"there are {len(values)} headers {title(name)}", "send one")
        return values[0] if values else None

    def needed(self, name: bytes) -> bytes:
        value = self.header(name)
        if value is None:
            raise RefusedError(f"there is no header {title(name)}", "sign the request")
        return value

    def word(self, *names: bytes) -> str:
        """The first of these headers that is there, for a line."""
        for name in names:
            if values := self.headers.get(name):
                return word(values[0].decode(errors="replace"))
        return ""

    def signed(
        self,
        given: Iterable[bytes],
        content: Sequence[bytes],
        algorithm: str = "sha256",
        keys: Sequence[bytes] | None = None,
    ) -> None:
        """Refused unless one of `given` is the HMAC of `content` by one of the secrets."""
        known = self.secrets if keys is None else keys
        expected = [_hmac_of(key, content, algorithm) for key in known if key]
        found = [hmac.compare_digest(one, other) for one in given for other in expected]
        if not any(found):
            raise RefusedError(
                "the signature is not that of this body", "check the secret on both sides"
            )

    def moment(self, text: bytes) -> bytes:
        """A timestamp as it was written. Refused where it is not of now."""
        if not re.fullmatch(rb"[0-9]{1,12}", text):
            raise RefusedError("the timestamp is no number of seconds", "sign the request anew")
        if abs(self.now - int(text)) > TOLERANCE:
            raise RefusedError(
                f"the timestamp is more than {TOLERANCE / 60:g} minutes off", "check the clocks"
            )
        return text


def without_credentials(env: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """CGI variables less what would give the secret to whoever reads them."""
    kept = {k: v for k, v in env.items() if k not in CREDENTIALS}
    if b"QUERY_STRING" in kept:
        kept[b"QUERY_STRING"] = _without_token(kept[b"QUERY_STRING"])
    if b"REQUEST_URI" in kept:
        path, _, query = kept[b"REQUEST_URI"].partition(b"?")
        left = _without_token(query)
        kept[b"REQUEST_URI"] = path + b"?" + left if left else path
    return kept


CREDENTIALS = frozenset(
    {
        b"HTTP_AUTHORIZATION",
        b"HTTP_PROXY_AUTHORIZATION",
        b"HTTP_PROXY",
        b"HTTP_COOKIE",
        b"HTTP_X_GITLAB_TOKEN",
        b"HTTP_X_HOOK_TOKEN",
    }
)


def _hmac_of(key: bytes, content: Sequence[bytes], algorithm: str) -> bytes:
    made = hmac.new(key, digestmod=algorithm)
    for part in content:
        made.update(part)
    return made.digest()


def prefixed(value: bytes, prefix: bytes = b"sha256=") -> bytes:
    return from_hex(value.removeprefix(prefix)) if value.startswith(prefix) else b""


def from_hex(text: bytes) -> bytes:
    """b"" for what is none, which equals no signature."""
    try:
        return binascii.unhexlify(text)
    except ValueError:
        return b""


def from_base64(text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""


def pairs(query: bytes) -> list[tuple[bytes, bytes]]:
    """The fields of a query, their names decoded, their values as they came."""
    parts = (part.partition(b"=") for part in query.split(b"&"))
    return [(unquote_to_bytes(name.replace(b"+", b" ")), value) for name, _, value in parts]


def _without_token(query: bytes) -> bytes:
    """Less its field `token`; the rest as it was sent."""
    return b"&".join(field for field in query.split(b"&") if pairs(field)[0][0] != b"token")


def title(name: bytes) -> str:
    return name.decode(errors="replace").title()


def word(text: str) -> str:
    """For a line; what is longer is told apart by its digest."""
    line = one_line(text)
    if len(line) <= WORD:
        return line
    return f"{line[: WORD - 17]}~{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:16]}"
