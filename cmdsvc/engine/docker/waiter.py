"""How a run is handed to a container that waits for it; pure.

A container is made before it is known what it will run: JSON, in which containers are made, cannot
carry arguments of any bytes. Its first process, the waiter, prints R, reads one line, evaluates it,
runs the program that the line names as its child, and writes a trailer. Works in busybox ash and
dash; it needs env, dd, chmod, and stty for a terminal, which the bases have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Final

from cmdsvc.model import SCRIPT_PATH, SEARCH_PATH

FOLDER: Final = PurePosixPath(SCRIPT_PATH.decode()).parent.as_posix()
"""Where the waiter puts what it is handed; writable to the run's user."""

GROUP: Final = f"{FOLDER}/group"
"""Holds the number of the process group that signals go to."""

LINE: Final = 3000
"""Bytes: what is longer goes as counted blocks, for `read` takes a system call per byte."""

READY: Final = b"R"
"""What a waiter prints when it can be handed a run."""

GO: Final = b"G"
"""What it prints just before the program begins, in a terminal that is set up again."""

# It runs below an init that passes signals on to the whole process group: the waiter survives them
# (trap :), the program has the default disposition again. The shell's own remarks ("Terminated")
# go to /dev/null, 3 is the real stderr. Until the line came a terminal is raw: no echo, no limit.
# The script's file is made beforehand, which saves a fork at hand-over, and written through 4, as
# nobody may open it for writing. As long as it has not printed G nothing has begun. That a program
# cannot be executed is told by env or the shell: 126 or 127. What the program left running is
# killed and waited for before its end is told. It is told through a stream that is opened anew
# where the program's is full and was made non-blocking, and (trap 22, SIGTTOU) also in a terminal
# that the program left to another process group and that stops whoever else writes. Then it sleeps:
# the engine's tear-down of a container that ends would have the processor before the caller has the
# end. One line, for it shows in listings of processes.
WAITER: Final = "; ".join(
    (
        r"umask 022; trap : 1 2 3 4 6 8 10 11 12 13 14 15; N=$(printf '\n.'); N=${N%.}",
        "exec 3>&2 2>/dev/null; t=; [ -t 0 ] && t=$(stty -g) && stty raw -echo",
        f"exec 4>{FOLDER}/main && chmod 555 {FOLDER}/main && echo $$ >{GROUP} && printf R || exit 125",
        'IFS= read -r l || exit 125; eval "$l"; l=; exec 4>&-',
        '[ "$t" ] && stty "$t"; printf G || exit 125',
        '(exec "$@" 2>&3 3>&-); r=$?',
        "trap '' 22; kill -9 -1 && while kill -0 -1; do :; done",
        r"""end() { printf '\0%s %s\n' "$n" "$r"; }""",
        '[ "$t" ] || end >&3 || end >/proc/self/fd/3',
        "end || end >/proc/self/fd/1; sleep 1; exit $r",
    )
)


def quoted(text: bytes) -> bytes:
    """`text` as one word of a shell. Raises ValueError for a NUL, which no argument can hold."""
    if b"\0" in text:
        raise ValueError("a NUL byte")
    return b"'" + text.replace(b"'", b"'\\''") + b"'"


def hand_over(
    argv: Sequence[bytes], env: Mapping[bytes, bytes], script: bytes | None, nonce: bytes
) -> bytes:
    """What to write before the run's stdin: one line, and two counted blocks where it is much.

    `env` of any names: through env(1), as a shell would not export all of them.
    """
    arguments = _arguments(argv, env)
    begin = b"n=" + nonce
    if len(arguments) + len(script or b"") < LINE and b"\0" not in (script or b""):
        put = [b"printf %s " + _lineless(quoted(script)) + b" >&4"] if script else []
        return b"; ".join([begin, *put, _lineless(arguments)]) + b"\n"
    take = b'eval "$(' + _block(len(arguments)) + b')"'
    put = [_block(len(script)) + b" >&4 || exit 125"] if script else []
    return b"; ".join([begin, take, *put]) + b"\n" + arguments + (script or b"")


def _arguments(argv: Sequence[bytes], env: Mapping[bytes, bytes]) -> bytes:
    """Shell text that makes the positional parameters what is to be executed."""
    program, *rest = argv
    find = b""
    first = quoted(program)
    if b"/" not in program and env.get(b"PATH") != SEARCH_PATH:
        # Looked up here: env would look where the run's own PATH says.
        first = b'"$p"'
        folders = SEARCH_PATH.replace(b":", b" ")
        find = b"p=; for d in %s; do [ -f $d/%s ] && [ -x $d/%s ] && p=$d/%s && break; done; " % (
            folders,
            *3 * [quoted(program)],
        )
    words = [first, *map(quoted, rest)]
    if b"=" in program:  # env would take it for a variable
        words = [b"/bin/sh", b"-c", quoted(b'exec "$0" "$@"'), *words]
    variables = [quoted(name + b"=" + value) for name, value in env.items()]
    setting = b" ".join([b"set -- env -i --", *variables, *words])
    if find:
        missing = quoted(b'echo "$0: not found" >&2; exit 127')
        setting += b'; [ "$p" ] || set -- /bin/sh -c ' + missing + b" " + quoted(program)
    return find + setting


def _block(size: int) -> bytes:
    return b"dd bs=%d count=1 iflag=fullblock" % size


def _lineless(words: bytes) -> bytes:
    """Quoted words without a line break: $N is one."""
    return words.replace(b"\n", b"'\"$N\"'")


class Trailer:
    """Finds the waiter's last word, NUL NONCE SPACE STATUS LF, in one stream of a run's output."""

    def __init__(self, nonce: bytes) -> None:
        self.status: int | None = None
        """The program's, once the trailer was seen."""
        self._mark = b"\0" + nonce + b" "
        self._whole = re.compile(re.escape(self._mark) + rb"(\d{1,3})\r?\n")
        self._part = re.compile(re.escape(self._mark) + rb"\d{0,3}\r?")
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What of `data` is the program's; what may be the trailer's beginning is held back.

        After the trailer nothing is the program's: a process that it left behind wrote it.
        """
        if self.status is not None:
            return b""
        data = self._held + data
        self._held = b""
        if found := self._whole.search(data):
            self.status = int(found[1])
            return data[: found.start()]
        longest = len(self._mark) + 4
        start = data.find(b"\0", max(0, len(data) - longest))
        while start >= 0:
            tail = data[start:]
            if self._mark.startswith(tail) or self._part.fullmatch(tail):
                self._held = tail
                return data[:start]
            start = data.find(b"\0", start + 1)
        return data

    def rest(self) -> bytes:
        """What was held back, where the stream ended without a trailer."""
        rest, self._held = self._held, b""
        return rest
