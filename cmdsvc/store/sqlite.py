"""SQLite behind the store: its connections to one file, and what their errors mean."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import quote

import aiosqlite
from sqlalchemy import (
    URL,
    AsyncAdaptedQueuePool,
    Compiled,
    Connection,
    Engine,
    Insert,
    SelectBase,
    Table,
    create_engine,
    event,
)
from sqlalchemy.dialects.sqlite import dialect as sqlite_dialect
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.util import greenlet_spawn

from cmdsvc.errors import BusyError, DataError, InternalError, UsageError
from cmdsvc.store import database, migrate
from cmdsvc.store.awaited import begun, connected
from cmdsvc.store.database import DanglingError, Statement, TakenError, finished
from cmdsvc.store.kinds import Found
from cmdsvc.store.newfile import new_file

SCHEME = "sqlite+aiosqlite"

BUSY_TIMEOUT = 5.0
"""Seconds that a statement waits for another process that is writing."""

_NO_SPACE = ("no space is left for the store", "free some on the disk that holds it")
_DAMAGED = ("the store is damaged", "restore a backup")
_URL_HINT = "write sqlite+aiosqlite:///PATH, with a fourth / before an absolute path"
_MEANINGS = {
    sqlite3.SQLITE_FULL: _NO_SPACE,
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
    sqlite3.SQLITE_READONLY: ("the store cannot be written", "see to the rights of its files"),
    sqlite3.SQLITE_CANTOPEN: ("the store cannot be opened", "see to the rights of its folder"),
    sqlite3.SQLITE_IOERR: ("the store's disk does not read or write", "see to that disk"),
}

T = TypeVar("T")


class Sqlite:
    """A `Database`: a connection for single statements, one for transactions, one for surveys.

    Single statements are compiled once by SQLAlchemy and sent to the driver whole: one thread hop
    each, where SQLAlchemy's cursors take four. They commit themselves. Reading has no connection
    of its own: what another writes empties a connection's cache, and each run reads and writes.
    Only surveys have: what takes long would keep runs waiting. One lock is around all that writes:
    SQLite has one writer, and waits for it by polling.

    Durability: WAL. Transactions are synchronous=FULL: what a user was told is stored survives a
    power failure. Single statements are synchronous=NORMAL, which spares a run the wait for the
    disk: they survive the death of this process, and a power failure takes at most the newest
    (sqlite.org/pragma.html#pragma_synchronous).
    """

    def __init__(
        self,
        path: Path,
        engine: Engine,
        direct: aiosqlite.Connection,
        opened: AsyncExitStack,
    ) -> None:
        self._path = path
        self._engine = engine
        self._direct = direct
        self._surveyor: aiosqlite.Connection | None = None
        self._opened = opened
        self._writing = asyncio.Lock()
        self._surveying = asyncio.Lock()
        self._dialect = sqlite_dialect(paramstyle="named")
        self._compiled: dict[Statement, Compiled] = {}
        self._transaction: asyncio.Task[Any] | None = None
        self._closed = False

    @classmethod
    async def open(cls, url: str) -> Sqlite:
        """See `store.open_store`."""
        path = _parse(url)
        with meaning():
            await asyncio.to_thread(_prepare, path)
            await _check(path)
            async with AsyncExitStack() as opened:
                engine = _engine(path)
                opened.push_async_callback(greenlet_spawn, engine.dispose)
                async with begun(engine) as connection:
                    await connection.run_sync(migrate.upgrade)
                direct = await _driver(opened, engine)
                await direct.execute_fetchall("PRAGMA synchronous = NORMAL")
                return cls(path, engine, direct, opened.pop_all())

    @classmethod
    async def look(cls, url: str) -> Found:
        """See `store.look`."""
        path = _parse(url)
        with meaning():
            return await _check(path) if path.exists() else Found.NOTHING

    async def read(self, statement: SelectBase, parameters: Mapping[str, Any]) -> list[Any]:
        return await self._send(self._direct, statement, parameters)

    async def survey(self, statement: SelectBase, parameters: Mapping[str, Any]) -> list[Any]:
        async with self._surveying:
            self._check_open()
            if self._surveyor is None:
                with meaning():
                    self._surveyor = await _driver(self._opened, self._engine)
            return await self._send(self._surveyor, statement, parameters)

    async def record(self, statement: Statement, parameters: Mapping[str, Any]) -> None:
        async with self._writing:
            await self._send(self._direct, statement, parameters)

    async def transact(self, work: Callable[[database.Connection], Awaitable[T]]) -> T:
        # Cancelled between two of its statements, SQLAlchemy can leave a transaction open, and with
        # it the store locked.
        await self._writing.acquire()
        self._transaction = asyncio.create_task(self._transact(work))
        self._transaction.add_done_callback(lambda _: self._writing.release())
        return await asyncio.shield(self._transaction)

    async def _transact(self, work: Callable[[database.Connection], Awaitable[T]]) -> T:
        self._check_open()
        with meaning():
            async with begun(self._engine) as connection:
                return await work(connection)

    def upsert(self, table: Table) -> Insert:
        statement = insert(table)
        values = {c.name: statement.excluded[c.name] for c in table.c if not c.primary_key}
        return statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=values)

    async def backup(self, path: Path) -> None:
        self._check_open()
        with meaning():
            await finished(asyncio.create_task(asyncio.to_thread(_copy, self._path, path)))

    async def aclose(self) -> None:
        self._closed = True
        async with self._writing, self._surveying:
            await self._opened.aclose()

    def _check_open(self) -> None:
        if self._closed:
            raise InternalError("the store is closed", "start the service again")

    async def _send(
        self,
        connection: aiosqlite.Connection,
        statement: Statement,
        parameters: Mapping[str, Any],
    ) -> list[Any]:
        compiled = self._compiled.get(statement)
        if compiled is None:
            compiled = statement.compile(dialect=self._dialect, column_keys=list(parameters))
            self._compiled[statement] = compiled
        values = compiled.construct_params(parameters)
        self._check_open()
        with meaning():
            return list(await connection.execute_fetchall(compiled.string, values))


@contextmanager
def meaning() -> Iterator[None]:
    """Turns the errors of SQLite, of its driver and of SQLAlchemy into the service's own."""
    try:
        yield
    except DBAPIError as error:
        raise _translated(error.orig or error) from error
    except sqlite3.Error as error:
        raise _translated(error) from error
    except SQLAlchemyError as error:
        raise InternalError(f"the store failed: {type(error).__name__}") from error
    except OSError as error:
        raise InternalError(
            f"the store cannot be opened: {error.strerror or error}",
            "see to the rights of its folder",
        ) from error
    except UnicodeEncodeError as error:
        raise DataError("a text that is not valid Unicode cannot be stored") from error


def _translated(error: BaseException) -> Exception:
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    if code in (sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY):
        return TakenError(str(error))
    if code == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
        return DanglingError(str(error))
    primary = code & 0xFF  # sqlite.org/rescode.html: extended codes carry theirs in the low byte
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return BusyError("the store is in use by another process", "try again in a moment")
    return InternalError(*_MEANINGS.get(primary, (f"the store failed: {error}", "")))


def _parse(url: str) -> Path:
    scheme, _, path = url.partition(":///")
    if scheme != SCHEME or not path or path.startswith((":", "file:")) or "?" in path:
        raise UsageError("the database's URL does not name a file of SQLite", _URL_HINT)
    return Path(path).absolute()


def _prepare(path: Path) -> None:
    """The file, with its folder, for this user alone; SQLite gives its other files the same mode."""
    folder = path.parent
    for missing in reversed([f for f in (folder, *folder.parents) if not f.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


async def _check(path: Path) -> Found:
    # Read-only: opened otherwise, even a store that is refused would have its log written back.
    query = {"mode": "ro", "uri": "true"}
    engine = create_engine(
        URL.create(SCHEME, database=f"file:{quote(str(path))}", query=query),
        connect_args={"timeout": BUSY_TIMEOUT},
    )
    try:
        async with connected(engine) as connection:
            return await connection.run_sync(migrate.check)
    finally:
        await greenlet_spawn(engine.dispose)


def _copy(path: Path, target: Path) -> None:
    with new_file(target) as fresh, closing(sqlite3.connect(path)) as connection:
        connection.execute("VACUUM INTO ?", (str(fresh),))


def _engine(path: Path) -> Engine:
    # No isolation level is the driver's autocommit: BEGIN is sent here, so that it takes the right
    # to write at once, and so that changes of the schema are within it too.
    engine = create_engine(
        URL.create(SCHEME, database=str(path)),
        poolclass=AsyncAdaptedQueuePool,
        pool_size=3,
        max_overflow=0,
        hide_parameters=True,
        connect_args={"timeout": BUSY_TIMEOUT, "isolation_level": None},
    )

    @event.listens_for(engine, "connect")
    def set_up(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


async def _driver(opened: AsyncExitStack, engine: Engine) -> aiosqlite.Connection:
    """The driver's own connection, held until `opened` is closed."""
    held = await opened.enter_async_context(connected(engine))
    return cast("aiosqlite.Connection", held.driver)
