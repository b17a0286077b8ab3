"""Giving a prepared stub all that its sandbox is made of."""

from __future__ import annotations

import contextlib
import os
import resource
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cmdsvc.engine.bubblewrap import arguments, cgroups
from cmdsvc.engine.bubblewrap.job import pipe
from cmdsvc.engine.bubblewrap.network import Namespace
from cmdsvc.engine.bubblewrap.stubs import Stub, Stubs, inodes
from cmdsvc.model import Limits, Terminal

TASK = struct.Struct("=iiiii")
"""What the launcher is told (launch/launch.c)."""
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


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be done in a sandbox."""

    program: Sequence[bytes]
    env: Mapping[bytes, bytes]
    limits: Limits
    script: bytes | None = None
    terminal: Terminal | None = None
    together: bool = False
    """Both outputs in one, in the order in which they were written."""


def make(stub: Stub, stubs: Stubs, sandbox: Sandbox) -> int:
    """Lets `stub` become the sandbox; what bwrap has to say about it can be read from the result."""
    limits = sandbox.limits
    with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
        said, saying = pipe()
        ours.callback(os.close, said)
        theirs.callback(os.close, saying)
        files = {0: _opened(theirs, Path(os.devnull)), 1: saying, 2: saying}
        files[arguments.OPTIONS] = _memory(theirs, sandbox.options)
        files[arguments.LAUNCH] = _opened(theirs, arguments.launcher())
        files[arguments.FILTER] = _opened(theirs, arguments.filter_file(sandbox.filter))
        files[arguments.TTY_FILTER] = _opened(theirs, arguments.filter_file("tty"))
        if sandbox.users is not None:
            files[arguments.USERS] = sandbox.users
        for number, content in enumerate(sandbox.files.values(), arguments.FIRST_FILE):
            files[number] = _memory(theirs, content)
        resized = limits.disk != stub.limits.disk
        stub.begin(
            stubs.place.bwrap,
            _memory(theirs, arguments.argv()),
            files,
            rlimits=_rlimits(stubs.cgroups, limits),
            disk=f"size={limits.disk},nr_inodes={inodes(limits.disk)}" if resized else "",
            network=sandbox.namespace.fd if sandbox.namespace else None,
            agent=sandbox.agent,
        )
        os.set_blocking(said, False)
        ours.pop_all()
    return said


def hand_over(stub: Stub, stubs: Stubs, task: Task) -> tuple[int, dict[int, int]]:
    """Gives the sandbox its task; what to write to, and what to read from as 1 or 2.

    With a terminal there are none: its master comes from inside.
    """
    groups, limits = stubs.cgroups, task.limits
    pids_counted = groups is not None and "pids" in groups.folders
    if groups is not None and replace(limits, timeout=stub.limits.timeout) != stub.limits:
        groups.change(stub.group, limits)
    with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
        inputs = -1
        sources: dict[int, int] = {}
        fds = [_memory(theirs, arguments.words(task.program, task.env))]
        if task.script is not None:
            fds.append(_memory(theirs, task.script))
        if task.terminal is None:
            standard, inputs, sources = _pipes(theirs, ours, together=task.together)
            fds += standard
            for fd in {inputs, *sources}:
                os.set_blocking(fd, False)
        size = (task.terminal.columns, task.terminal.rows) if task.terminal else (-1, -1)
        processes = 0 if pids_counted else limits.pids + cgroups.OWN_PROCESSES
        message = TASK.pack(len(task.program), processes, *size, task.script is not None)
        stub.give(message, fds)
        ours.pop_all()
    return inputs, sources


def _rlimits(groups: cgroups.Cgroups | None, limits: Limits) -> Iterable[tuple[int, int, int]]:
    yield resource.RLIMIT_CORE, 0, 0
    yield (resource.RLIMIT_NOFILE, *OPEN_FILES)
    if groups is None or "memory" not in groups.folders:
        yield resource.RLIMIT_AS, limits.memory, limits.memory


def _pipes(
    theirs: contextlib.ExitStack, ours: contextlib.ExitStack, *, together: bool
) -> tuple[tuple[int, int, int], int, dict[int, int]]:
    def ends() -> tuple[int, int]:
        reader, writer = pipe()
        theirs_is_reader = not made
        (theirs if theirs_is_reader else ours).callback(os.close, reader)
        (ours if theirs_is_reader else theirs).callback(os.close, writer)
        made.append(reader)
        return reader, writer

    made: list[int] = []
    stdin, inputs = ends()
    out, stdout = ends()
    if together:
        return (stdin, stdout, stdout), inputs, {out: 1}
    err, stderr = ends()
    return (stdin, stdout, stderr), inputs, {out: 1, err: 2}


def _memory(stack: contextlib.ExitStack, data: bytes) -> int:
    """`data` as a file in memory, read from its start."""
    fd = os.memfd_create("cmdsvc", os.MFD_CLOEXEC)
    stack.callback(os.close, fd)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _opened(stack: contextlib.ExitStack, path: Path) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd
