"""What the store asks of a database, whichever it is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sqlalchemy import Delete, Insert, SelectBase, Table, Update
from sqlalchemy.ext.asyncio import AsyncConnection

Statement = SelectBase | Insert | Update | Delete

T = TypeVar("T")


class TakenError(Exception):
    """A constraint of the database says that it is there already."""


class DanglingError(Exception):
    """A constraint of the database says that what it refers to is not there."""


async def finished(task: asyncio.Task[T]) -> T:
    """Waits for `task` to its end, cancelled or not; a cancellation is raised after it."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
        except Exception:  # noqa: BLE001 - it is the task's, and raised below
            break
    if cancelled is not None:
        raise cancelled
    return task.result()


class Database(Protocol):
    """Made open; `aclose` is the last call.

    Statements given to `find`, `read`, `survey` and `record` are constants of the program: each is compiled
    once and kept.

    Errors are the service's own, and Taken- and DanglingError where something is written.
    """

    async def find(self, statement: SelectBase, parameters: Mapping[str, Any]) -> list[Any]:
        """The few rows of one thing, found by its key. Every run waits for it."""
        ...

    async def read(self, statement: SelectBase, parameters: Mapping[str, Any]) -> list[Any]:
        """All rows of what is found by an index. Runs wait for it."""
        ...

    async def survey(self, statement: SelectBase, parameters: Mapping[str, Any]) -> list[Any]:
        """All rows of what may take a while. No run waits for it."""
        ...

    async def record(self, statement: Statement, parameters: Mapping[str, Any]) -> None:
        """One statement that changes something. A power failure may take the newest of them."""
        ...

    async def transact(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """What `work` returns, committed; what it raises rolls back.

        Once begun it is brought to its end, whatever becomes of the caller. `work` may be called
        again where the database undid it in favour of another.
        """
        ...

    def upsert(self, table: Table) -> Insert:
        """An insert of a whole row that replaces the one with its primary key."""
        ...

    async def backup(self, path: Path) -> None:
        """See `store.Store.backup`."""
        ...

    async def aclose(self) -> None: ...
