"""Control groups: where sandboxes get theirs, what is written into them, what they tell afterwards.

Both versions, as the kernel documents them (admin-guide/cgroup-v1, admin-guide/cgroup-v2.rst). A
group of its own for every sandbox, below one that is named after the service's instance.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cmdsvc.engine import Usage
from cmdsvc.model import Limits

log = logging.getLogger(__name__)

CONTROLLERS = ("memory", "pids", "cpu")
PERIOD = 100_000
"""Microseconds, the kernel's default for CPU quotas."""
SMALLEST_QUOTA = 1000
"""Microseconds, the least that the kernel takes."""
OWN_PROCESSES = 2
"""Outside bwrap, inside what starts the program."""
REMOVAL_STEPS = 50
"""How often the removal of a group is tried, each after a longer pause, some 6 seconds in all."""


class NoCgroupsError(Exception):
    """None can be had here; the text says why."""


@dataclass(frozen=True, slots=True)
class Cgroups:
    """`folders`: controllers to the folder in which sandboxes get their groups.

    Version 1 has a folder for each hierarchy, version 2 one for all.
    """

    version: int
    folders: Mapping[str, Path]
    files: frozenset[str] = field(default_factory=frozenset)
    """Of the files that not every kernel has, those that are here."""

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(name for name in CONTROLLERS if name not in self.folders)

    @property
    def parents(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys(self.folders.values()))

    def values(self, limits: Limits) -> list[dict[str, str]]:
        """What is to be written into the files of a sandbox's groups, for each of `parents`."""
        made: dict[Path, dict[str, str]] = {}
        for controller, folder in self.folders.items():
            made.setdefault(folder, {}).update(self._values(controller, limits))
        return list(made.values())

    def change(self, name: str, limits: Limits) -> None:
        """Lowers the limits of groups that are there already. OSError."""
        for parent, values in zip(self.parents, self.values(limits), strict=True):
            for file, value in values.items():
                (parent / name / file).write_text(value)

    def _values(self, controller: str, limits: Limits) -> dict[str, str]:
        quota = str(max(SMALLEST_QUOTA, int(limits.cpus * PERIOD)))
        processes = str(limits.pids + OWN_PROCESSES)
        memory = str(limits.memory)
        match controller, self.version:
            case "memory", 1:
                values = {"memory.limit_in_bytes": memory, "memory.memsw.limit_in_bytes": memory}
            case "memory", _:
                values = {"memory.max": memory, "memory.swap.max": "0"}
            case "pids", _:
                values = {"pids.max": processes}
            case _, 1:
                values = {"cpu.cfs_period_us": str(PERIOD), "cpu.cfs_quota_us": quota}
            case _:
                values = {"cpu.max": f"{quota} {PERIOD}"}
        optional = {"memory.memsw.limit_in_bytes", "memory.swap.max"}
        return {k: v for k, v in values.items() if k not in optional or k in self.files}

    def out_of_memory(self, name: str) -> bool:
        """Whether the kernel has killed a process of this sandbox for want of memory."""
        if "memory" not in self.folders:
            return False
        file = "memory.oom_control" if self.version == 1 else "memory.events"
        try:
            text = (self.folders["memory"] / name / file).read_text()
        except OSError:
            return False
        return re.search(r"(?m)^oom_kill [1-9]", text) is not None

    def usage(self, name: str) -> Usage:
        """What a sandbox uses now.

        Without version 1's cpuacct beside its cpu, its processor time is that of the processes
        which are there, with those that they have waited for.
        """
        return Usage(self._cpu_seconds(name), self._memory(name))

    def _memory(self, name: str) -> int | None:
        if "memory" not in self.folders:
            return None
        file = "memory.usage_in_bytes" if self.version == 1 else "memory.current"
        return _number(self.folders["memory"] / name / file)

    def _cpu_seconds(self, name: str) -> float | None:
        if "cpu" in self.folders:
            folder = self.folders["cpu"] / name
            if self.version == 2:
                with contextlib.suppress(OSError):
                    text = (folder / "cpu.stat").read_text()
                    if match := re.search(r"(?m)^usage_usec ([0-9]+)$", text):
                        return int(match[1]) / 1e6
            elif (nanoseconds := _number(folder / "cpuacct.usage")) is not None:
                return nanoseconds / 1e9
        try:
            pids = (self.parents[0] / name / "cgroup.procs").read_text().split()
        except OSError:
            return None
        return sum(map(_cpu_seconds, pids))

    async def remove(self, name: str) -> None:
        """Removes a sandbox's groups, killing what is still in them."""
        await _remove([parent / name for parent in self.parents])

    async def clear(self) -> None:
        """Removes all groups of the instance: of a dead server, or at the end."""
        for parent in self.parents:
            await clear(parent)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _cpu_seconds(pid: str) -> float:
    """Of a process with what it has waited for (proc_pid_stat(5): utime, stime, cutime, cstime)."""
    try:
        text = Path("/proc", pid, "stat").read_text(errors="replace")
    except OSError:
        return 0.0
    fields = text.rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


