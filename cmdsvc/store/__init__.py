"""What is kept: users, commands with their versions, runs. In the service's words, never rows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from pathlib import Path
from typing import Protocol

from cmdsvc.model import (
    Answer,
    Command,
    Delivery,
    Entry,
    Hook,
    Outcome,
    Output,
    Run,
    Schedule,
    State,
    Token,
    Version,
    VersionInfo,
)
from cmdsvc.store.kinds import Found, kind


@dataclass(frozen=True, slots=True)
class Listing:
    """A command as a list shows it: without its source."""

    owner: str
    name: str
    description: str
    version: int
    """The number of the current one."""
    updated_at: datetime
    """When its current version became that."""

    @property
    def full_name(self) -> str:
        return f"{self.owner}/{self.name}"


@dataclass(frozen=True, slots=True)
class Notice:
    """What the operator says to everyone; `closed`: no new runs meanwhile (75)."""

    text: str
    closed: bool = False


class Taken(Enum):
    """What became of a delivery that is to be stored."""

    NEW = auto()
    REPEATED = auto()
    """It is here already: the sender sent it again."""
    FULL = auto()
    """Too many wait for this command; it is not stored."""


class Ticked(Enum):
    """What became of a schedule's moment."""

    BEGUN = auto()
    TAKEN = auto()
    """Another server has dealt with it, or it is not scheduled any more."""
    SKIPPED = auto()
    """The run before has not ended, or too many wait; noted."""
    MISSED = auto()
    """As it was asked for; noted."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A delivery to be stored. `hook_id` None: it is a schedule's."""

    delivery: Delivery
    hook_id: int | None
    same: str
    """What a repetition has too: the sender's id of it, or a digest."""
    window: float | None
    """Seconds for which an equal `same` is a repetition; None: as long as the first is kept."""


@dataclass(frozen=True, slots=True)
class Backlog:
    waiting: int
    running: int
    failed: int
    oldest: datetime | None
    """When the oldest that waits was received."""


Place = tuple[str, str, str, str]
"""Where a sealed value is: "env" (a variable) or "hook" (a secret), owner, command, name."""

Reseal = Callable[[Place, bytes], bytes]
"""Takes a place and its sealed value, and returns another sealed value."""


class Store(Protocol):
    """Made open by `open_store`; `aclose` is the last call.

    Every change is whole or not at all, and kept once the call has returned. What is cancelled
    happens nevertheless where it was begun. Every datetime is aware; those that come out are in UTC.

    Errors, besides those that a method names: BusyError (75) when another process holds the store
    for seconds or a database server does not answer, InternalError (70) when it is full, damaged,
    closed or out of reach.
    """

    async def ensure_user(self, name: str) -> None:
        """Makes it known that there is such a user. Free of cost where that is known already."""
        ...

    async def users(self) -> list[str]:
        """Sorted."""
        ...

    async def create(
        self,
        *,
        owner: str,
        name: str,
        description: str,
        source: bytes,
        author: str,
        digest: str,
        created_at: datetime,
        schedule: str | None = None,
    ) -> Command:
        """A command with its version 1; `digest` is its recipe's, `schedule` the script's own.

        ExistsError (73) if there is one of that name; of several calls at once, one succeeds.
        ForbiddenError (77) if `owner` is not, or no longer, a user.
        """
        ...

    async def add_version(
        self,
        *,
        owner: str,
        name: str,
        description: str,
        source: bytes,
        author: str,
        digest: str,
        created_at: datetime,
        schedule: str | None = None,
    ) -> Command:
        """A new current version, numbered one above the highest that the command ever had.

        Of several calls at once each becomes a version. NotFoundError (127) if the command is gone.
        """
        ...

    async def find(self, owner: str, name: str) -> Command | None:
        """The command with its current version. One query by an index: it begins every run."""
        ...

    async def list_commands(self, owner: str) -> list[Listing]:
        """Sorted by name."""
        ...

    async def names(self, owner: str) -> list[str]:
        """Of the owner's commands, sorted."""
        ...

    async def source(self, owner: str, name: str, number: int | None = None) -> bytes | None:
        """Of that version, or of the current one; None where there is no such thing."""
        ...

    async def delete(self, owner: str, name: str, *, by: str) -> bool:
        """Whether there was one to delete.

        Its versions go with it, its runs are kept. A later one of its name begins again at 1.
        """
        ...

    async def begin_run(self, run: Run) -> None:
        """Records a run, not ended, as this server's. Call it before the sandbox starts.

        Once it returned, the record outlives the server's own death, kill -9 included. A power
        failure may take the newest records, and with them the runs that they tell of.
        """
        ...

    async def end_run(self, run_id: str, ended_at: datetime, outcome: Outcome) -> None:
        """Kept as `begin_run` is. The first end of a run stays; that of an unknown run is nothing.

        So it may follow a `begin_run` that was cancelled.
        """
        ...

    async def mark_lost(self, now: datetime) -> int:
        """Ends, as lost, the runs of this server that have no end; returns how many they were.

        Its requests under way (`begin_answer`) are then answered: 500, with nothing.
        To be called at start-up, before any run.
        """
        ...

    async def runs(
        self, *, user: str | None = None, command: str | None = None, limit: int = 20
    ) -> list[Run]:
        """The newest first, at most 1000: of a user, of a command (OWNER/NAME), of both, or all."""
        ...

    # What follows changes something and names who does it: `by` is a user's name, or "" for the
    # operator at the machine itself. The change and its line in the record are one transaction.

    async def record(self, entry: Entry) -> None:
        """Adds a line to the record, for what is not kept here (a key file, a prune)."""
        ...

    async def entries(self, *, limit: int = 100) -> list[Entry]:
        """The record, newest first, at most 1000."""
        ...

    async def set_access(
        self,
        owner: str,
        name: str,
        *,
        grant: Collection[str] = (),
        revoke: Collection[str] = (),
        by: str,
    ) -> None:
        """Who may run it: users, ids of tokens, PUBLIC. All of it or nothing; twice is once.

        NotFoundError where the command is gone, or one of `grant` is neither a user nor a token
        nor PUBLIC (the error names it).
        """
        ...

    async def set_admins(
        self,
        owner: str,
        name: str,
        *,
        grant: Collection[str] = (),
        revoke: Collection[str] = (),
        by: str,
    ) -> None:
        """Who may change it beside its owner: users."""
        ...

    async def set_env(
        self,
        owner: str,
        name: str,
        *,
        put: Mapping[str, bytes],
        remove: Collection[str] = (),
        by: str,
    ) -> None:
        """Sealed values by name. The record has the names."""
        ...

    def sealed(self) -> AsyncIterator[tuple[Place, bytes]]:
        """Every sealed value, for a new key. A hook has two of them while both secrets hold.

        Few at a time; `reseal` may be called meanwhile.
        """
        ...

    async def reseal(self, values: Sequence[tuple[Place, bytes, bytes]]) -> int:
        """Replaces sealed values where they still are what they were; how many were.

        Each is place, old, new.
        """
        ...

    async def runnable(self, subject: str) -> list[Listing]:
        """Others' commands that are granted to `subject`, administered by it, or public.

        It is a user or a token's id. Sorted by full name.
        """
        ...

    async def history(self, owner: str, name: str) -> list[VersionInfo]:
        """Newest first; empty where there is no such command."""
        ...

    async def version(self, owner: str, name: str, number: int) -> Version | None: ...

    async def set_current(self, owner: str, name: str, number: int, *, by: str) -> Command:
        """Makes that version the current one. NotFoundError where it is not there."""
        ...

    async def add_token(self, token: Token, digest: bytes, *, by: str) -> None:
        """`digest` is the keyed hash of its secret. ExistsError for an id that is taken."""
        ...

    async def token(self, id_: str) -> tuple[Token, bytes] | None:
        """The token and the hash of its secret. One read by its key."""
        ...

    async def tokens(self, owner: str) -> list[Token]:
        """Oldest first."""
        ...

    async def used(self, id_: str, at: datetime) -> None:
        """Notes a token's last use."""
        ...

    async def remove_token(self, id_: str, *, by: str) -> bool:
        """With it go its grants."""
        ...

    async def rename_user(
        self, old: str, new: str, *, by: str, reseal: Reseal | None = None
    ) -> bool:
        """With commands, grants, tokens and runs. ExistsError where `new` is taken.

        Sealed values are bound to their owner's name: `reseal`, which gets their new place, makes
        them the new one's, and what it raises takes all of it back. None leaves them as they are,
        which then nobody opens.
        """
        ...

    async def remove_user(self, name: str, *, by: str) -> bool:
        """With commands, grants and tokens; what ran is kept."""
        ...

    async def run(self, run_id: str) -> Run | None: ...

    async def runs_seen_by(
        self, user: str, *, command: str | None = None, limit: int = 20
    ) -> list[Run]:
        """The newest first: the user's own, and all of commands that he owns or administers."""
        ...

    async def keep_output(self, run_id: str, output: Output) -> None:
        """Replaces what is kept of the run's output."""
        ...

    async def output(self, run_id: str) -> Output | None: ...

    async def retire_runs(self, *, before: datetime, bytes_kept: int) -> tuple[int, int]:
        """How many runs, and how many bytes of output, were removed.

        Those are runs that ended before `before`, with their outputs; then the outputs kept
        longest, until all together are at most `bytes_kept`. It goes in small steps, each of them
        whole, and no run waits for more than one.
        """
        ...

    async def would_retire(self, *, before: datetime, bytes_kept: int) -> tuple[int, int]:
        """What `retire_runs` would remove now, in bytes of output at least."""
        ...

    async def stored(self, owner: str) -> tuple[int, int]:
        """How many commands are the owner's, and how many bytes of source all their versions have."""
        ...

    async def digests(self) -> dict[str, int]:
        """Of all versions' recipes: digest to how many versions need it."""
        ...

    async def usage(self) -> dict[str, int]:
        """How much is kept.

        Rows as users, commands, versions, runs, tokens, entries, outputs, deliveries; bytes as
        source_bytes, output_bytes.
        """
        ...

    async def notice(self) -> Notice | None: ...

    async def set_notice(self, notice: Notice | None, *, by: str) -> None: ...

    # Hooks, deliveries and schedules.

    async def add_hook(self, hook: Hook, *, by: str) -> Hook:
        """With its id. ExistsError (73) for a name the command has; NotFoundError: it is gone."""
        ...

    async def hooks(self, owner: str, name: str) -> list[Hook]:
        """Of a command, sorted by name."""
        ...

    async def hook(self, owner: str, name: str, hook: str) -> Hook | None:
        """One indexed read: it begins every delivery."""
        ...

    async def rotate_hook(self, hook: Hook, secret: bytes, at: datetime, *, by: str) -> Hook:
        """A new sealed secret; the one before becomes `previous`. NotFoundError: it is gone."""
        ...

    async def remove_hook(self, owner: str, name: str, hook: str, *, by: str) -> bool:
        """With its deliveries."""
        ...

    async def accept(self, arrival: Arrival, *, most: int) -> tuple[Taken, str]:
        """Stores a delivery unless `most` of its command wait already; its id, or the first's.

        On return it survives a power failure. Several at once are one commit. NotFoundError where
        the command or the hook is gone.
        """
        ...

    async def claim(
        self, now: datetime, until: datetime, limit: int, *, apart: Collection[str] = ()
    ) -> list[Delivery]:
        """Takes what is due and nobody's, the earliest first, for this server until `until`.

        Nothing of the owners `apart`, who have enough for now.
        Each has its `attempt` counted up. What another server's lease on has run out is nobody's.
        Of an ordered hook only the first that is not ended is due. Two servers never get the same.
        """
        ...

    async def renew(self, ids: Collection[str], until: datetime) -> None:
        """Holds what was claimed for longer."""
        ...

    async def begin_attempt(self, delivery_id: str, attempt: int, run_id: str) -> bool:
        """Notes the run; False where the delivery is not (any more) this server's and attempt's."""
        ...

    async def end_attempt(
        self,
        delivery_id: str,
        attempt: int,
        state: State,
        *,
        due_at: datetime | None = None,
        exit_status: int | None = None,
        message: str = "",
        uncounted: bool = False,
    ) -> bool:
        """DONE, FAILED, or WAITING until `due_at`. False as `begin_attempt`; then nothing changed.

        `uncounted`: the attempt did not really begin, and does not count.
        """
        ...

    async def reclaim(self, now: datetime) -> int:
        """Makes what this server held when it died due at once. At start-up."""
        ...

    async def next_due(self) -> datetime | None:
        """When there is something to claim next, leases that run out included."""
        ...

    async def deliveries(
        self, owner: str, name: str, *, hook: str | None = None, limit: int = 20
    ) -> list[Delivery]:
        """Newest first, at most 1000, without body and environment."""
        ...

    async def replay(
        self, owner: str, name: str, *, delivery: str | None, now: datetime, by: str
    ) -> int:
        """Makes an ended delivery, or (None) all failed ones, due again; how many that are.

        Attempts are counted anew.
        """
        ...

    async def backlog(self) -> Backlog: ...

    async def retire_deliveries(self, *, before: datetime) -> int:
        """Removes what ended before `before`, in small steps."""
        ...

    async def schedules(self) -> list[Schedule]:
        """All that are in force: the owner's where there is one, else the script's own."""
        ...

    async def schedule(self, owner: str, name: str) -> Schedule | None: ...

    async def set_schedule(self, schedule: Schedule, *, by: str) -> None:
        """As the owner's. NotFoundError where the command is gone."""
        ...

    async def remove_schedule(self, owner: str, name: str, *, by: str) -> bool:
        """The owner's; then the script's own holds again, where it has one."""
        ...

    async def tick(
        self, schedule: Schedule, at: datetime, arrival: Arrival | None, *, most: int
    ) -> Ticked:
        """Deals with the planned moment `at`, once among all servers; None: it is noted as missed."""
        ...

    # What was answered under an Idempotency-Key.

    async def begin_answer(
        self, caller: str, key: str, answer: Answer, now: datetime, since: datetime
    ) -> Answer | None:
        """Puts down that a request is under way; the first one's where there is one after `since`.

        `caller` is a token's id, or "". Of several at once one gets None, which is to go on.
        """
        ...

    async def end_answer(self, caller: str, key: str, answer: Answer) -> None:
        """How it was answered."""
        ...

    async def drop_answer(self, caller: str, key: str) -> None:
        """It never ran: the next one is the first."""
        ...

    async def retire_answers(self, *, before: datetime) -> int: ...

    async def backup(self, path: Path) -> None:
        """A whole copy of the store as a SQLite file at `path`, while everything goes on."""
        ...

    async def aclose(self) -> None:
        """Waits for the write under way, and closes. Repeatable."""
        ...


async def open_store(url: str, *, server: str = "") -> Store:
    """Opens the store at `url`, made or migrated where that is due.

    `sqlite+aiosqlite:///PATH`: a file, made 0600. PATH is taken as it is, nothing in it is escaped;
    it is absolute where it begins with a `/`. `postgresql+asyncpg://USER:PASSWORD@HOST:PORT/NAME`:
    a database that is there; of several servers that open it at once, one migrates.

    `server` names this server among others on the same database, over restarts.

    Errors: UsageError (64) for a URL that is none or of another kind; InternalError (70) where it
    cannot be opened, or is not a store, or was written by a newer program: it is then untouched.
    """
    # SQLAlchemy and Alembic are most of the program's start: they are for who opens a store.
    from cmdsvc.store.sql import SqlStore  # noqa: PLC0415

    return SqlStore(await kind(url).open(url), server)


async def look(url: str) -> Found:
    """What is at `url`, where `open_store` would take it; else its errors. It only reads."""
    return await kind(url).look(url)
