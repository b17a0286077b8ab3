"""The host's name servers, as something that is not the host can reach them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

RESOLV_CONF = Path("/etc/resolv.conf")

UPSTREAM = (
    Path("/run/systemd/resolve/resolv.conf"),
    Path("/run/NetworkManager/no-stub-resolv.conf"),
)
"""Where systemd-resolved and NetworkManager list the servers behind their stub on loopback
(systemd-resolved(8), NetworkManager.conf(5))."""

PUBLIC = (IPv4Address("1.1.1.1"), IPv4Address("9.9.9.9"))
"""Asked where every server of the host is on loopback, out of reach; Docker does alike with 8.8.8.8."""

MOST = 3
"""As many as the C library reads (MAXNS, resolv.conf(5))."""


@dataclass(frozen=True, slots=True)
class Resolvers:
    addresses: tuple[IPv4Address, ...]
    from_host: bool = True
    """False: they are `PUBLIC`, for want of a server of the host's that can be reached."""

    @property
    def conf(self) -> bytes:
        """The text of a resolv.conf; search domains are the host's own business and left out."""
        return "".join(f"nameserver {address}\n" for address in self.addresses).encode()


def host_resolvers(
    resolv_conf: Path = RESOLV_CONF, upstream: Sequence[Path] = UPSTREAM
) -> Resolvers:
    """The IPv4 name servers that are not on loopback, from the first file that has any."""
    for path in (resolv_conf, *upstream):
        if addresses := _name_servers(path):
            return Resolvers(addresses)
    return Resolvers(PUBLIC, from_host=False)


def _name_servers(path: Path) -> tuple[IPv4Address, ...]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    found: list[IPv4Address] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            address = IPv4Address(words[1])
        except ValueError:
            continue
        if not (address.is_loopback or address.is_unspecified or address in found):
            found.append(address)
    return tuple(found[:MOST])
