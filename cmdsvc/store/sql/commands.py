"""Commands and their versions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    bindparam,
    delete,
    distinct,
    func,
    insert,
    literal_column,
    null,
    select,
    union_all,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from cmdsvc.errors import ExistsError, ForbiddenError, NotFoundError
from cmdsvc.model import PUBLIC, Command, Entry, Version, VersionInfo
from cmdsvc.store import Listing
from cmdsvc.store.database import DanglingError, TakenError
from cmdsvc.store.schema import commands, env, grants, versions
from cmdsvc.store.sql.part import Part, entry, moment, note, number

ADMIN = "admin"
ACCESS = "access"
"""Roles: what a grant is of."""

_MAX_NUMBER = 2**31 - 1
"""The greatest that an Integer column holds on every database."""

_OWNED = commands.c.owner == bindparam("of_owner")
IS_COMMAND = _OWNED & (commands.c.name == bindparam("of_name"))
_VERSION_OF = versions.c.command_id == commands.c.id
_SIZE = func.length(versions.c.source)
CURRENT_OF = _VERSION_OF & (versions.c.number == commands.c.current)

SUBJECT = func.coalesce(grants.c.user, grants.c.token, PUBLIC)

# One statement: all of a command is of one moment. What is its own and what hangs on it come as
# rows of several kinds, since a join would repeat the source.
FIND = union_all(
    select(
        literal_column("'version'").label("kind"),
        versions.c.description,
        versions.c.source,
        versions.c.number,
        versions.c.author,
        versions.c.created_at,
        versions.c.digest,
    )
    .select_from(commands.join(versions, CURRENT_OF))
    .where(IS_COMMAND),
    select(grants.c.role, SUBJECT, *[null()] * 5)
    .select_from(commands.join(grants, grants.c.command_id == commands.c.id))
    .where(IS_COMMAND),
    select(literal_column("'env'"), env.c.name, env.c.value, *[null()] * 4)
    .select_from(commands.join(env, env.c.command_id == commands.c.id))
    .where(IS_COMMAND),
)
NAMES = select(commands.c.name).where(_OWNED)
LISTINGS = (
    select(commands.c.name, versions.c.description, versions.c.number, commands.c.updated_at)
    .select_from(commands.join(versions, CURRENT_OF))
    .where(_OWNED)
)
CURRENT_SOURCE = (
    select(versions.c.source).select_from(commands.join(versions, CURRENT_OF)).where(IS_COMMAND)
)
VERSION = (
    select(versions.c.source, versions.c.author, versions.c.created_at, versions.c.digest)
    .select_from(commands.join(versions, _VERSION_OF))
    .where(IS_COMMAND, versions.c.number == bindparam("of_number"))
)
HISTORY = (
    select(
        versions.c.number,
        versions.c.author,
        versions.c.created_at,
        versions.c.digest,
        _SIZE,
        commands.c.current,
    )
    .select_from(commands.join(versions, _VERSION_OF))
    .where(IS_COMMAND)
    .order_by(versions.c.number.desc())
)
STORED = (
    select(func.count(distinct(commands.c.id)), func.coalesce(func.sum(_SIZE), 0))
    .select_from(commands.join(versions, _VERSION_OF))
    .where(_OWNED)
)
DIGESTS = select(versions.c.digest, func.count()).group_by(versions.c.digest)

_COUNT_UP = (
    update(commands).where(IS_COMMAND).values(last=commands.c.last + 1, current=commands.c.last + 1)
)
_LAST = select(commands.c.id, commands.c.last).where(IS_COMMAND)
_HOLD = select(commands.c.id, commands.c.current).where(IS_COMMAND).with_for_update()
_DELETE = delete(commands).where(IS_COMMAND)
_IS_NUMBER = (
    select(versions.c.number)
    .where(versions.c.command_id == bindparam("of_id"))
    .where(versions.c.number == bindparam("of_number"))
)
_SET_CURRENT = update(commands).where(commands.c.id == bindparam("of_id"))


class Commands(Part):
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
        schedule: str | None = None,
    ) -> Command:
        version = Version(1, source, author, created_at.astimezone(UTC), digest)
        command = Command(owner, name, description, version)
        row = {
            "owner": owner,
            "name": name,
            "current": 0,
            "last": 0,
            "updated_at": number(created_at),
        }

        async def work(connection: AsyncConnection) -> Command:
            await connection.execute(insert(commands), row)
            await _append(connection, command, schedule)
            await note(connection, Entry(created_at, author, "create", command.full_name))
            return command

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
        schedule: str | None = None,
    ) -> Command:
        version = Version(1, source, author, created_at.astimezone(UTC), digest)
        command = Command(owner, name, description, version)

        async def work(connection: AsyncConnection) -> Command:
            given = await _append(connection, command, schedule)
            line = Entry(created_at, author, "edit", command.full_name, f"version {given}")
            await note(connection, line)
            return await _found(connection, owner, name)

        return await self._database.transact(work)

    async def find(self, owner: str, name: str) -> Command | None:
        rows = await self._database.find(FIND, {"of_owner": owner, "of_name": name})
        return _command(owner, name, rows)

    async def list_commands(self, owner: str) -> list[Listing]:
        rows = await self._database.read(LISTINGS, {"of_owner": owner})
        # Sorted here: databases differ in how they order text.
        return [
            Listing(owner, name, description, current, moment(updated_at))
            for name, description, current, updated_at in sorted(map(tuple, rows))
        ]

    async def names(self, owner: str) -> list[str]:
        return sorted(row[0] for row in await self._database.read(NAMES, {"of_owner": owner}))

    async def source(self, owner: str, name: str, number: int | None = None) -> bytes | None:
        if number is not None:
            version = await self.version(owner, name, number)
            return version.source if version else None
        rows = await self._database.read(CURRENT_SOURCE, {"of_owner": owner, "of_name": name})
        return bytes(rows[0][0]) if rows else None

    async def version(self, owner: str, name: str, number: int) -> Version | None:
        if not 0 < number <= _MAX_NUMBER:
            return None
        key = {"of_owner": owner, "of_name": name, "of_number": number}
        rows = await self._database.read(VERSION, key)
        if not rows:
            return None
        source, author, created_at, digest = rows[0]
        return Version(number, source, author, moment(created_at), digest)

    async def history(self, owner: str, name: str) -> list[VersionInfo]:
        rows = await self._database.read(HISTORY, {"of_owner": owner, "of_name": name})
        return [
            VersionInfo(given, author, moment(created_at), digest, size, given == current)
            for given, author, created_at, digest, size, current in rows
        ]

    async def set_current(self, owner: str, name: str, number: int, *, by: str) -> Command:
        async def work(connection: AsyncConnection) -> Command:
            command_id, current = await hold(connection, owner, name)
            if number != current:
                await _make_current(connection, command_id, number, f"{owner}/{name}")
                line = entry(by, "rollback", f"{owner}/{name}", f"version {number}")
                await note(connection, line)
            return await _found(connection, owner, name)

        return await self._database.transact(work)

    async def delete(self, owner: str, name: str, *, by: str) -> bool:
        async def work(connection: AsyncConnection) -> bool:
            key = {"of_owner": owner, "of_name": name}
            if not (await connection.execute(_DELETE, key)).rowcount:
                return False
            await note(connection, entry(by, "delete", f"{owner}/{name}"))
            return True

        return await self._database.transact(work)

    async def stored(self, owner: str) -> tuple[int, int]:
        ((count, size),) = await self._database.read(STORED, {"of_owner": owner})
        return count, int(size)

    async def digests(self) -> dict[str, int]:
        return {row[0]: row[1] for row in await self._database.survey(DIGESTS, {})}


async def hold(connection: AsyncConnection, owner: str, name: str) -> tuple[int, int]:
    """The command's id and its current version; nobody else changes it until the commit.

    NotFoundError where it is gone.
    """
    key = {"of_owner": owner, "of_name": name}
    held = (await connection.execute(_HOLD, key)).one_or_none()
    if held is None:
        raise _gone(owner, name)
    return held[0], held[1]


def _gone(owner: str, name: str) -> NotFoundError:
    return NotFoundError(f"there is no command {owner}/{name}", "make it with :create")


async def _append(connection: AsyncConnection, command: Command, schedule: str | None) -> int:
    """Stores `command`'s version as its next one, whatever its number says; returns the number."""
    key = {"of_owner": command.owner, "of_name": command.name}
    updated_at = number(command.version.created_at)
    await connection.execute(_COUNT_UP, {**key, "updated_at": updated_at})
    counted = (await connection.execute(_LAST, key)).one_or_none()
    if counted is None:
        raise _gone(command.owner, command.name)
    command_id, last = counted
    version = command.version
    row = {
        "command_id": command_id,
        "number": last,
        "description": command.description,
        "author": version.author,
        "digest": version.digest,
        "created_at": updated_at,
        "source": version.source,
        "schedule": schedule,
    }
    await connection.execute(insert(versions), row)
    return int(last)


