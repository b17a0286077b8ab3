"""What the parts of the store have in common: the database, moments, and the record."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from sqlalchemy import insert

from cmdsvc.model import Entry
from cmdsvc.store.database import Connection, Database
from cmdsvc.store.schema import entries

MAX_ROWS = 1000
"""What one listing of runs or of the record returns at most."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

S = TypeVar("S")
T = TypeVar("T")


class Part:
    def __init__(self, database: Database, server: str) -> None:
        self._database = database
        self._server = server
        self._known: set[str] = set()
        """Users that are there, as far as this server knows."""

    async def _step(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """One transaction, and twice as long a rest: meanwhile runs are begun."""
        begun = time.monotonic()
        done = await self._database.transact(work)
        await asyncio.sleep(2 * (time.monotonic() - begun))
        return done


def number(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def moment(number: int) -> datetime:
    return _EPOCH + timedelta(microseconds=number)


def maybe(convert: Callable[[S], T], value: S | None) -> T | None:
    return None if value is None else convert(value)


def bounded(limit: int) -> int:
    return max(0, min(limit, MAX_ROWS))


def entry(by: str, action: str, subject: str, detail: str = "") -> Entry:
    """Of now."""
    return Entry(datetime.now(UTC), by, action, subject, detail)


async def note(connection: Connection, *lines: Entry) -> None:
    """Adds to the record, within the change that it tells of."""
    for line in lines:
        row = {
            "at": number(line.at),
            "user": line.user,
            "action": line.action,
            "subject": line.subject,
            "detail": line.detail,
        }
        await connection.execute(insert(entries), row)