async def clear(parent: Path) -> None:
    """Removes `parent` with every group in it."""
    with contextlib.suppress(OSError):
        await _remove([Path(entry.path) for entry in os.scandir(parent) if entry.is_dir()])
        await _remove([parent])


async def _remove(groups: Sequence[Path]) -> None:
    """In a thread: each takes the kernel a good part of a millisecond."""
    for step in range(REMOVAL_STEPS):
        groups = await asyncio.to_thread(_left, groups)
        if not groups:
            return
        # Nothing in version 1 tells when a group is empty.
        await asyncio.sleep(0.005 * (step + 1))
    log.warning("control groups stay, they are in use: %s", ", ".join(map(str, groups)))


def _left(groups: Sequence[Path]) -> list[Path]:
    return [group for group in groups if not _removed(group)]


def _removed(group: Path) -> bool:
    """Removes it, or kills what is in it; whether there is nothing more to do."""
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            for pid in (group / "cgroup.procs").read_text().split():
                if pid != "0":
                    os.kill(int(pid), signal.SIGKILL)
        return False
    return True


def find(instance: str) -> Cgroups:
    """The groups that this process may make, their folder made; NoCgroupsError if there are none."""
    name = "cmdsvc-" + re.sub(r"[^A-Za-z0-9_.-]", "-", instance)[:64]
    reasons = []
    for make in (_version_1, _version_2):
        try:
            return make(name)
        except NoCgroupsError as error:
            reasons.append(str(error))
        except OSError as error:
            reasons.append(f"{error.filename}: {error.strerror}")
    raise NoCgroupsError("; ".join(reason for reason in reasons if reason))


def _mounts() -> Iterator[tuple[str, Path, set[str]]]:
    """(type, where, options of the file system) of this process's mounts."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _source, options = after.split(" ", 2)
        where = before.split(" ")[4].encode().decode("unicode_escape")
        yield kind, Path(where), set(options.split(","))


def _version_1(name: str) -> Cgroups:
    found: dict[str, Path] = {}
    for kind, where, options in _mounts():
        if kind == "cgroup":
            for controller in options.intersection(CONTROLLERS):
                found[controller] = where / name
    if not found:
        raise NoCgroupsError("")
    for folder in found.values():
        folder.mkdir(exist_ok=True)
    swap = "memory.memsw.limit_in_bytes"
    here = "memory" in found and (found["memory"] / swap).exists()
    return Cgroups(1, found, frozenset({swap} if here else ()))


def _version_2(name: str) -> Cgroups:
    """In the group of this process if it may be divided, else beside it.

    A group that holds processes cannot be divided (no internal processes), but for the root.
    """
    root = next((where for kind, where, _ in _mounts() if kind == "cgroup2"), None)
    text = Path("/proc/self/cgroup").read_text()
    match = re.search(r"(?m)^0::(/.*)$", text)
    if root is None or match is None:
        raise NoCgroupsError("no control groups are mounted")
    own = root / match[1].lstrip("/")
    reason = ""
    for place in dict.fromkeys((own, own.parent if own != root else own)):
        try:
            return _divide(place, name)
        except OSError as error:
            reason = f"{error.filename}: {error.strerror}"
    raise NoCgroupsError(reason)


def _divide(place: Path, name: str) -> Cgroups:
    have = set((place / "cgroup.controllers").read_text().split()).intersection(CONTROLLERS)
    if "memory" not in have:
        raise OSError(errno.ENODEV, "no memory controller", str(place))
    enable = " ".join(f"+{controller}" for controller in sorted(have))
    given = set((place / "cgroup.subtree_control").read_text().split())
    if not have <= given:
        (place / "cgroup.subtree_control").write_text(enable)
    folder = place / name
    folder.mkdir(exist_ok=True)
    (folder / "cgroup.subtree_control").write_text(enable)
    probe = folder / "probe"
    probe.mkdir(exist_ok=True)
    try:
        swap = (probe / "memory.swap.max").exists()
    finally:
        probe.rmdir()
    return Cgroups(
        2,
        {controller: folder for controller in CONTROLLERS if controller in have},
        frozenset({"memory.swap.max"} if swap else ()),
    )
