"""What a run's packets may reach, as nftables rulesets: the Internet, and nothing else.

A ruleset is one table of its own, replaced in one transaction, so that there is no moment without
it. Its chains come before the usual filter chains (priority filter - 10). Where they accept, the
chains of others still have their say: an accept ends one base chain only (nft(8), VERDICT
STATEMENT); where they refuse, nobody can bring the packet back.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Self

from cmdsvc.errors import EngineError

BLOCKED = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carriers' own, and the runs'
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local, the metadata services of clouds among it
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/3",  # multicast, reserved, broadcast
    )
)
"""All of IPv4 that is not the Internet (IANA's special-purpose registry, RFC 6890). IPv6 is
dropped altogether."""

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

TOOL_TIMEOUT = 10.0
"""Seconds for one call of a tool, which takes a few milliseconds."""

_INSTANCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")


@dataclass(frozen=True, slots=True)
class Destination:
    """An address that runs may reach although it is not of the Internet; on one port, or on all."""

    address: IPv4Address
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """From ADDRESS or ADDRESS:PORT. ValueError if it is neither."""
        address, colon, port = text.partition(":")
        if colon and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise ValueError(f"{text!r}: write ADDRESS or ADDRESS:PORT")
        return cls(IPv4Address(address), int(port) if colon else None)


@dataclass(frozen=True, slots=True)
class Ruleset:
    """One table of the family inet, and the text for `nft -f -` that puts it in place."""

    table: str
    text: str


@dataclass(frozen=True, slots=True)
class BaseChain:
    """Where the kernel enters a table's rules."""

    family: str
    table: str
    name: str
    hook: str
    policy: str


def pool_table(instance: str) -> str:
    return f"cmdsvc_{_checked(_INSTANCE, instance)}"


def bridge_table(instance: str) -> str:
    return f"cmdsvc_{_checked(_INSTANCE, instance)}_docker"


def pool_ruleset(
    table: str,
    *,
    prefix: str,
    block: IPv4Network,
    resolvers: Iterable[IPv4Address],
    allowed: Iterable[Destination] = (),
    opened: Iterable[str] = (),
) -> Ruleset:
    """For network namespaces whose ends on the host have names that begin with `prefix`.

    They have their addresses out of `block` and leave with the host's. Only `resolvers` can be
    asked, on port 53, where they are on a blocked address or on the host itself, and `allowed`
    be reached wherever they are. `opened` is
    kept in the table for who comes after: the interfaces that forward only because of us.
    """
    match = f'"{_checked(_INTERFACE, prefix)}*"'
    names = ", ".join(f'"{_checked(_INTERFACE, name)}"' for name in sorted(opened))
    return _ruleset(
        table,
        _filters(match, resolvers, allowed, f"ip saddr != {block} drop"),
        _set("opened", "ifname", names),
        f"""\
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {block} oifname != {match} masquerade
  }}
""",
    )


def bridge_ruleset(
    instance: str,
    bridge: str,
    resolvers: Iterable[IPv4Address],
    allowed: Iterable[Destination] = (),
) -> Ruleset:
    """For the containers on Docker's network `bridge` (an interface's name).

    Docker itself does the NAT. Packets between two containers come by here only where the kernel
    shows bridged packets to IP's chains (br_netfilter); keeping those apart is the network's own
    option, `com.docker.network.bridge.enable_icc=false`, which sees to that.
    """
    match = f'"{_checked(_INTERFACE, bridge)}"'
    return _ruleset(bridge_table(instance), _filters(match, resolvers, allowed))


def apply(ruleset: Ruleset) -> None:
    """Puts it in place of what its table was before. EngineError if it cannot be."""
    nft(["-f", "-"], ruleset.text)


def remove(table: str) -> None:
    """Takes the table away, if it is there."""
    nft(["-f", "-"], f"add table inet {table}\ndelete table inet {table}\n")


def base_chains() -> list[BaseChain]:
    """Those of every table on this machine, which iptables has too where it is built on nftables."""
    chains = [item["chain"] for item in _json(["-j", "list", "chains"]) if "chain" in item]
    return [
        BaseChain(c["family"], c["table"], c["name"], c["hook"], c.get("policy", "accept"))
        for c in chains
        if "hook" in c
    ]


def is_applied(table: str) -> bool:
    return any(chain.family == "inet" and chain.table == table for chain in base_chains())


def opened(table: str) -> frozenset[str]:
    """What `pool_ruleset` was told to keep; nothing where there is no such table."""
    if not is_applied(table):
        return frozenset()
    sets = [item["set"] for item in _json(["-j", "list", "table", "inet", table]) if "set" in item]
    return frozenset(name for s in sets if s["name"] == "opened" for name in s.get("elem", ()))


def find_tool(name: str, package: str) -> str:
    """The path of a program. EngineError, naming the package to install, if it is not here."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}")
    if found is None:
        raise EngineError(f"the program {name!r} is not here", f"install the package {package}")
    return found


def run_tool(argv: Sequence[str], text: str = "") -> str:
    """What the program prints. EngineError with its first words if it fails or takes too long."""
    name = Path(argv[0]).name
    try:
        done = subprocess.run(
            argv,
            input=text.encode(),
            capture_output=True,
            check=False,
            timeout=TOOL_TIMEOUT,
            env={"PATH": SYSTEM_PATH, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"{name} could not be run: {error}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        hint = "be root, with CAP_NET_ADMIN" if "not permitted" in said else ""
        raise EngineError(f"{name} failed: {said[:300] or f'status {done.returncode}'}", hint)
    return done.stdout.decode(errors="replace")


def nft(arguments: Sequence[str], text: str = "") -> str:
    """What the program nft prints. EngineError says what to install or who to be."""
    return run_tool([find_tool("nft", "nftables"), *arguments], text)


def _json(arguments: Sequence[str]) -> list[dict[str, dict[str, str]]]:
    items: list[dict[str, dict[str, str]]] = json.loads(nft(arguments))["nftables"]
    return items


def _checked(pattern: re.Pattern[str], name: str) -> str:
    if pattern.fullmatch(name) is None:
        raise EngineError(f"{name!r} cannot be in a firewall's rules", "use letters and digits")
    return name


def _set(name: str, kind: str, elements: str, flags: str = "") -> str:
    lines = [f"type {kind}"]
    if flags:
        lines.append(f"flags {flags}")
    if elements:
        lines.append(f"elements = {{ {elements} }}")
    return f"  set {name} {{ {'; '.join(lines)}; }}\n"


def _filters(
    match: str, resolvers: Iterable[IPv4Address], allowed: Iterable[Destination], *first: str
) -> str:
    """What comes from the interfaces `match`, and what goes to them.

    To the host itself nothing gets but questions to a resolver and what is allowed, whichever of its addresses is
    meant: all that is local arrives at the input hook. What somebody's rule has sent elsewhere
    (dnat: a published port of a container) is not what the run asked for. TCP is answered by a
    reset, which is at once; the kernel sends only one ICMP message a second (icmp(7), icmp_ratelimit).
    """
    before = "".join(f"    {rule}\n" for rule in ("meta nfproto ipv6 drop", *first))
    passes = """\
    ip daddr @resolvers meta l4proto { tcp, udp } th dport 53 accept
    ip daddr @allowed accept
    meta l4proto { tcp, udp } ip daddr . th dport @allowed_ports accept
"""
    allowed = tuple(allowed)
    hosts = ", ".join(str(d.address) for d in allowed if d.port is None)
    ports = ", ".join(f"{d.address} . {d.port}" for d in allowed if d.port is not None)
    return f"""\
{_set("blocked", "ipv4_addr", ", ".join(map(str, BLOCKED)), "interval")}\
{_set("resolvers", "ipv4_addr", ", ".join(map(str, resolvers)))}\
{_set("allowed", "ipv4_addr", hosts)}\
{_set("allowed_ports", "ipv4_addr . inet_service", ports)}\
  chain refuse {{
    meta l4proto tcp reject with tcp reset
    reject with icmp type admin-prohibited
    drop
  }}
  chain to_host {{
{before}{passes}\
    goto refuse
  }}
  chain to_world {{
{before}{passes}\
    ip daddr @blocked goto refuse
    ct status dnat goto refuse
  }}
  chain from_world {{
    ct state established,related accept
    goto refuse
  }}
  chain input {{
    type filter hook input priority filter - 10; policy accept;
    iifname {match} jump to_host
  }}
  chain forward {{
    type filter hook forward priority filter - 10; policy accept;
    iifname {match} jump to_world
    oifname {match} jump from_world
  }}
"""


def _ruleset(table: str, *parts: str) -> Ruleset:
    head = f"add table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n"
    return Ruleset(table, f"{head}{''.join(parts)}}}\n")
