"""Who sent a request, and to which address: also where a proxy stands between; pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

Headers = Sequence[tuple[bytes, bytes]]

PORTS = {"http": 80, "https": 443}
_HOST = re.compile(
    r"(?P<host>[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:(?P<port>[0-9]{1,5}))?"
)
# RFC 7239, 4: pairs of a token and a token or a quoted string.
_PAIR = re.compile(r'\s*(?P<name>[A-Za-z]+)=(?:"(?P<quoted>[^"\\]*)"|(?P<plain>[^\s;,"]*))\s*')
_HOPS_MAX = 32


@dataclass(frozen=True, slots=True)
class Origin:
    address: str
    """Of the client, as an IP address."""
    scheme: str
    """http or https, as the client has it."""
    host: str
    """That the client asked, by name or address."""
    port: int


class Proxies:
    """Those whose word counts: addresses or networks. ValueError for what is neither."""

    def __init__(self, words: Iterable[str] = ()) -> None:
        self._networks = [ipaddress.ip_network(word, strict=False) for word in words]

    def trusts(self, address: str) -> bool:
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(found in network for network in self._networks)

    def origin(self, peer: Origin, headers: Headers) -> Origin:
        """`peer` is the connection's own: its other end, and the address that was connected to.

        X-Forwarded-* is heard before Forwarded, which proxies that do not know it pass on, as they
        do X-Forwarded-Port, which is not heard at all: the host has the port, or the scheme's is it.
        """
        said = _Said(headers)
        host = said.last(b"host")
        address = plain(peer.address)
        asked = _at(peer, host)
        if not self._networks or not self.trusts(address):
            # The port is that of the connection (RFC 3875, 4.1.15).
            return replace(asked, address=address, port=peer.port)
        return self._through(replace(asked, address=address), said)

    def _through(self, peer: Origin, said: _Said) -> Origin:
        if hops := said.words(b"x-forwarded-for"):
            found = replace(peer, address=self._client(hops) or peer.address)
            found = _by(found, said.last(b"x-forwarded-proto"))
            return _at(found, said.last(b"x-forwarded-host") or said.last(b"host"))
        if elements := [_pairs(word) for word in said.words(b"forwarded")]:
            address = self._client([pairs.get("for", "") for pairs in elements])
            found = replace(peer, address=address or peer.address)
            found = _by(found, elements[-1].get("proto", ""))
            return _at(found, elements[-1].get("host", "") or said.last(b"host"))
        return peer

    def _client(self, hops: Sequence[str]) -> str:
        """The nearest that is no proxy of ours; "" where that is not an address."""
        found = ""
        for hop in reversed(hops[-_HOPS_MAX:]):
            address = _address(hop)
            if not address:
                return found
            found = address
            if not self.trusts(found):
                break
        return found


class _Said:
    def __init__(self, headers: Headers) -> None:
        self._headers = headers

    def words(self, name: bytes) -> list[str]:
        """Of all headers of that name, as one list."""
        values = (value.decode("latin-1") for n, value in self._headers if n == name)
        return [word.strip() for value in values for word in value.split(",") if word.strip()]

    def last(self, name: bytes) -> str:
        """What the nearest proxy said."""
        words = self.words(name)
        return words[-1] if words else ""


@lru_cache(maxsize=1024)
def plain(address: str) -> str:
    """An IPv4 address as such, also where an IPv6 socket has it."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found)


def _address(word: str) -> str:
    """Of `1.2.3.4`, `1.2.3.4:5`, `::1`, `[::1]`, `[::1]:5`; "" for anything else."""
    if word.startswith("["):
        word = word[1:].partition("]")[0]
    elif word.count(":") == 1:
        word = word.partition(":")[0]
    try:
        ipaddress.ip_address(word)
    except ValueError:
        return ""
    return plain(word)


def _pairs(element: str) -> dict[str, str]:
    found = (_PAIR.fullmatch(part) for part in element.split(";"))
    return {p["name"].lower(): p["quoted"] or p["plain"] or "" for p in found if p}


def _by(origin: Origin, scheme: str) -> Origin:
    scheme = scheme.lower()
    if scheme not in PORTS:
        return origin
    return replace(origin, scheme=scheme, port=PORTS[scheme])


def _at(origin: Origin, host: str) -> Origin:
    """With the host that the client named, if it is one, and its port, if it has one."""
    match = _HOST.fullmatch(host)
    if match is None:
        return origin
    port = int(match["port"] or 0)
    return replace(
        origin, host=match["host"].lower(), port=port if 0 < port < 65536 else origin.port
    )
