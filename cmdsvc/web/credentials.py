"""Who sends a request: by a token, or nobody in particular."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from cmdsvc.model import Identity, Via
from cmdsvc.service.failures import WINDOW, Failures
from cmdsvc.service.sharing import Sharing
from cmdsvc.web.cgi import ACCESS_TOKEN, Headers, fields
from cmdsvc.web.problems import RequestError, unauthorized

NOBODY = Identity("", Via.ANONYMOUS)


@dataclass(frozen=True, slots=True)
class Given:
    """A token as it was given; "" for credentials that are none."""

    token: str
    scheme: str
    """Bearer or Basic."""


@dataclass(frozen=True, slots=True)
class Who:
    identity: Identity
    auth_type: str = ""
    """How that was shown (RFC 3875, 4.1.1); "" for NOBODY."""

    @property
    def known(self) -> bool:
        return self.identity.token is not None


def given(headers: Headers, query: bytes) -> Given | None:
    """The token that a request has; None where it says nothing. RequestError (400) for two."""
    found = [_of_header(value) for name, value in headers if name == b"authorization"]
    found += [
        Given(value.decode("latin-1"), "Bearer")
        for name, value in fields(query)
        if name == ACCESS_TOKEN
    ]
    if len({one.token for one in found}) > 1:
        raise RequestError(400, "there are two different credentials", "send one token")
    return found[0] if found else None


def _of_header(value: bytes) -> Given:
    scheme, _, rest = value.decode("latin-1").strip().partition(" ")
    match scheme.lower():
        case "bearer":
            return Given(rest.strip(), "Bearer")
        case "basic":
            try:
                pair = base64.b64decode(rest.strip(), validate=True)
            except (binascii.Error, ValueError):
                return Given("", "Basic")
            return Given(pair.partition(b":")[0].decode("latin-1"), "Basic")
    return Given("", "Bearer")


class Doorkeeper:
    def __init__(self, sharing: Sharing) -> None:
        self._sharing = sharing
        self._failures = Failures()

    async def who(self, headers: Headers, query: bytes, address: str) -> Who:
        """RequestError: 400 for two tokens, 401 for one that does not hold, 429 for too many."""
        token = given(headers, query)
        if token is None:
            return Who(NOBODY)
        identity = await self._sharing.identify(token.token)
        if identity is not None:  # nobody is kept out by others behind the same address
            return Who(identity, token.scheme)
        if self._failures.too_many(address):
            raise RequestError(
                429,
                "too many wrong tokens came from your address",
                "try again in a minute",
                [("retry-after", f"{WINDOW:.0f}")],
            )
        self._failures.note(address)
        raise unauthorized("the token does not hold")
