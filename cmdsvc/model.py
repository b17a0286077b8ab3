"""The nouns of the service: frozen, without I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from cmdsvc.errors import UsageError

PUBLIC = "public"
"""Everyone who is identified; nobody's user name."""

TOKEN_PREFIX = "cmd_"  # noqa: S105 - what tokens and their ids begin with, and no user name

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
"""A command's or a user's name; always matched whole."""

READY_MADE = "cmd"
"""The owner of the ready-made commands, and nobody's user name."""


def valid_name(text: str) -> bool:
    return NAME.fullmatch(text) is not None


def valid_user(text: str) -> bool:
    """Whether it can be a user's name: some names have another meaning."""
    return (
        valid_name(text) and text not in {READY_MADE, PUBLIC} and not text.startswith(TOKEN_PREFIX)
    )


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
    """A public key in the keys folder."""
    PUBLISHED = "published"
    """A public key that the keys URL publishes for the name."""
    CERTIFICATE = "certificate"
    """An OpenSSH user certificate of a trusted CA."""
    TOKEN = "token"  # noqa: S105 - a kind, no secret
    ANONYMOUS = "anonymous"
    """Nobody in particular, over HTTP: runs what its script says is for all (`[http] public`)."""
    ITSELF = "itself"
    """The service, for a command's owner: a delivery to a hook, or a schedule. It only runs."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks: fixed once, after authentication is complete.

    `key` is the SHA256 fingerprint of the public key that proved it, as ssh-keygen prints it.
    """

    user: str
    via: Via
    key: str | None = None
    operator: bool = False
    token: str | None = None
    """The token's id; `user` is then who made it, whose rights it does not have."""

    @property
    def subject(self) -> str:
        """What `:access` would name it by."""
        return self.token or self.user


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
    admins: frozenset[str] = frozenset()
    """Users who may change it, beside its owner."""
    access: frozenset[str] = frozenset()
    """Who may run it beside them: users, ids of tokens, PUBLIC."""
    env: Mapping[str, bytes] = field(default_factory=dict)
    """Its owner's environment, each value sealed."""
    anonymous: bool = False
    """Whether its script is for those too whom nobody knows; filled in where one of them asks."""

    @property
    def full_name(self) -> str:
        return f"{self.owner}/{self.name}"


class Door(StrEnum):
    """By which way a run was asked for."""

    SSH = "ssh"
    HTTP = "http"
    WEBSOCKET = "websocket"
    HOOK = "hook"
    SCHEDULE = "schedule"


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
    KILLED = "killed"
    """Somebody who may has stopped it."""
    ENGINE = "engine"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    `exit_status` is what the caller gets: the program's own 0..255, 128+n for death by signal n,
    124 timed out, 125 the engine failed, 137 out of memory or killed by somebody.
    """

    exit_status: int
    reason: Reason = Reason.EXIT
    message: str = ""
    """For the caller, where the service has something to say; one line."""


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """A version as `:history` shows it: without its source."""

    number: int
    author: str
    created_at: datetime
    digest: str
    size: int
    """Bytes of its source."""
    current: bool


@dataclass(frozen=True, slots=True)
class Token:
    """An access token as it is kept: never its secret."""

    id: str
    owner: str
    description: str
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the record of who changed what."""

    at: datetime
    user: str
    """Who did it; "" is the operator at the machine itself."""
    action: str
    """What was done, as the builtin or the command line calls it: create, grant, rotate-key ..."""
    subject: str
    """What it was done to: a command's full name, a token's id, a user."""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Output:
    """What is kept of a run's output: its beginning and its end, in the order it was written.

    Each piece is (1 or 2, bytes). `dropped` counts the bytes between the two.
    """

    head: tuple[tuple[int, bytes], ...]
    tail: tuple[tuple[int, bytes], ...]
    dropped: int = 0


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
    token: str | None = None
    """The id of the token by which it was asked for."""


@dataclass(frozen=True, slots=True)
class Hook:
    """A way for others to have a command run: POST /hook/OWNER/NAME/HOOK."""

    id: int
    """The store's own; 0 before it is there."""
    command: str
    """OWNER/NAME."""
    name: str
    scheme: str
    """How a request shows that it comes from who knows the secret."""
    options: Mapping[str, str]
    """Of the scheme: header, encoding, algorithm of `hmac`."""
    secret: bytes
    """Sealed."""
    created_at: datetime
    previous: bytes | None = None
    """The secret before, sealed; it holds for a day after `rotated_at`."""
    rotated_at: datetime | None = None
    retries: int = 5
    retry_any: bool = False
    """Whether any failure is tried again, not only "try later" (75) and a time-out."""
    ordered: bool = False
    """Whether a delivery waits for the end of those before it."""


class State(StrEnum):
    """Of a delivery."""

    WAITING = "waiting"
    """For its time, for a worker, or for those before it."""
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    """For good, unless somebody replays it."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """What is to be run, and kept until it has: what came to a hook, or a schedule's moment."""

    id: str
    command: str
    """OWNER/NAME."""
    hook: str
    """"" for a schedule's."""
    event: str
    """What it is about, in the sender's words; a schedule's planned moment (RFC 3339)."""
    received_at: datetime
    state: State = State.WAITING
    attempt: int = 0
    """How many were begun."""
    due_at: datetime | None = None
    """When the next attempt begins; None where none is to come."""
    run: str | None = None
    """The id of the last attempt's run."""
    exit_status: int | None = None
    message: str = ""
    """How the last attempt ended, where there is more to say."""
    env: Mapping[bytes, bytes] = field(default_factory=dict)
    """The request's CGI variables, without credentials. Not in listings."""
    body: bytes = b""
    """Not in listings."""
    size: int = 0
    """Bytes of the body."""
    retries: int = 5
    retry_any: bool = False


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a command runs by itself."""

    command: str
    expression: str
    """Five fields of crontab(5), or @daily and its kind."""
    zone: str
    """Of the IANA time zone database."""
    own: bool
    """Set by `:schedule`; else it is the script's own (`schedule` in its metadata)."""
    since: datetime
    """From when on it counts."""
    overlap: bool = False
    """Whether it begins although the run before has not ended."""
    last_at: datetime | None = None
    """The planned moment that was dealt with last."""
    last: str = ""
    """What became of that: begun, missed, skipped."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the first request under an Idempotency-Key was, and was answered."""

    digest: bytes
    """Of the request."""
    run: str
    """The id of its run."""
    status: int | None = None
    """None while it is under way."""
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
