"""Users: known, renamed, removed."""

from __future__ import annotations

from contextlib import suppress

from sqlalchemy import String, bindparam, delete, func, insert, select, update

from cmdsvc.errors import ExistsError
from cmdsvc.store import Reseal
from cmdsvc.store.database import Connection, TakenError
from cmdsvc.store.schema import BY_ANOTHER, commands, runs, users, versions
from cmdsvc.store.sql.part import Part, entry, note
from cmdsvc.store.sql.sealed import reseal_all

_KNOWN_USERS = 10_000

USERS = select(users.c.name)

_OLD, _NEW = bindparam("old", type_=String), bindparam("new", type_=String)

_HOLD = select(users.c.name).where(users.c.name == _OLD).with_for_update()
_RENAME = update(users).where(users.c.name == _OLD).values(name=_NEW)
_REMOVE = delete(users).where(users.c.name == _OLD)
_REMOVE_COMMANDS = delete(commands).where(commands.c.owner == _OLD)
_RENAME_AUTHOR = update(versions).where(versions.c.author == _OLD).values(author=_NEW)
_OF_OWNER = update(runs).values(
    owner=_NEW,
    command=_NEW.concat(func.substr(runs.c.command, func.length(_OLD) + 1)),
)
# Two, so that each finds its runs by an index.
RENAME_RUNS = (
    _OF_OWNER.where(runs.c.owner == _OLD, BY_ANOTHER),
    _OF_OWNER.where(runs.c.owner == _OLD, runs.c.user == _OLD),
    update(runs).where(runs.c.user == _OLD).values(user=_NEW),
)


class Users(Part):
    async def ensure_user(self, name: str) -> None:
        if name in self._known:
            return

        async def work(connection: Connection) -> None:
            await connection.execute(insert(users), {"name": name})

        with suppress(TakenError):
            await self._database.transact(work)
        if len(self._known) >= _KNOWN_USERS:
            self._known.clear()
        self._known.add(name)

    async def users(self) -> list[str]:
        return sorted(row[0] for row in await self._database.read(USERS, {}))

    async def rename_user(
        self, old: str, new: str, *, by: str, reseal: Reseal | None = None
    ) -> bool:
        names = {"old": old, "new": new}

        async def work(connection: Connection) -> bool:
            # What refers to a user's name follows by itself.
            if not (await connection.execute(_RENAME, names)).rowcount:
                return False
            for statement in (_RENAME_AUTHOR, *RENAME_RUNS):
                await connection.execute(statement, names)
            if reseal is not None:
                await reseal_all(connection, new, reseal)
            await note(connection, entry(by, "user-rename", old, f"to {new}"))
            return True

        self._known.discard(old)
        try:
            return await self._database.transact(work)
        except TakenError as error:
            raise ExistsError(f"there is a user {new} already", "choose another name") from error

    async def remove_user(self, name: str, *, by: str) -> bool:
        key = {"old": name}

        async def work(connection: Connection) -> bool:
            # Held first, so that nobody makes him another command meanwhile.
            if (await connection.execute(_HOLD, key)).one_or_none() is None:
                return False
            count = (await connection.execute(_REMOVE_COMMANDS, key)).rowcount
            await connection.execute(_REMOVE, key)
            await note(connection, entry(by, "user-rm", name, f"with {count} commands"))
            return True

        try:
            return await self._database.transact(work)
        finally:
            self._known.discard(name)
