"""What a line of a keys file, or a certificate, takes away from a login; and such lines."""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import asyncssh

OPTION = re.compile(
    r'(?P<name>[A-Za-z0-9-]++)(?:="(?P<value>(?:\\"|[^"])*+)")?+(?P<more>,|\s++|\Z)'
)
PATTERN = re.compile(r"[0-9A-Fa-f.:*?]+")
EXPIRY = re.compile(r"(\d{8})(\d{4})?(\d{2})?(Z)?", re.ASCII | re.IGNORECASE)

NEVER_GIVEN = frozenset(
    f"{no}{name}" for no in ("", "no-") for name in ("port-forwarding", "x11-forwarding", "user-rc")
) | {"no-touch-required"}
"""Options that give or take what nobody has here. A security key's touch is always required."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Addresses that a login may come from, as `text` says."""

    text: str
    allowed: tuple[Callable[[str], bool], ...] = field(compare=False)
    denied: tuple[Callable[[str], bool], ...] = field(default=(), compare=False)

    def admits(self, address: str) -> bool:
        if any(matches(address) for matches in self.denied):
            return False
        return any(matches(address) for matches in self.allowed)


def networks(text: str) -> Sources:
    """A list such as "10.0.0.0/8,2001:db8::1". ValueError for what is none."""
    return Sources(text, tuple(_network(word) for word in text.split(",")))


def patterns(text: str) -> Sources:
    """As `networks`, with wild cards (`192.0.2.*`) and exceptions (`!192.0.2.7`).

    Host names are a ValueError: who answers for an address could give it any name.
    """
    allowed: list[Callable[[str], bool]] = []
    denied: list[Callable[[str], bool]] = []
    for word in text.split(","):
        (denied if word.startswith("!") else allowed).append(_pattern(word.removeprefix("!")))
    return Sources(text, tuple(allowed), tuple(denied))


def _network(word: str) -> Callable[[str], bool]:
    network = ipaddress.ip_network(word)

    def matches(address: str) -> bool:
        try:
            ip = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        return (getattr(ip, "ipv4_mapped", None) or ip) in network

    return matches


def _pattern(word: str) -> Callable[[str], bool]:
    try:
        return _network(word)
    except ValueError:
        if not PATTERN.fullmatch(word):
            raise
    expression = re.compile(re.sub(r"\*+", ".*", word.replace(".", r"\.")).replace("?", "."))
    return lambda address: expression.fullmatch(address) is not None


@dataclass(frozen=True, slots=True)
class Restrictions:
    command: str | None = None
    """Runs instead of what the client asks for."""
    pty: bool = True
    agent_forwarding: bool = True
    verify: bool = False
    """Only a security key that has verified its user will do."""
    sources: Sources | None = None
    expires_at: float | None = None
    """Seconds since the epoch."""

    def refusal(self, address: str, now: float) -> str:
        """Why a login from `address` at `now` is refused, in words; "" where it is not."""
        if self.expires_at is not None and now >= self.expires_at:
            return "expired"
        if self.sources is not None and not self.sources.admits(address):
            return "not to be used from this address"
        return ""


FREE = Restrictions()


@dataclass(frozen=True, slots=True)
class Line:
    """A key of an authorized_keys file."""

    key: asyncssh.SSHKey
    restrictions: Restrictions = FREE
    options: str = ""
    """As they are written."""


def public_key(text: str) -> asyncssh.SSHKey:
    """The key of "TYPE BASE64 [COMMENT]". Raises KeyImportError."""
    try:
        return asyncssh.import_public_key(text.encode())
    except asyncssh.KeyImportError:
        raise
    except Exception as error:  # a broken key brings any of its parsers' own errors
        raise asyncssh.KeyImportError("Invalid public key") from error


def parse_line(text: str) -> Line:
    """A line of an authorized_keys file (sshd(8)).

    ValueError where there is no key, or where an option is not known here: to ignore a restriction
    would be to lift it.
    """
    text = text.strip()
    try:
        return Line(public_key(text))
    except asyncssh.KeyImportError:
        end, restrictions = _options(text)
        return Line(public_key(text[end:]), restrictions, text[:end].strip())


def _options(text: str) -> tuple[int, Restrictions]:
    """What the options at the beginning of a line mean, and where they end."""
    result = FREE
    seen = set()
    end = 0
    while match := OPTION.match(text, end):
        name, value = match["name"].lower(), match["value"]
        if value is not None and name in seen:
            raise ValueError(f"{name} twice")
        seen.add(name)
        result = _with(result, name, None if value is None else value.replace(r"\"", '"'))
        end = match.end()
        if match["more"] != ",":
            return end, result
    raise ValueError("not an option")


def _with(given: Restrictions, name: str, value: str | None) -> Restrictions:
    match name, value:
        case "restrict", None:
            return replace(given, pty=False, agent_forwarding=False)
        case "pty" | "no-pty", None:
            return replace(given, pty=name == "pty")
        case "agent-forwarding" | "no-agent-forwarding", None:
            return replace(given, agent_forwarding=name == "agent-forwarding")
        case "verify-required", None:
            return replace(given, verify=True)
        case "command", str():
            return replace(given, command=value)
        case "from", str():
            return replace(given, sources=patterns(value))
        case "expiry-time", str():
            return replace(given, expires_at=_expiry(value))
        case _, None if name in NEVER_GIVEN:
            return given
    raise ValueError(f"the option {name} is not known here")


def _expiry(text: str) -> float:
    """Of "YYYYMMDD[HHMM[SS]][Z]", in local time without the Z."""
    match = EXPIRY.fullmatch(text)
    if match is None:
        raise ValueError("not a time")
    date, minutes, seconds, utc = match.groups()
    moment = datetime.strptime(  # noqa: DTZ007 - the zone is added below
        f"{date}{minutes or '0000'}{seconds or '00'}", "%Y%m%d%H%M%S"
    )
    if utc:
        return moment.replace(tzinfo=UTC).timestamp()
    return time.mktime(moment.timetuple())
