"""The host as seen from outside the sandboxes: what runs on it, and what an engine left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import docker

from cmdsvc.engine import EngineSettings

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


def processes() -> Iterator[tuple[int, bytes]]:
    """Every process of this machine, with its arguments; not those that are dead (zombies)."""
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if line := (folder / "cmdline").read_bytes():
                    yield int(folder.name), line


def with_argument(text: str) -> list[int]:
    """Processes that have `text` among their arguments, this one and its children not counted in."""
    wanted = text.encode()
    return [pid for pid, line in processes() if wanted in line and pid != os.getpid()]


def companions(pid: int) -> list[int]:
    """All processes in the PID namespace of `pid`, itself too."""
    own = _link(pid, "ns/pid")
    return [other for other, _ in processes() if own and _link(other, "ns/pid") == own]


def user_of(pid: int) -> int:
    """The user, as the host knows it, that `pid` runs as."""
    return (PROC / str(pid)).stat().st_uid


def descendants(pid: int) -> dict[int, bytes]:
    """The children of `pid`, theirs, and so on."""
    lines = dict(processes())
    family = {pid}
    while more := {other for other in lines if _parent(other) in family} - family:
        family |= more
    return {other: lines[other] for other in family - {pid}}


def cgroups_of(pid: int) -> set[Path]:
    """The cgroup folders that hold `pid`, of every hierarchy, but for those that hold this process."""
    return _cgroups(pid) - _cgroups(os.getpid())


def written_by_all(text: str) -> int:
    """Bytes that the processes with `text` among their arguments, and their children, have written."""
    family = {other for pid in with_argument(text) for other in (pid, *descendants(pid))}
    lines = [line for pid in family for line in _text(pid, "io").splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("wchar:"))


def resident() -> int:
    """Bytes of this process's memory that are resident."""
    return int((PROC / "self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def until(condition: Callable[[], object], *, within: float = 20.0) -> None:
    """Looks again until `condition` holds: for what the kernel tells nobody of."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.02)


async def gone(left: Callable[[], object], *, within: float = 20.0) -> None:
    """Looks again until nothing is left; fails with what is left if that takes too long."""
    try:
        await until(lambda: not left(), within=within)
    except TimeoutError:
        raise AssertionError(f"left behind: {left()}") from None


def traces(settings: EngineSettings, docker_host: str = "") -> Counter[str]:
    """All that tells on this machine of an engine with these settings, outside of its data folder.

    Processes that name its instance or its data folder, or have a mount from it; cgroups
    without a process, and network namespaces, that are named after it; its containers; mounts.
    """
    found: Counter[str] = Counter()
    words = [settings.instance, str(settings.data_dir)]
    raw = [word.encode() for word in words]
    own = _link(os.getpid(), "ns/mnt")
    for pid, line in processes():
        if pid == os.getpid():
            continue
        if any(word in line for word in raw):
            found[f"process {line[:200]!r}"] += 1
        elif _link(pid, "ns/mnt") != own and words[1] in _text(pid, "mountinfo"):
            found[f"process with a mount {line[:200]!r}"] += 1
    for path in Path("/run/netns").glob("*"):
        if settings.instance in path.name:
            found[f"netns {path}"] += 1
    for folder, inner, _ in os.walk(CGROUPS):
        if settings.instance in folder and not inner and not _text_of(Path(folder, "cgroup.procs")):
            found[f"cgroup {folder}"] += 1
    for container in containers(docker_host, settings.instance):
        found[f"container {container}"] += 1
    for mount in (PROC / "self/mountinfo").read_text().splitlines():
        if any(word in mount for word in words):
            found[f"mount {mount}"] += 1
    return found


def tree(folder: Path, depth: int = 3) -> set[str]:
    """The names below `folder`, not deeper than `depth`: enough to see what is new."""
    names: set[str] = set()
    for path, folders, files in os.walk(folder):
        inside = Path(path).relative_to(folder)
        names.update(str(inside / name) for name in [*folders, *files])
        if len(inside.parts) >= depth - 1:
            folders.clear()
    return names


def containers(docker_host: str, instance: str) -> list[str]:
    """The Docker containers whose labels name `instance`; none without a Docker engine."""
    if not docker_host:
        return []
    client = docker.DockerClient(base_url=docker_host, version="auto")
    try:
        found = client.api.containers(all=True)
    finally:
        client.close()
    return [
        f"{c['Id'][:12]} {c['State']} {c['Labels']}"
        for c in found
        if instance in (c["Labels"] or {}).values()
    ]


def _cgroups(pid: int) -> set[Path]:
    folders = set()
    for line in (PROC / str(pid) / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        name = controllers.removeprefix("name=") or "unified"
        for root in (CGROUPS / name, CGROUPS):
            if (folder := root / path.lstrip("/")).is_dir() and path != "/":
                folders.add(folder)
                break
    return folders


def _link(pid: int, name: str) -> str:
    try:
        return (PROC / str(pid) / name).readlink().name
    except OSError:
        return ""


def _text(pid: int, name: str) -> str:
    return _text_of(PROC / str(pid) / name)


def _text_of(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _parent(pid: int) -> int:
    _, _, rest = _text(pid, "stat").rpartition(")")
    return int(rest.split()[1]) if rest else 0
