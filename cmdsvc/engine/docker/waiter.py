"""How a run is handed to a container that waits for it; pure.

A container is made before it is known what it will run: JSON, in which containers are made, cannot
carry arguments of any bytes. Its first process, the waiter, prints R and reads what to do: one line of
shell text that runs the program as its child and writes a trailer. Works in busybox ash and dash; it
needs env, dd, chmod, and stty for a terminal, which the bases have.
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
"""Bytes of a script above which it goes as a block: a shell makes several copies of a word."""

READY: Final = b"R"
"""What a waiter prints when it can be handed a run."""

BLOCK: Final = b"B"
"""What it prints when it can be handed the script, where that is a block."""

GO: Final = b"G"
"""What it prints just before the program begins, in a terminal that is set up again."""

# The script's file is made beforehand, which saves a fork at hand-over, and written through 4, as
# nobody may open it for writing. The shell's own remarks ("Terminated") go to /dev/null, 3 is the real
# stderr. Until the line came a terminal is raw: no echo, no limit. The shell that waits then takes what
# it is to do as its script: so it reads a kilobyte at once, where `read` takes a system call per byte.
# It may have read too far: nothing is sent behind the line before it has answered. Its stdout is 5 and
# not the terminal: a shell that has one at both ends takes what comes for keys that somebody presses.
WAITER: Final = "; ".join(
    (
        "umask 022; exec 3>&2 2>/dev/null; t=; [ -t 0 ] && t=$(stty -g) && stty raw -echo",
        f"exec 4>{FOLDER}/main && chmod 555 {FOLDER}/main && echo $$ >{GROUP} && printf R || exit 125",
        f'exec env -i PATH={SEARCH_PATH.decode()} /bin/sh -s "$t" 5>&1 >/dev/null',
    )
)

# It runs below an init that passes signals on to the whole process group: the waiter survives them
# (trap :), the program has the default disposition again. Nothing of a line that was cut off is
# done: it is one command, in braces. As long as it has not printed G nothing has begun. That a program
# cannot be executed is told by env or the shell: 126 or 127. What the program left running is killed
# and waited for before its end is told. It is told through a stream that is opened anew where the
# program's is full and was made non-blocking, and (trap 22, SIGTTOU) also in a terminal that the
# program left to another process group and that stops whoever else writes. Then it sleeps: the engine's
# tear-down of a container that ends would have the processor before the caller has the end.
_BEGIN: Final = b"{ exec >&5 5>&-; trap : 1 2 3 4 6 8 10 11 12 13 14 15; t=$1; n="
_RUN: Final = b"""exec 4>&-; [ "$t" ] && stty "$t"; printf G || exit 125; """
_END: Final = rb"""; r=$?; trap '' 22; kill -9 -1 && while kill -0 -1; do :; done; end() { printf '\0%s %s\n' "$n" "$r"; }; [ "$t" ] || end >&3 || end >/proc/self/fd/3; end || end >/proc/self/fd/1; sleep 1; exit $r; }
"""

_VARIABLE: Final = re.compile(rb"[A-Za-z][A-Za-z0-9_]*")
_SHELLS_OWN: Final = frozenset(
    b"ATTY ENV EPOCHREALTIME EPOCHSECONDS FUNCNAME HISTFILE HISTSIZE IFS LINENO MAIL MAILPATH OLDPWD"
    b" OPTARG OPTIND PPID PS1 PS2 PS4 PWD RANDOM SHLVL".split()
)
"""Names that mean something to one of the shells, which may not take or keep any value."""


def quoted(text: bytes) -> bytes:
    """`text` as one word of a shell. Raises ValueError for a NUL, which no argument can hold."""
    if b"\0" in text:
        raise ValueError("a NUL byte")
    return b"'" + text.replace(b"'", b"'\\''") + b"'"


def hand_over(
    argv: Sequence[bytes], env: Mapping[bytes, bytes], script: bytes | None, nonce: bytes
) -> tuple[bytes, bytes]:
    """What to write before the run's stdin: a line, and a block once BLOCK was heard; b"" for none."""
    block = b""
    put = b""
    if script and (len(script) > LINE or b"\0" in script):
        block = script + b"\n"  # one that was cut off has no end of a line behind it
        take = b"; printf B; dd bs=%d count=1 iflag=fullblock >&4 && read -r l || exit 125"
        put = take % len(script)
    elif script:
        put = b"; printf %s " + quoted(script) + b" >&4"
    set_up = b""
    by_itself = argv[0] == SCRIPT_PATH and (script or b"").startswith(b"#!")
    if by_itself and env and all(map(_exported, env)):  # `export` of nothing prints all there is
        # The shell would do what env does, but take a file without #! for a script of its own.
        variables = (b" " + name + b"=" + quoted(value) for name, value in env.items())
        set_up = b"unset SHLVL PWD PATH; export" + b"".join(variables) + b"; "
        arguments = b"set -- " + b" ".join(map(quoted, argv))
    else:
        arguments = _arguments(argv, env)
    run = b'(%sexec "$@" 2>&3 3>&-)' % set_up
    return b"".join((_BEGIN, nonce, put, b"; ", arguments, b"; ", _RUN, run, _END)), block


def _exported(name: bytes) -> bool:
    """Whether each of the shells hands it on as it was given."""
    return bool(_VARIABLE.fullmatch(name)) and name not in _SHELLS_OWN


def _arguments(argv: Sequence[bytes], env: Mapping[bytes, bytes]) -> bytes:
    """Shell text that makes the positional parameters what is to be executed.

    `env` of any names: through env(1), as a shell would not export all of them.
    """
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
