"""What the parts of the store have in common: the database, moments, and the record."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from cmdsvc.model import Entry
from cmdsvc.store.database import Database
from cmdsvc.store.schema import entries

MAX_ROWS = 1000
"""What one listing of runs or of the record returns at most."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Part:
    def __init__(self, database: Database, server: str) -> None:
        self._database = database
        self._server = server
        self._known: set[str] = set()
        """Users that are there, as far as this server knows."""


def number(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def moment(number: int) -> datetime:
    return _EPOCH + timedelta(microseconds=number)


def bounded(limit: int) -> int:
    return max(0, min(limit, MAX_ROWS))


def entry(by: str, action: str, subject: str, detail: str = "") -> Entry:
    """Of now."""
    return Entry(datetime.now(UTC), by, action, subject, detail)


async def note(connection: AsyncConnection, *lines: Entry) -> None:
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
