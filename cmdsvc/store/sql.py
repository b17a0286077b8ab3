"""The store in SQL: every statement, and the way between rows and the service's nouns."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import Delete, Select, Update, bindparam, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from cmdsvc.errors import ExistsError, ForbiddenError, InternalError, NotFoundError
from cmdsvc.model import Command, Door, Outcome, Reason, Run, Version
from cmdsvc.store import Listing
from cmdsvc.store.schema import commands, runs, users, versions
from cmdsvc.store.sqlite import DanglingError, Sqlite, TakenError

MAX_RUNS = 1000
"""Rows that one listing of runs returns at most."""

_KNOWN_USERS = 10_000
_MAX_NUMBER = 2**31 - 1
"""The greatest that an Integer column holds on every database."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

_OWNED = commands.c.owner == bindparam("of_owner")
_IS_COMMAND = _OWNED & (commands.c.name == bindparam("of_name"))
_VERSION_OF = versions.c.command_id == commands.c.id
_CURRENT_OF = _VERSION_OF & (versions.c.number == commands.c.current)

USERS = select(users.c.name)
NAMES = select(commands.c.name).where(_OWNED)
FIND = (
    select(
        versions.c.description,
        versions.c.number,
        versions.c.source,
        versions.c.author,
        versions.c.created_at,
        versions.c.digest,
    )
    .select_from(commands.join(versions, _CURRENT_OF))
    .where(_IS_COMMAND)
)
LISTINGS = (
    select(commands.c.name, versions.c.description, versions.c.number, commands.c.updated_at)
    .select_from(commands.join(versions, _CURRENT_OF))
    .where(_OWNED)
)
CURRENT_SOURCE = (
    select(versions.c.source).select_from(commands.join(versions, _CURRENT_OF)).where(_IS_COMMAND)
)
SOURCE = (
    select(versions.c.source)
    .select_from(commands.join(versions, _VERSION_OF))
    .where(_IS_COMMAND, versions.c.number == bindparam("of_number"))
)
COUNT_UP = (
    update(commands)
    .where(_IS_COMMAND)
    .values(last=commands.c.last + 1, current=commands.c.last + 1)
)
LAST = select(commands.c.id, commands.c.last).where(_IS_COMMAND)
DELETE = delete(commands).where(_IS_COMMAND)
INSERT_RUN = insert(runs)
END_RUN = update(runs).where(runs.c.id == bindparam("of_run"), runs.c.ended_at.is_(None))
END_ALL = update(runs).where(runs.c.server == bindparam("of_server"), runs.c.ended_at.is_(None))


