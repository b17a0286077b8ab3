"""PostgreSQL behind the store: its connections, and what its errors mean."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
from sqlalchemy import (
    URL,
    BigInteger,
    Insert,
    SelectBase,
    Table,
    bindparam,
    func,
    make_url,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.sql.compiler import SQLCompiler

from cmdsvc.errors import BusyError, CmdError, DataError, InternalError, UsageError
from cmdsvc.store import migrate
from cmdsvc.store.copying import copy_to_file
from cmdsvc.store.database import DanglingError, Statement, TakenError, finished
from cmdsvc.store.kinds import Found
from cmdsvc.store.schema import WHERE, metadata

SCHEME = "postgresql+asyncpg"

POOL_SIZE = 5
"""Connections of each kind, at most."""
CONNECT_TIMEOUT = 5.0
"""Seconds."""
LOCK_TIMEOUT = 5.0
"""Seconds that a statement waits for another server's transaction."""
STATEMENT_TIMEOUT = 10.0
"""Seconds in which a single statement is answered, else the connection is given up."""
SURVEY_TIMEOUT = 300.0
"""The same, of what may take a while: surveys and transactions."""
ATTEMPTS = 5
"""How often a transaction is begun that the database undoes in favour of another."""

_MIGRATION = 0x636D64737663
"""Names the lock that only one server at a time migrates under: "cmdsvc"."""

for _table in metadata.tables.values():
    for _index in _table.indexes:
        _index.dialect_options["postgresql"]["where"] = _index.info.get(WHERE)

_URL_HINT = "write postgresql+asyncpg://USER:PASSWORD@HOST:PORT/DATABASE"
_OUT_OF_REACH = ("the database cannot be reached", "try again in a moment")
_IN_USE = ("the store is in use by another process", "try again in a moment")
_LOGIN = ("the database refuses the login", "see to CMDSVC_DATABASE_URL")
# By SQLSTATE, or by its class (postgresql.org/docs/current/errcodes-appendix.html).
_BUSY = {
    "08": _OUT_OF_REACH,
    "40": _IN_USE,
    "53300": _OUT_OF_REACH,
    "55P03": _IN_USE,
    "57014": _IN_USE,
    "57P": _OUT_OF_REACH,
}
_MEANINGS = {
    "25006": ("the database cannot be written", "connect to the one that can"),
    "28": _LOGIN,
    "3D": ("there is no such database", "make it with createdb"),
    "42501": ("the database does not let this user do that", "see to the user's rights"),
    "53100": ("no space is left for the store", "free some on the disk that holds it"),
    "XX": ("the store is damaged", "restore a backup"),
}
_UNDONE = ("40001", "40P01")
"""Serialization failure, deadlock: the same may work at once."""

# Each statement is planned once on a connection, and finds by an index the little that it needs.
# Left to itself the planner thinks of averages, and reads a whole table of commands for two grants.
BY_INDEX = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}

T = TypeVar("T")


