"""SQLAlchemy's connections for an event loop, as far as SQLite needs them.

What SQLAlchemy has for that, `sqlalchemy.ext.asyncio`, takes its ORM along: 8 MB, and time at each
start.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from sqlalchemy import Connection, Dialect, Engine, Executable
from sqlalchemy.util import greenlet_spawn

from cmdsvc.store.database import Answer, Parameters

T = TypeVar("T")


class Awaited:
    """A `database.Connection`. Its driver is an asynchronous one; answers come whole."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def dialect(self) -> Dialect:
        return self._connection.dialect

    async def execute(self, statement: Executable, parameters: Parameters | None = None) -> Answer:
        return await greenlet_spawn(self._connection.execute, statement, parameters)

    async def scalar(
        self, statement: Executable, parameters: Mapping[str, Any] | None = None
    ) -> Any:
        return await greenlet_spawn(self._connection.scalar, statement, parameters)

    async def exec_driver_sql(self, statement: str, parameters: Any = None) -> Answer:
        return await greenlet_spawn(self._connection.exec_driver_sql, statement, parameters)

    async def run_sync(self, work: Callable[[Connection], T]) -> T:
        """What `work` does with the connection waits without holding up the event loop."""
        return await greenlet_spawn(work, self._connection)

    @property
    def driver(self) -> Any:
        """The driver's own connection."""
        return self._connection.connection.driver_connection


@asynccontextmanager
async def connected(engine: Engine) -> AsyncIterator[Awaited]:
    connection = await greenlet_spawn(engine.connect)
    try:
        yield Awaited(connection)
    finally:
        await greenlet_spawn(connection.close)


@asynccontextmanager
async def begun(engine: Engine) -> AsyncIterator[Awaited]:
    """With a transaction: committed at the end, rolled back where something is raised."""
    async with connected(engine) as connection:
        transaction = await connection.run_sync(Connection.begin)
        try:
            yield connection
        except BaseException:
            await greenlet_spawn(transaction.rollback)
            raise
        await greenlet_spawn(transaction.commit)
