"""Giving a prepared stub all that its sandbox is made of."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from cmdsvc.engine import launch
from cmdsvc.engine.bubblewrap import arguments, cgroups
from cmdsvc.engine.bubblewrap.network import Namespace
from cmdsvc.engine.bubblewrap.stub import Stub
from cmdsvc.engine.bubblewrap.stubs import Stubs, inodes
from cmdsvc.engine.launch import Handed, Task
from cmdsvc.errors import EngineError
from cmdsvc.model import Limits

OPEN_FILES = (1024, 4096)
"""Soft and hard."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What both kinds of sandbox, a run's and a build's, are made of."""

    options: bytes
    filter: str
    limits: Limits
    namespace: Namespace | None = None
    users: int | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    """More files, read-only: path to content."""
    agent: bool = False
    """Whether the stub is to make a socket for the caller's agent."""


def make(stub: Stub, stubs: Stubs, sandbox: Sandbox) -> int:
    """Lets `stub` become the sandbox; what bwrap has to say about it can be read from the result."""
    limits = sandbox.limits
    with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
        said, saying = launch.pipe()
        ours.callback(os.close, said)
        theirs.callback(os.close, saying)
        files = {0: _opened(theirs, Path(os.devnull)), 1: saying, 2: saying}
        files[arguments.OPTIONS] = launch.in_memory(theirs, sandbox.options)
        files[arguments.LAUNCH] = _opened(theirs, launch.program())
        files[arguments.FILTER] = _opened(theirs, arguments.filter_file(sandbox.filter))
        files[arguments.TTY_FILTER] = _opened(theirs, arguments.filter_file("tty"))
        if sandbox.users is not None:
            files[arguments.USERS] = sandbox.users
        for number, content in enumerate(sandbox.files.values(), arguments.FIRST_FILE):
            files[number] = launch.in_memory(theirs, content)
        resized = limits.disk != stub.limits.disk
        stub.begin(
            stubs.place.bwrap,
            launch.in_memory(theirs, arguments.argv()),
            files,
            rlimits=_rlimits(stubs.cgroups, limits),
            disk=f"size={limits.disk},nr_inodes={inodes(limits.disk)}" if resized else "",
            network=sandbox.namespace.fd if sandbox.namespace else None,
            agent=sandbox.agent,
        )
        os.set_blocking(said, False)
        ours.pop_all()
    return said


def hand_over(stub: Stub, stubs: Stubs, task: Task, limits: Limits) -> Handed:
    """Gives the sandbox its task. EngineError."""
    groups = stubs.cgroups
    pids_counted = groups is not None and "pids" in groups.folders
    if groups is not None and replace(limits, timeout=stub.limits.timeout) != stub.limits:
        groups.change(stub.group, limits)
    processes = 0 if pids_counted else limits.pids + cgroups.OWN_PROCESSES
    try:
        return launch.hand_over(stub.sock, task, processes=processes)
    except OSError as error:
        raise EngineError("the sandbox could not be started", f"{error}") from error


def _rlimits(groups: cgroups.Cgroups | None, limits: Limits) -> Iterable[tuple[int, int, int]]:
    yield resource.RLIMIT_CORE, 0, 0
    yield (resource.RLIMIT_NOFILE, *OPEN_FILES)
    if groups is None or "memory" not in groups.folders:
        yield resource.RLIMIT_AS, limits.memory, limits.memory


def _opened(stack: contextlib.ExitStack, path: Path) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd
