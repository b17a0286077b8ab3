"""What is kept: users, commands with their versions, runs. In the service's words, never rows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from cmdsvc.model import Command, Outcome, Run


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


class Store(Protocol):
    """Made open by `open_store`; `aclose` is the last call.

    Every change is whole or not at all, and kept once the call has returned. What is cancelled
    happens nevertheless where it was begun. Every datetime is aware; those that come out are in UTC.

    Errors, besides those that a method names: BusyError (75) when another process holds the store
    for seconds, InternalError (70) when it is full, damaged, closed or out of reach.
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
    ) -> Command:
        """A command with its version 1; `digest` is its recipe's.

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

    async def delete(self, owner: str, name: str) -> bool:
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

        To be called at start-up, before any run.
        """
        ...

    async def runs(
        self, *, user: str | None = None, command: str | None = None, limit: int = 20
    ) -> list[Run]:
        """The newest first, at most 1000: of a user, of a command (OWNER/NAME), of both, or all."""
        ...

    async def aclose(self) -> None:
        """Waits for the write under way, and closes. Repeatable."""
        ...


async def open_store(url: str, *, server: str = "") -> Store:
    """Opens the store at `sqlite+aiosqlite:///PATH`, made (0600) or migrated where that is due.

    PATH is taken as it is, nothing in it is escaped; it is absolute where it begins with a `/`.

    `server` names this server among others on the same database, over restarts.

    Errors: UsageError (64) for a URL that is none or of another kind; InternalError (70) where it
    cannot be opened, or is not a store, or was written by a newer program: it is then untouched.
    """
    # SQLAlchemy and Alembic are most of the program's start: they are for who opens a store.
    from cmdsvc.store.sql import SqlStore  # noqa: PLC0415
    from cmdsvc.store.sqlite import Sqlite  # noqa: PLC0415

    return SqlStore(await Sqlite.open(url), server)
