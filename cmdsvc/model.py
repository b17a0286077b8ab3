"""The nouns of the service: frozen, without I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from cmdsvc.errors import UsageError

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
"""A command's or a user's name; always matched whole."""

READY_MADE = "cmd"
"""The owner of the ready-made commands, and nobody's user name."""


def valid_name(text: str) -> bool:
    return NAME.fullmatch(text) is not None


def check_name(text: str) -> str:
    if not valid_name(text):
        raise UsageError(
            f"{text[:80]!r} cannot be a name",
            "use 1 to 64 of a-z 0-9 . _ -, the first a letter or a digit",
        )
    return text


class Via(StrEnum):
    """How an identity was proved."""

    KEY = "key"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks: fixed once, after authentication is complete.

    `key` is the SHA256 fingerprint of the public key that proved it, as ssh-keygen prints it.
    """

    user: str
    via: Via
    key: str | None = None
    operator: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run may use. `disk` bounds all that the run can write, in memory or not."""

    timeout: float
    """Seconds."""
    memory: int
    """Bytes."""
    cpus: float
    """Processors: 0.5 is half of one."""
    pids: int
    """Processes and threads at once."""
    disk: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Terminal:
    term: str
    columns: int
    rows: int


class Network(StrEnum):
    """What a run reaches: the Internet and nothing private, or nothing."""

    INTERNET = "internet"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Version:
    """What one upload stored. `number` counts from 1 within a command and is never used again."""

    number: int
    source: bytes
    author: str
    created_at: datetime
    digest: str
    """Of its recipe: names the package layer that it runs on."""


@dataclass(frozen=True, slots=True)
class Command:
    owner: str
    name: str
    description: str
    version: Version

    @property
    def full_name(self) -> str:
        return f"{self.owner}/{self.name}"


class Door(StrEnum):
    """By which way a run was asked for."""

    SSH = "ssh"


SCRIPT_PATH = b"/run/cmd/main"
"""Where a script lies inside its sandbox, read-only and executable."""

WORK_DIR = b"/cmd"
"""A run's working directory and HOME: writable, gone afterwards."""

SEARCH_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Reason(StrEnum):
    """Why a run ended, where it is not by itself."""

    EXIT = "exit"
    SIGNAL = "signal"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    HANGUP = "hangup"
    ENGINE = "engine"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    `exit_status` is what the caller gets: the program's own 0..255, 128+n for death by signal n,
    124 timed out, 125 the engine failed, 137 out of memory.
    """

    exit_status: int
    reason: Reason = Reason.EXIT
    message: str = ""
    """For the caller, where the service has something to say; one line."""


@dataclass(frozen=True, slots=True)
class Run:
    """One invocation as it is kept."""

    id: str
    command: str
    """OWNER/NAME at the time."""
    version: int
    user: str
    door: Door
    started_at: datetime
    ended_at: datetime | None = None
    outcome: Outcome | None = field(default=None)
