"""One family for everything that the service itself refuses or fails at.

An error knows what it means to a caller over SSH (an exit status, after sysexits.h and the
shell's own 124..127) and over HTTP, says in one line what happened, and what to do about it.
"""

from __future__ import annotations

from typing import ClassVar


class CmdError(Exception):
    """What happened, in one line; `hint` says what to do. `str()` is both, fit for a caller."""

    exit_status: ClassVar[int] = 70
    http_status: ClassVar[int] = 500

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what, hint)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return one_line(f"{self.what}; {self.hint}" if self.hint else self.what)


class UsageError(CmdError):
    """The words of the request are off (EX_USAGE)."""

    exit_status = 64
    http_status = 400


class DataError(CmdError):
    """What was uploaded cannot be used (EX_DATAERR)."""

    exit_status = 65
    http_status = 422


class InternalError(CmdError):
    """A fault of the service itself (EX_SOFTWARE); details are in its log."""


class ExistsError(CmdError):
    """It exists already (EX_CANTCREAT)."""

    exit_status = 73
    http_status = 409


class BusyError(CmdError):
    """A limit is reached or a source cannot be had: the same request may work later (EX_TEMPFAIL)."""

    exit_status = 75
    http_status = 503


class TooManyError(BusyError):
    """A limit of the caller's own is reached."""

    http_status = 429


class ForbiddenError(CmdError):
    """Known, but not allowed (EX_NOPERM)."""

    exit_status = 77
    http_status = 403


class TimedOutError(CmdError):
    """The run took longer than its limit (as timeout(1) says it)."""

    exit_status = 124
    http_status = 504


class EngineError(CmdError):
    """The engine failed or cannot be reached (as `docker run` says it)."""

    exit_status = 125
    http_status = 502


class NotExecutableError(CmdError):
    """Found, but it cannot be executed (as the shell says it)."""

    exit_status = 126
    http_status = 500


class NotFoundError(CmdError):
    """There is no such command, or none that this caller may know of."""

    exit_status = 127
    http_status = 404


def one_line(text: str) -> str:
    """`text` fit for a line of its own: printable, each run of white space one space."""
    return " ".join(printable(text).split())


def printable(text: str) -> str:
    """`text` with every character that could move a terminal's cursor or forge a log line replaced."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )
