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
    Insert,
    SelectBase,
    Table,
    event,
)
from sqlalchemy.dialects.sqlite import dialect as sqlite_dialect
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from cmdsvc.errors import BusyError, DataError, InternalError, UsageError
from cmdsvc.store import migrate
from cmdsvc.store.database import DanglingError, Statement, TakenError, finished
from cmdsvc.store.kinds import Found
from cmdsvc.store.newfile import new_file

SCHEME = "sqlite+aiosqlite"

BUSY_TIMEOUT = 5.0
"""Seconds that a statement waits for another process that is writing."""

_IN_USE = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
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
    """A `Database`: connections for single statements, for transactions, for surveys, to find by.

    Single statements are compiled once by SQLAlchemy and sent to the driver whole: one thread hop
    each, where SQLAlchemy's cursors take four. They commit themselves. Surveys have a connection
    of their own: what takes long would keep runs waiting. What is found by its key is read on the
    event loop's own thread: in WAL no writer holds up a reader, and the hop takes longer than
    SQLite does. One lock is around all that writes: SQLite has one writer, and waits for it by
    polling.

    Durability: WAL. Transactions are synchronous=FULL: what a user was told is stored survives a
    power failure. Single statements are synchronous=NORMAL, which spares a run the wait for the
    disk: they survive the death of this process, and a power failure takes at most the newest
    (sqlite.org/pragma.html#pragma_synchronous).
    """

    def __init__(
        self,
        path: Path,
        engine: AsyncEngine,
        direct: aiosqlite.Connection,
        finder: sqlite3.Connection,
        opened: AsyncExitStack,
    ) -> None:
        self._path = path
        self._engine = engine
        self._direct = direct
        self._finder = finder
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
                opened.push_async_callback(engine.dispose)
                async with engine.begin() as connection:
                    await connection.run_sync(migrate.upgrade)
                direct = await _driver(opened, engine)
                await direct.execute_fetchall("PRAGMA synchronous = NORMAL")
                finder = opened.enter_context(closing(_finder(path)))
                return cls(path, engine, direct, finder, opened.pop_all())

    @classmethod
    async def look(cls, url: str) -> Found:
        """See `store.look`."""
        path = _parse(url)
        with meaning():
            return await _check(path) if path.exists() else Found.NOTHING

    async def find(self, statement: SelectBase, parameters: Mapping[str, Any]) -> list[Any]:
        text, values = self._ready(statement, parameters)
        with meaning():
            try:
                return self._finder.execute(text, values).fetchall()
            except sqlite3.OperationalError as error:
                if _primary(error) not in _IN_USE:
                    raise
        return await self.read(statement, parameters)  # which can wait

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

    async def transact(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        # Cancelled between two of its statements, SQLAlchemy can leave a transaction open, and with
        # it the store locked.
        await self._writing.acquire()
        self._transaction = asyncio.create_task(self._transact(work))
        self._transaction.add_done_callback(lambda _: self._writing.release())
        return await asyncio.shield(self._transaction)

    async def _transact(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        self._check_open()
        with meaning():
            async with self._engine.begin() as connection:
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
        text, values = self._ready(statement, parameters)
        with meaning():
            return list(await connection.execute_fetchall(text, values))

    def _ready(
        self, statement: Statement, parameters: Mapping[str, Any]
    ) -> tuple[str, Mapping[str, Any]]:
        """What the driver is given."""
        self._check_open()
        compiled = self._compiled.get(statement)
        if compiled is None:
            compiled = statement.compile(dialect=self._dialect, column_keys=list(parameters))
            self._compiled[statement] = compiled
        return compiled.string, compiled.construct_params(parameters) or {}


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


def _code(error: BaseException) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)


def _primary(error: BaseException) -> int:
    return _code(error) & 0xFF  # sqlite.org/rescode.html: extended codes carry theirs in it


def _translated(error: BaseException) -> Exception:
    code = _code(error)
    if code in (sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY):
        return TakenError(str(error))
    if code == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
        return DanglingError(str(error))
    primary = _primary(error)
    if primary in _IN_USE:
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
    engine = create_async_engine(
        URL.create(SCHEME, database=f"file:{quote(str(path))}", query=query),
        connect_args={"timeout": BUSY_TIMEOUT},
    )
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(migrate.check)
    finally:
        await engine.dispose()


def _copy(path: Path, target: Path) -> None:
    with new_file(target) as fresh, closing(sqlite3.connect(path)) as connection:
        connection.execute("VACUUM INTO ?", (str(fresh),))


def _engine(path: Path) -> AsyncEngine:
    # No isolation level is the driver's autocommit: BEGIN is sent here, so that it takes the right
    # to write at once, and so that changes of the schema are within it too.
    engine = create_async_engine(
        URL.create(SCHEME, database=str(path)),
        poolclass=AsyncAdaptedQueuePool,
        pool_size=3,
        max_overflow=0,
        hide_parameters=True,
        connect_args={"timeout": BUSY_TIMEOUT, "isolation_level": None},
    )

    @event.listens_for(engine.sync_engine, "connect")
    def set_up(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


async def _driver(opened: AsyncExitStack, engine: AsyncEngine) -> aiosqlite.Connection:
    """The driver's own connection, held until `opened` is closed."""
    held = await opened.enter_async_context(engine.connect())
    raw = await held.get_raw_connection()
    return cast("aiosqlite.Connection", raw.driver_connection)


def _finder(path: Path) -> sqlite3.Connection:
    """To read with, on this thread; it waits for nobody."""
    address = f"file:{quote(str(path))}?mode=ro"
    return sqlite3.connect(address, timeout=0, isolation_level=None, uri=True)
