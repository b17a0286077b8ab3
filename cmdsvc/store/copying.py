"""A store's tables from one database to another."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path

from sqlalchemy import URL, LargeBinary, Table, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from cmdsvc.store import migrate
from cmdsvc.store.database import Connection
from cmdsvc.store.newfile import new_file
from cmdsvc.store.schema import metadata

ROWS = 200
"""That are under way at once, of a table with small rows: the event loop has other things to do."""
LARGE_ROWS = 16


async def copy_to_file(source: AsyncConnection, path: Path) -> None:
    """All that `source` sees, as a store in a SQLite file. See `new_file`."""
    with ExitStack() as stack:
        fresh = stack.enter_context(new_file(path))
        engine = create_async_engine(URL.create("sqlite+aiosqlite", database=str(fresh)))
        try:
            async with engine.begin() as target:
                # What does not come to its end is thrown away, and what does is synced then.
                for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -65536"):
                    await target.exec_driver_sql(f"PRAGMA {pragma}")
                await target.run_sync(migrate.upgrade)
                await copy(source, target)
        finally:
            await engine.dispose()
        ending = stack.pop_all()
    await asyncio.to_thread(ending.close)


async def copy(source: AsyncConnection, target: Connection) -> None:
    """Between two of this program's schema, the second of them empty."""
    for table in metadata.sorted_tables:
        query = select(table).execution_options(yield_per=_rows(table))
        # As the driver takes them: a million rows are many, and their types are plain.
        words = str(insert(table).compile(dialect=target.dialect))
        async with source.stream(query) as result:
            async for rows in result.partitions():
                await target.exec_driver_sql(words, [tuple(row) for row in rows])


def _rows(table: Table) -> int:
    large = any(isinstance(column.type, LargeBinary) for column in table.c)
    return LARGE_ROWS if large else ROWS