async def _make_current(
    connection: AsyncConnection, command_id: int, wanted: int, full_name: str
) -> None:
    key: Mapping[str, Any] = {"of_id": command_id, "of_number": wanted}
    known = 0 < wanted <= _MAX_NUMBER and (await connection.execute(_IS_NUMBER, key)).all()
    if not known:
        raise NotFoundError(f"{full_name} has no version {wanted}", "see :history")
    values = {"of_id": command_id, "current": wanted, "updated_at": number(datetime.now(UTC))}
    await connection.execute(_SET_CURRENT, values)


async def _found(connection: AsyncConnection, owner: str, name: str) -> Command:
    rows = await connection.execute(FIND, {"of_owner": owner, "of_name": name})
    command = _command(owner, name, rows)
    if command is None:
        raise _gone(owner, name)
    return command


def _command(owner: str, name: str, rows: Iterable[Any]) -> Command | None:
    """From the rows of FIND, in any order."""
    named: dict[str, set[str]] = {ADMIN: set(), ACCESS: set()}
    values: dict[str, bytes] = {}
    description, version = "", None
    for kind, text, data, given, author, created_at, digest in rows:
        if kind == "version":
            description = text
            version = Version(given, data, author, moment(created_at), digest)
        elif kind == "env":
            values[text] = data
        else:
            named[kind].add(text)
    if version is None:
        return None
    admins, access = frozenset(named[ADMIN]), frozenset(named[ACCESS])
    return Command(owner, name, description, version, admins, access, values)