class SqlStore:
    """A `Store`."""

    def __init__(self, database: Sqlite, server: str) -> None:
        self._database = database
        self._server = server
        self._known: set[str] = set()

    async def ensure_user(self, name: str) -> None:
        if name in self._known:
            return

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(insert(users), {"name": name})

        with suppress(TakenError):
            await self._database.transact(work)
        if len(self._known) >= _KNOWN_USERS:
            self._known.clear()
        self._known.add(name)

    async def users(self) -> list[str]:
        return sorted(row[0] for row in await self._database.read(USERS, {}))

    async def create(
        self,
        *,
        owner: str,
        name: str,
        description: str,
        source: bytes,
        author: str,
        digest: str,
        created_at: datetime,
    ) -> Command:
        updated_at = _number(created_at)
        row = {"owner": owner, "name": name, "current": 0, "last": 0, "updated_at": updated_at}
        version = Version(1, source, author, created_at.astimezone(UTC), digest)

        async def work(connection: AsyncConnection) -> Command:
            await connection.execute(insert(commands), row)
            return await _append(connection, Command(owner, name, description, version))

        try:
            return await self._database.transact(work)
        except TakenError as error:
            raise ExistsError(
                f"{owner}/{name} exists already", "choose another name, or :edit it"
            ) from error
        except DanglingError as error:
            self._known.discard(owner)
            raise ForbiddenError(f"{owner} is not a user any more", "log in again") from error

    async def add_version(
        self,
        *,
        owner: str,
        name: str,
        description: str,
        source: bytes,
        author: str,
        digest: str,
        created_at: datetime,
    ) -> Command:
        version = Version(1, source, author, created_at.astimezone(UTC), digest)

        async def work(connection: AsyncConnection) -> Command:
            return await _append(connection, Command(owner, name, description, version))

        return await self._database.transact(work)

    async def find(self, owner: str, name: str) -> Command | None:
        rows = await self._database.read(FIND, {"of_owner": owner, "of_name": name})
        if not rows:
            return None
        description, number, source, author, created_at, digest = rows[0]
        version = Version(number, source, author, _moment(created_at), digest)
        return Command(owner, name, description, version)

    async def list_commands(self, owner: str) -> list[Listing]:
        rows = await self._database.read(LISTINGS, {"of_owner": owner})
        # Sorted here: databases differ in how they order text.
        return [
            Listing(owner, name, description, number, _moment(updated_at))
            for name, description, number, updated_at in sorted(rows)
        ]

    async def names(self, owner: str) -> list[str]:
        return sorted(row[0] for row in await self._database.read(NAMES, {"of_owner": owner}))

    async def source(self, owner: str, name: str, number: int | None = None) -> bytes | None:
        key: dict[str, Any] = {"of_owner": owner, "of_name": name}
        if number is None:
            rows = await self._database.read(CURRENT_SOURCE, key)
        elif 0 < number <= _MAX_NUMBER:
            rows = await self._database.read(SOURCE, {**key, "of_number": number})
        else:
            return None
        return bytes(rows[0][0]) if rows else None

    async def delete(self, owner: str, name: str) -> bool:
        return await self._change(DELETE, {"of_owner": owner, "of_name": name}) > 0

    async def begin_run(self, run: Run) -> None:
        row = {
            "id": run.id,
            "server": self._server,
            "command": run.command,
            "version": run.version,
            "user": run.user,
            "door": run.door.value,
            "started_at": _number(run.started_at),
        }
        try:
            await self._database.record(INSERT_RUN, row)
        except TakenError as error:
            raise InternalError(f"there is a run {run.id} already") from error

    async def end_run(self, run_id: str, ended_at: datetime, outcome: Outcome) -> None:
        await self._database.record(END_RUN, {"of_run": run_id, **_end(ended_at, outcome)})

    async def mark_lost(self, now: datetime) -> int:
        lost = Outcome(70, Reason.LOST, "the server stopped while this ran")
        return await self._change(END_ALL, {"of_server": self._server, **_end(now, lost)})

    async def runs(
        self, *, user: str | None = None, command: str | None = None, limit: int = 20
    ) -> list[Run]:
        wanted: dict[str, Any] = {"limit": max(0, min(limit, MAX_RUNS))}
        if user is not None:
            wanted["of_user"] = user
        if command is not None:
            wanted["of_command"] = command
        rows = await self._database.read(runs_query(user is not None, command is not None), wanted)
        return [_run(row) for row in rows]

    async def aclose(self) -> None:
        await self._database.aclose()

    async def _change(self, statement: Update | Delete, parameters: Mapping[str, Any]) -> int:
        """How many rows it changed."""

        async def work(connection: AsyncConnection) -> int:
            return (await connection.execute(statement, parameters)).rowcount

        return await self._database.transact(work)


@cache
def runs_query(of_user: bool, of_command: bool) -> Select[Any]:
    query = select(
        runs.c.id,
        runs.c.command,
        runs.c.version,
        runs.c.user,
        runs.c.door,
        runs.c.started_at,
        runs.c.ended_at,
        runs.c.exit_status,
        runs.c.reason,
        runs.c.message,
    )
    if of_user:
        query = query.where(runs.c.user == bindparam("of_user"))
    if of_command:
        query = query.where(runs.c.command == bindparam("of_command"))
    return query.order_by(runs.c.started_at.desc(), runs.c.id.desc()).limit(bindparam("limit"))


async def _append(connection: AsyncConnection, command: Command) -> Command:
    """Stores `command`'s version as its next one, whatever its number says, and returns it so."""
    key = {"of_owner": command.owner, "of_name": command.name}
    updated_at = _number(command.version.created_at)
    await connection.execute(COUNT_UP, {**key, "updated_at": updated_at})
    counted = (await connection.execute(LAST, key)).one_or_none()
    if counted is None:
        raise NotFoundError(f"there is no command {command.full_name}", "make it with :create")
    command_id, number = counted
    version = replace(command.version, number=number)
    row = {
        "command_id": command_id,
        "number": number,
        "description": command.description,
        "author": version.author,
        "digest": version.digest,
        "created_at": _number(version.created_at),
        "source": version.source,
    }
    await connection.execute(insert(versions), row)
    return replace(command, version=version)


def _end(ended_at: datetime, outcome: Outcome) -> dict[str, Any]:
    return {
        "ended_at": _number(ended_at),
        "exit_status": outcome.exit_status,
        "reason": outcome.reason.value,
        "message": outcome.message,
    }


def _run(row: tuple[Any, ...]) -> Run:
    run_id, command, version, user, door, started_at, ended_at, exit_status, reason, message = row
    begun = Run(run_id, command, version, user, Door(door), _moment(started_at))
    if ended_at is None:
        return begun
    outcome = Outcome(exit_status, Reason(reason), message)
    return replace(begun, ended_at=_moment(ended_at), outcome=outcome)


def _number(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def _moment(number: int) -> datetime:
    return _EPOCH + timedelta(microseconds=number)
