"""All that is sealed, of environments and of hooks: for another key, or another owner."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from sqlalchemy import Column, Select, Table, Update, bindparam, select, tuple_, update

from cmdsvc.store import Place, Reseal
from cmdsvc.store.database import Connection
from cmdsvc.store.schema import commands, env, hooks
from cmdsvc.store.sql.commands import IS_COMMAND
from cmdsvc.store.sql.part import Part

BATCH = 100
"""Sealed values that are read at once."""


class _Source:
    """A column of sealed values, of a table whose rows are by a command and a name."""

    def __init__(self, kind: str, table: Table, column: Column[Any]) -> None:
        key = (table.c.command_id, table.c.name)
        after = [bindparam(f"after_{part.name}", type_=part.type) for part in key]
        named: Select[Any] = (
            select(*key, commands.c.owner, commands.c.name, column)
            .select_from(table.join(commands, commands.c.id == table.c.command_id))
            .where(column.is_not(None))
        )
        self.kind = kind
        self.all = named.where(tuple_(*key) > tuple_(*after)).order_by(*key).limit(BATCH)
        self.of_owner = named.where(commands.c.owner == bindparam("of_owner"))
        command = select(commands.c.id).where(IS_COMMAND).scalar_subquery()
        self.replace: Update = (
            update(table)
            .where(key[0] == command, key[1] == bindparam("of_variable"))
            .where(column == bindparam("old"))
            .values({column: bindparam("new")})
        )


_SOURCES = (
    _Source("env", env, env.c.value),
    _Source("hook", hooks, hooks.c.secret),
    _Source("hook", hooks, hooks.c.previous),
)
SEALED = tuple(source.all for source in _SOURCES)


class Sealed(Part):
    async def sealed(self) -> AsyncIterator[tuple[Place, bytes]]:
        for source in _SOURCES:
            after: dict[str, Any] = {"after_command_id": -1, "after_name": ""}
            while rows := await self._database.survey(source.all, after):
                for command_id, name, owner, command, value in rows:
                    after = {"after_command_id": command_id, "after_name": name}
                    yield (source.kind, owner, command, name), bytes(value)

    async def reseal(self, values: Sequence[tuple[Place, bytes, bytes]]) -> int:
        async def work(connection: Connection) -> int:
            return sum([await _replace(connection, *each) for each in values])

        return await self._database.transact(work)


async def reseal_all(connection: Connection, owner: str, reseal: Reseal) -> None:
    """What an owner's commands have, as `reseal` makes it."""
    for source in _SOURCES:
        rows = (await connection.execute(source.of_owner, {"of_owner": owner})).all()
        for _, name, _, command, value in rows:
            place = (source.kind, owner, command, name)
            await _replace(connection, place, bytes(value), reseal(place, bytes(value)))


async def _replace(connection: Connection, place: Place, old: bytes, new: bytes) -> int:
    """How many were."""
    kind, owner, command, name = place
    key = {"of_owner": owner, "of_name": command, "of_variable": name, "old": old, "new": new}
    done = [
        (await connection.execute(source.replace, key)).rowcount
        for source in _SOURCES
        if source.kind == kind
    ]
    return sum(done)
