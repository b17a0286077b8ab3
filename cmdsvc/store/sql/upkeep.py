"""The record, the notice, how much is kept, and backups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Select, Table, bindparam, delete, func, select

from cmdsvc.model import Entry
from cmdsvc.store import Notice
from cmdsvc.store.database import Connection
from cmdsvc.store.schema import (
    commands,
    deliveries,
    entries,
    notices,
    outputs,
    runs,
    tokens,
    users,
    versions,
)
from cmdsvc.store.sql.part import Part, bounded, entry, moment, note

ENTRIES = (
    select(entries.c.at, entries.c.user, entries.c.action, entries.c.subject, entries.c.detail)
    .order_by(entries.c.id.desc())
    .limit(bindparam("limit"))
)
NOTICE = select(notices.c.text, notices.c.closed)


def _count(table: Table) -> Select[Any]:
    return select(func.count()).select_from(table)


USAGE = {
    "users": _count(users),
    "commands": _count(commands),
    "versions": _count(versions),
    "runs": _count(runs),
    "tokens": _count(tokens),
    "entries": _count(entries),
    "outputs": _count(outputs),
    "deliveries": _count(deliveries),
    "source_bytes": select(func.coalesce(func.sum(func.length(versions.c.source)), 0)),
    "output_bytes": select(func.coalesce(func.sum(outputs.c.size), 0)),
}
_USAGE = select(*(query.scalar_subquery().label(name) for name, query in USAGE.items()))


class Upkeep(Part):
    async def record(self, entry: Entry) -> None:
        async def work(connection: Connection) -> None:
            await note(connection, entry)

        await self._database.transact(work)

    async def entries(self, *, limit: int = 100) -> list[Entry]:
        rows = await self._database.read(ENTRIES, {"limit": bounded(limit)})
        return [Entry(moment(at), *words) for at, *words in rows]

    async def usage(self) -> dict[str, int]:
        (row,) = await self._database.survey(_USAGE, {})
        return dict(zip(USAGE, map(int, row), strict=True))

    async def notice(self) -> Notice | None:
        rows = await self._database.read(NOTICE, {})
        return Notice(rows[0][0], bool(rows[0][1])) if rows else None

    async def set_notice(self, notice: Notice | None, *, by: str) -> None:
        upsert = self._database.upsert(notices)

        async def work(connection: Connection) -> None:
            if notice is None:
                if not (await connection.execute(delete(notices))).rowcount:
                    return
                line = entry(by, "notice", "", "removed")
            else:
                row = {"id": 1, "text": notice.text, "closed": int(notice.closed)}
                await connection.execute(upsert, row)
                closed = "closed: " if notice.closed else ""
                line = entry(by, "notice", "", closed + notice.text)
            await note(connection, line)

        await self._database.transact(work)

    async def backup(self, path: Path) -> None:
        await self._database.backup(path)