class Postgres:
    """A `Database`: the driver's own pool for single statements, SQLAlchemy's for transactions.

    Durability: transactions are synced. Single statements are not waited for
    (synchronous_commit = off): they survive this process, and what ends the database server in
    the middle of its work takes the newest ones, of less than a second.
    """

    def __init__(self, engine: AsyncEngine, pool: asyncpg.Pool, opened: AsyncExitStack) -> None:
        self._engine = engine
        self._pool = pool
        self._opened = opened
        self._compiled: dict[Statement, SQLCompiler] = {}
        self._under_way: set[asyncio.Task[Any]] = set()
        self._closed = False

    @classmethod
    async def open(cls, url: str) -> Postgres:
        """See `store.open_store`."""
        parsed = _parse(url)
        with _connecting():
            async with AsyncExitStack() as opened:
                engine = _engine(parsed)
                opened.push_async_callback(engine.dispose)
                async with engine.begin() as connection:
                    await _migrate(connection)
                pool = await _pool(engine, parsed)
                opened.push_async_callback(pool.close)
                return cls(engine, pool, opened.pop_all())

    @classmethod
    async def look(cls, url: str) -> Found:
        """See `store.look`."""
        parsed = _parse(url)
        with _connecting():
            engine = _engine(parsed)
            try:
                async with engine.connect() as connection:
                    return await connection.run_sync(migrate.check)
            finally:
                await engine.dispose()

    async def find(self, statement: SelectBase, parameters: Mapping[str, Any]) -> list[Any]:
        return await self.read(statement, parameters)

    async def read(self, statement: SelectBase, parameters: Mapping[str, Any]) -> list[Any]:
        return await self._send(statement, parameters, STATEMENT_TIMEOUT)

    async def survey(self, statement: SelectBase, parameters: Mapping[str, Any]) -> list[Any]:
        return await self._send(statement, parameters, SURVEY_TIMEOUT)

    async def record(self, statement: Statement, parameters: Mapping[str, Any]) -> None:
        # Waited for when cancelled too: what is done next finds it done.
        await self._finished(self._send(statement, parameters, STATEMENT_TIMEOUT))

    async def transact(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        return await self._finished(self._transact(work))

    async def _transact(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        for attempt in range(1, ATTEMPTS + 1):
            self._check_open()
            with meaning():
                try:
                    async with self._engine.begin() as connection:
                        return await work(connection)
                except DBAPIError as error:
                    if attempt == ATTEMPTS or _sqlstate(error) not in _UNDONE:
                        raise
        raise AssertionError

    def upsert(self, table: Table) -> Insert:
        statement = insert(table)
        values = {c.name: statement.excluded[c.name] for c in table.c if not c.primary_key}
        return statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=values)

    async def backup(self, path: Path) -> None:
        self._check_open()
        await self._finished(self._backup(path))

    async def _backup(self, path: Path) -> None:
        with meaning():
            async with self._engine.connect() as connection:
                await connection.execution_options(
                    isolation_level="REPEATABLE READ", postgresql_readonly=True
                )
                await copy_to_file(connection, path)

    async def aclose(self) -> None:
        self._closed = True
        await asyncio.gather(*self._under_way, return_exceptions=True)
        await self._opened.aclose()

    def _check_open(self) -> None:
        if self._closed:
            raise InternalError("the store is closed", "start the service again")

    async def _finished(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await finished(task)

    async def _send(
        self, statement: Statement, parameters: Mapping[str, Any], seconds: float
    ) -> list[Any]:
        compiled = self._compiled.get(statement)
        if compiled is None:
            dialect = self._engine.dialect
            keys = list(parameters)
            compiled = statement.compile(dialect=dialect, column_keys=keys)
            self._compiled[statement] = compiled
        values = compiled.construct_params(parameters)
        names = compiled.positiontup or ()
        self._check_open()
        with meaning():
            async with self._pool.acquire(timeout=seconds) as connection:
                bound = (values[name] for name in names)
                rows: list[Any] = await connection.fetch(compiled.string, *bound, timeout=seconds)
        return rows


@contextmanager
def meaning() -> Iterator[None]:
    """Turns the errors of PostgreSQL, of its driver and of SQLAlchemy into the service's own."""
    try:
        yield
    except DBAPIError as error:
        cause = error.orig.__cause__ if error.orig else None
        raise _translated(cause or error.orig or error) from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise _translated(error) from error
    except PoolTimeoutError as error:
        raise BusyError("the store has more to do than it can", "try again in a moment") from error
    except SQLAlchemyError as error:
        raise InternalError(f"the store failed: {type(error).__name__}") from error
    except UnicodeEncodeError as error:
        raise DataError("a text that is not valid Unicode cannot be stored") from error


@contextmanager
def _connecting() -> Iterator[None]:
    """Like `meaning`, of the first connections: what fails them may be the URL."""
    try:
        with meaning():
            yield
    except (TypeError, ValueError) as error:
        raise UsageError("the database's URL has a part that is unknown", _URL_HINT) from error
    except BusyError as error:
        raise InternalError(
            f"{error.what}{_reason(error)}", "see to the database and to CMDSVC_DATABASE_URL"
        ) from error


def _translated(error: BaseException) -> Exception:
    if isinstance(error, (asyncpg.InterfaceError, OSError)):
        return BusyError(*_OUT_OF_REACH)
    state = str(getattr(error, "sqlstate", None) or "")
    if state == "23505":
        return TakenError(str(error))
    if state == "23503":
        return DanglingError(str(error))
    if state == "22021":
        return DataError("a text with a NUL in it cannot be stored")
    if isinstance(error, asyncpg.DataError):  # the driver's own refusals are this too
        return DataError("a value cannot be stored", "it is not valid Unicode, or too large")
    for length in (5, 3, 2):
        if words := _BUSY.get(state[:length]):
            return BusyError(*words)
        if words := _MEANINGS.get(state[:length]):
            return InternalError(*words)
    return InternalError(f"the store failed: {type(error).__name__}")


def _sqlstate(error: DBAPIError) -> str:
    cause = error.orig.__cause__ if error.orig else None
    return str(getattr(cause, "sqlstate", ""))


def _reason(error: CmdError) -> str:
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.strerror:
        return f": {cause.strerror}"
    return ""


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise UsageError("the database's URL cannot be read", _URL_HINT) from None
    if parsed.drivername != SCHEME or not parsed.database:
        raise UsageError("the database's URL does not name a database", _URL_HINT)
    return parsed


def _engine(url: URL) -> AsyncEngine:
    return create_async_engine(
        url,
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=LOCK_TIMEOUT,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={
            "timeout": CONNECT_TIMEOUT,
            "command_timeout": SURVEY_TIMEOUT,
            # A plan that is kept is that of a table as it was, and of a new one it is to read it all.
            "server_settings": _settings(
                synchronous_commit="on", plan_cache_mode="force_custom_plan"
            ),
        },
    )


async def _pool(engine: AsyncEngine, url: URL) -> asyncpg.Pool:
    """Of the driver's own connections."""
    _, options = engine.dialect.create_connect_args(url)

    async def nothing(_connection: object) -> None:
        """What a connection is used for leaves nothing behind in it."""

    return await asyncpg.create_pool(
        **options,
        min_size=1,
        max_size=POOL_SIZE,
        max_inactive_connection_lifetime=0,
        reset=nothing,
        timeout=CONNECT_TIMEOUT,
        server_settings=_settings(synchronous_commit="off", **BY_INDEX),
    )


def _settings(**more: str) -> dict[str, str]:
    return {
        "application_name": "cmdsvc",
        "lock_timeout": f"{LOCK_TIMEOUT:g}s",
        "idle_in_transaction_session_timeout": "60s",
        **more,
    }


async def _migrate(connection: AsyncConnection) -> None:
    """One server at a time; the others find it done."""
    await connection.execute(text(f"SET LOCAL lock_timeout = '{SURVEY_TIMEOUT:g}s'"))
    key = bindparam("key", _MIGRATION, BigInteger)
    await connection.execute(select(func.pg_advisory_xact_lock(key)))
    await connection.run_sync(migrate.upgrade)
