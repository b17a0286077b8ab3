"""Giving a prepared stub all that its sandbox is made of."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cmdsvc.engine.bubblewrap import arguments, cgroups
from cmdsvc.engine.bubblewrap.job import pipe
from cmdsvc.engine.bubblewrap.network import Namespace
from cmdsvc.engine.bubblewrap.stubs import Stub, Stubs, inodes
from cmdsvc.model import Limits, Terminal

OPEN_FILES = (1024, 4096)
"""Soft and hard."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What both kinds of sandbox, a run's and a build's, have to say."""

    program: Sequence[bytes]
    env: Mapping[bytes, bytes]
    options: bytes
    filter: str
    limits: Limits
    script: bytes | None = None
    terminal: Terminal | None = None
    namespace: Namespace | None = None
    users: int | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    """More files, read-only: path to content."""
    together: bool = False
    """Both outputs in one, in the order in which they were written."""
    agent: bool = False
    """Whether the stub is to make a socket for the caller's agent."""


def hand_over(stub: Stub, stubs: Stubs, sandbox: Sandbox) -> tuple[int, dict[int, int]]:
    """Starts the sandbox; what to write to, and what to read from as 1 or 2."""
    groups, limits = stubs.cgroups, sandbox.limits
    pids_counted = groups is not None and "pids" in groups.folders
    program = arguments.argv(
        len(sandbox.program),
        terminal=sandbox.terminal,
        processes=0 if pids_counted else limits.pids + cgroups.OWN_PROCESSES,
    )
    changed = limits != stubs.limits and sandbox.filter == "run"
    with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
        # A terminal is made inside; what bwrap itself has to say comes by a pipe all the same.
        together = sandbox.together or sandbox.terminal is not None
        standard, inputs, sources = _pipes(theirs, ours, together=together)
        files = dict(enumerate(standard))
        files[arguments.OPTIONS] = _memory(theirs, sandbox.options)
        files[arguments.WORDS] = _memory(theirs, arguments.words(sandbox.program, sandbox.env))
        files[arguments.LAUNCH] = _opened(theirs, arguments.launcher())
        files[arguments.FILTER] = _opened(theirs, arguments.filter_file(sandbox.filter))
        files[arguments.TTY_FILTER] = _opened(theirs, arguments.filter_file("tty"))
        if sandbox.script is not None:
            files[arguments.SCRIPT] = _memory(theirs, sandbox.script)
        if sandbox.users is not None:
            files[arguments.USERS] = sandbox.users
        for number, content in enumerate(sandbox.files.values(), arguments.FIRST_FILE):
            files[number] = _memory(theirs, content)
        if groups is not None and changed:
            groups.change(stub.group, limits)
        stub.begin(
            stubs.place.bwrap,
            _memory(theirs, program),
            files,
            rlimits=_rlimits(groups, limits),
            disk=f"size={limits.disk},nr_inodes={inodes(limits.disk)}" if changed else "",
            network=sandbox.namespace.fd if sandbox.namespace else None,
            agent=sandbox.agent,
        )
        for fd in {inputs, *sources}:
            os.set_blocking(fd, False)
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
