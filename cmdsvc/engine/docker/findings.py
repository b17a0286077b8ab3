"""What the engine says of itself, for the operator; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from cmdsvc.engine import Finding

_LIMITS: Final = {
    "MemoryLimit": "memory",
    "SwapLimit": "swap",
    "CpuCfsQuota": "processors",
    "PidsLimit": "processes",
}


def of(
    host: str,
    version: Mapping[str, Any],
    info: Mapping[str, Any],
    runtime: str | None,
    blocked: bool | None,
) -> list[Finding]:
    """From the answers to GET /version and /info.

    `blocked`: whether the firewall holds runs to the Internet, None where that cannot be told.
    """
    return [
        Finding("ok", f"Docker engine {version['Version']} at {host}, API {version['ApiVersion']}"),
        *_runtime(info, runtime),
        *_limits(info),
        *_security(info),
        _network(blocked),
    ]


def _runtime(info: Mapping[str, Any], runtime: str | None) -> Iterator[Finding]:
    if runtime is None:
        return
    known = sorted(info.get("Runtimes") or {})
    if runtime in known:
        yield Finding("ok", f"runs are isolated by the runtime {runtime!r}")
    else:
        yield Finding(
            "error",
            f"the Docker engine does not know the runtime {runtime!r}",
            f"it knows {', '.join(known)}: correct CMDSVC_DOCKER_RUNTIME or the engine's daemon.json",
        )


def _network(blocked: bool | None) -> Finding:
    if blocked:
        return Finding("ok", "runs reach the Internet and nothing private")
    if blocked is None:
        return Finding(
            "warning",
            "it cannot be told from here whether runs reach private addresses",
            "as root: cmdsvc firewall, then cmdsvc check",
        )
    return Finding(
        "warning",
        "runs with a network also reach private addresses, this machine's among them",
        "as root: cmdsvc firewall",
    )


def _limits(info: Mapping[str, Any]) -> Iterator[Finding]:
    missing = [name for key, name in _LIMITS.items() if not info.get(key)]
    if missing:
        yield Finding(
            "warning",
            f"the Docker engine cannot limit a run's {', '.join(missing)}",
            "turn on the kernel's control groups for it",
        )
    else:
        yield Finding("ok", "runs are limited in memory, processors and processes")


def _security(info: Mapping[str, Any]) -> Iterator[Finding]:
    options = " ".join(info.get("SecurityOptions") or ())
    if "name=seccomp" not in options:
        yield Finding(
            "warning",
            "the Docker engine does not filter system calls",
            "use a kernel and an engine with seccomp",
        )
