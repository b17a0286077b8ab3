"""What is kept: users, commands with their versions, runs. In the service's words, never rows."""

from __future__ import annotations

from typing import Protocol

from cmdsvc.store.kinds import Found, kind
from cmdsvc.store.protocol.answers import Answers
from cmdsvc.store.protocol.commands import Commands, Listing
from cmdsvc.store.protocol.deliveries import Arrival, Backlog, Deliveries, Taken
from cmdsvc.store.protocol.hooks import Hooks
from cmdsvc.store.protocol.outputs import Outputs
from cmdsvc.store.protocol.runs import Runs
from cmdsvc.store.protocol.schedules import Schedules, Ticked
from cmdsvc.store.protocol.sealed import Place, Reseal, Sealed
from cmdsvc.store.protocol.sharing import Sharing
from cmdsvc.store.protocol.tokens import Tokens
from cmdsvc.store.protocol.upkeep import Notice, Upkeep
from cmdsvc.store.protocol.users import Users

__all__ = [
    "Arrival",
    "Backlog",
    "Listing",
    "Notice",
    "Place",
    "Reseal",
    "Store",
    "Taken",
    "Ticked",
    "look",
    "open_store",
]


class Store(
    Users,
    Commands,
    Sharing,
    Sealed,
    Tokens,
    Runs,
    Outputs,
    Hooks,
    Deliveries,
    Schedules,
    Answers,
    Upkeep,
    Protocol,
):
    """Made open by `open_store`; `aclose` is the last call.

    Every change is whole or not at all, and kept once the call has returned. What is cancelled
    happens nevertheless where it was begun. Every datetime is aware; those that come out are in UTC.

    What takes `by` changes something and names who does it: `by` is a user's name, or "" for the
    operator at the machine itself. The change and its line in the record are one transaction.

    Errors, besides those that a method names: BusyError (75) when another process holds the store
    for seconds or a database server does not answer, InternalError (70) when it is full, damaged,
    closed or out of reach.
    """

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
