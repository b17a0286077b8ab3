"""What the launcher is told (launch.c)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cmdsvc.model import Terminal

_TASK = struct.Struct("=iiiii")
_PIPE = 1 << 20
"""Bytes that a pipe holds, where the kernel grants it (pipe(7))."""


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be done in a sandbox."""

    program: Sequence[bytes]
    env: Mapping[bytes, bytes]
    script: bytes | None = None
    terminal: Terminal | None = None
    together: bool = False
    """Both outputs in one, in the order in which they were written."""


@dataclass(frozen=True, slots=True)
class Handed:
    """The server's ends of a program's streams, which do not block.

    With a terminal there are none: its master comes from inside.
    """

    inputs: int = -1
    """To write to."""
    sources: Mapping[int, int] = field(default_factory=dict)
    """What to read from, as 1 or 2."""


def hand_over(sock: socket.socket, task: Task, *, processes: int = 0) -> Handed:
    """Gives the launcher at the other end its task. OSError where that cannot be done.

    `processes`, if not 0, is RLIMIT_NPROC.
    """
    with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
        handed = Handed()
        fds = [in_memory(theirs, _words(task.program, task.env))]
        if task.script is not None:
            fds.append(in_memory(theirs, task.script))
        if task.terminal is None:
            standard, handed = _pipes(theirs, ours, together=task.together)
            fds += standard
        size = (task.terminal.columns, task.terminal.rows) if task.terminal else (-1, -1)
        message = _TASK.pack(len(task.program), processes, *size, task.script is not None)
        socket.send_fds(sock, [message], fds)
        ours.pop_all()
    return handed


def pipe() -> tuple[int, int]:
    """A large pipe: (to read, to write)."""
    ends = os.pipe2(os.O_CLOEXEC)
    with contextlib.suppress(OSError):  # the user has his share (pipe-user-pages-soft)
        fcntl.fcntl(ends[0], fcntl.F_SETPIPE_SZ, _PIPE)
    return ends


def in_memory(stack: contextlib.ExitStack, data: bytes) -> int:
    """`data` as a file in memory, read from its start; closed with `stack`."""
    fd = os.memfd_create("cmdsvc", os.MFD_CLOEXEC)
    stack.callback(os.close, fd)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _words(program: Iterable[bytes], env: Mapping[bytes, bytes]) -> bytes:
    pairs = (name + b"=" + value for name, value in env.items())
    return b"".join(word + b"\0" for word in (*program, *pairs))


def _pipes(
    theirs: contextlib.ExitStack, ours: contextlib.ExitStack, *, together: bool
) -> tuple[tuple[int, int, int], Handed]:
    def ends() -> tuple[int, int]:
        reader, writer = pipe()
        theirs_is_reader = not made
        (theirs if theirs_is_reader else ours).callback(os.close, reader)
        (ours if theirs_is_reader else theirs).callback(os.close, writer)
        os.set_blocking(writer if theirs_is_reader else reader, False)
        made.append(reader)
        return reader, writer

    made: list[int] = []
    stdin, inputs = ends()
    out, stdout = ends()
    if together:
        return (stdin, stdout, stdout), Handed(inputs, {out: 1})
    err, stderr = ends()
    return (stdin, stdout, stderr), Handed(inputs, {out: 1, err: 2})
