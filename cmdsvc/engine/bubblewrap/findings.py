"""What `cmdsvc check` says of this engine."""

from __future__ import annotations

from importlib import metadata

from cmdsvc.engine import Finding
from cmdsvc.engine.bubblewrap.cgroups import Cgroups
from cmdsvc.engine.bubblewrap.place import DISTRIBUTION


def findings(
    uid: int | None, groups: Cgroups | None, *, network: bool, why_not: str
) -> list[Finding]:
    """What is in force, where a sandbox could be made; `why_not` there is no network, if so."""
    version = metadata.version(DISTRIBUTION)
    found = [Finding("ok", f"bubblewrap {version} makes sandboxes")]
    if uid is None:
        found.append(
            Finding(
                "warning",
                "without root a layer has one user: packages that need others may fail",
                "run the server as root (scripts never run as root), or use the Docker engine",
            )
        )
    else:
        found.append(Finding("ok", f"scripts run as user {uid}"))
    if groups is None:
        found.append(
            Finding(
                "warning",
                "no control groups: memory is bounded per process, processors are not",
                "run the server as root, or delegate a group to it (systemd: Delegate=yes)",
            )
        )
    else:
        have = ", ".join(groups.folders)
        found.append(Finding("ok", f"control groups version {groups.version}: {have}"))
        if groups.missing:
            found.append(Finding("warning", f"not bounded: {', '.join(groups.missing)}"))
    if not network:
        found.append(Finding("warning", "runs have no network", why_not))
    else:
        found.append(Finding("ok", "runs reach the Internet, and nothing private"))
    return found
