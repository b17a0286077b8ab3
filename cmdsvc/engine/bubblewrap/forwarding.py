"""Getting along with the host's own firewall where it drops what is forwarded.

What one table of nftables accepts, the policy of another still drops. Docker sets iptables'
FORWARD chain to DROP, so there two rules for our interfaces are added, at the end, behind all that
the chain's owner refuses by rule. A chain that iptables does not know is the operator's to change.
"""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from cmdsvc.engine import firewall
from cmdsvc.errors import EngineError


@dataclass(frozen=True, slots=True)
class Gate:
    """A chain of somebody else's that drops what is forwarded and no rule of it lets through."""

    name: str
    """As `nft list chain` wants it."""
    iptables: str | None
    """The program that can add a rule to it, if there is one."""


def gates(prefix: str) -> list[Gate]:
    """Those that do not let through what interfaces whose names begin with `prefix` forward."""
    found = []
    for chain in firewall.base_chains():
        if (chain.hook, chain.policy) == ("forward", "drop") and chain.family in ("ip", "inet"):
            where = [chain.family, chain.table, chain.name]
            if f'"{prefix}*"' not in firewall.nft(["list", "chain", *where]):
                of_iptables = where == ["ip", "filter", "FORWARD"]
                found.append(Gate(" ".join(where), _modern() if of_iptables else None))
    if legacy := _legacy():
        rules = _rules(legacy)
        if "-P FORWARD DROP" in rules and not any(f" {prefix}+ " in rule for rule in rules):
            found.append(Gate("ip filter FORWARD", legacy))
    return found


def unlock(prefix: str) -> None:
    """Lets our interfaces through every gate. EngineError, with the rules to add, if one stays."""
    shut = gates(prefix)
    for gate in shut:
        if gate.iptables is not None and not _ours(gate.iptables, prefix):
            for way in ("-i", "-o"):
                _change(gate.iptables, "-A", "FORWARD", way, f"{prefix}+", "-j", "ACCEPT")
    if shut and (still := gates(prefix)):
        raise locked(still[0], prefix)


def lock(prefix: str) -> None:
    """Takes away what `unlock` added."""
    with_forward = any(
        (chain.family, chain.table, chain.name) == ("ip", "filter", "FORWARD")
        for chain in firewall.base_chains()
    )
    for iptables in filter(None, (_modern() if with_forward else None, _legacy())):
        for rule in _ours(iptables, prefix):
            with contextlib.suppress(EngineError):  # taken away by somebody else meanwhile
                _change(iptables, "-D", *rule.split()[1:])


def locked(gate: Gate, prefix: str) -> EngineError:
    return EngineError(
        f"the firewall's chain {gate.name!r} drops what is forwarded",
        f"let through what comes from and goes to the interfaces {prefix}*:"
        f" nft add rule {gate.name} iifname '{prefix}*' accept, and oifname alike",
    )


def _ours(iptables: str, prefix: str) -> list[str]:
    return [rule for rule in _rules(iptables) if f" {prefix}+ " in rule]


def _rules(iptables: str) -> list[str]:
    return firewall.run_tool([iptables, "-w", "5", "-S", "FORWARD"]).splitlines()


def _change(iptables: str, *arguments: str) -> None:
    firewall.run_tool([iptables, "-w", "5", *arguments])


def _modern() -> str | None:
    """The iptables that is built on nftables."""
    return shutil.which("iptables-nft") or shutil.which("iptables")


def _legacy() -> str | None:
    """The old iptables, where its table is in use: to ask it otherwise would load it."""
    names = Path("/proc/thread-self/net/ip_tables_names")
    if not names.exists() or "filter" not in names.read_text(encoding="utf-8").split():
        return None
    return shutil.which("iptables-legacy") or shutil.which("iptables")
