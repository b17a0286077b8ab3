"""A backup's rows, into an empty store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import URL, func, select, text
from sqlalchemy.ext.asyncio import create_async_engine

from cmdsvc.errors import ExistsError
from cmdsvc.store.copying import copy
from cmdsvc.store.database import Connection
from cmdsvc.store.kinds import kind
from cmdsvc.store.schema import metadata
from cmdsvc.store.sql.part import entry, note
from cmdsvc.store.sql.runs import all_lost
from cmdsvc.store.sqlite import SCHEME, Sqlite, meaning


async def restore_store(backup: Path, url: str, finish: Callable[[], None]) -> None:
    """Puts what `Store.backup` has made into the store at `url`, whole or not at all.

    `finish` is called before it is there for good; a CmdError of its own takes all of it back.

    `backup`, an absolute path, is migrated where that is due. Runs that went on when it was made are
    lost. ExistsError (73) where the store holds something already; other errors as of `open_store`,
    of either.
    """
    await (await Sqlite.open(f"{SCHEME}:///{backup}")).aclose()  # as far as it is one
    target = await kind(url).open(url)
    source = create_async_engine(URL.create(SCHEME, database=str(backup)))
    try:
        with meaning():
            async with source.connect() as connection:

                async def work(into: Connection) -> None:
                    await _check_empty(into)
                    await copy(connection, into)
                    if into.dialect.name == "postgresql":
                        await _count_on(into)
                    await all_lost(into)  # no server is left that could end them
                    await note(into, entry("", "restore", ""))
                    await asyncio.to_thread(finish)

                await target.transact(work)
    finally:
        await source.dispose()
        await target.aclose()


async def _check_empty(connection: Connection) -> None:
    for table in metadata.sorted_tables:
        if await connection.scalar(select(func.count()).select_from(table)):
            raise ExistsError(
                "there is a store already, and something in it",
                "set CMDSVC_DATA_DIR (or CMDSVC_DATABASE_URL) to an empty one",
            )


async def _count_on(connection: Connection) -> None:
    """The numbers that PostgreSQL gives by itself follow those that are there."""
    for table in metadata.sorted_tables:
        column = table.autoincrement_column
        if column is None:
            continue
        where = {"table": table.name, "column": column.name}
        sequence = await connection.scalar(
            text("SELECT pg_get_serial_sequence(:table, :column)"), where
        )
        highest = await connection.scalar(select(func.max(column)))
        if sequence and highest:
            await connection.execute(
                text("SELECT setval(:sequence, :highest)"),
                {"sequence": sequence, "highest": highest},
            )
