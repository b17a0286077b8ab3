"""Hooks."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, delete, func, insert, select, update

from cmdsvc.errors import ExistsError, NotFoundError
from cmdsvc.model import Hook, State
from cmdsvc.store.database import Connection, TakenError
from cmdsvc.store.schema import NOT_DONE, commands, deliveries, hooks
from cmdsvc.store.sql.commands import IS_COMMAND, hold
from cmdsvc.store.sql.part import Part, entry, maybe, moment, note, number

_COLUMNS = select(
    commands.c.owner,
    commands.c.name,
    hooks.c.id,
    hooks.c.name,
    hooks.c.scheme,
    hooks.c.options,
    hooks.c.secret,
    hooks.c.created_at,
    hooks.c.previous,
    hooks.c.rotated_at,
    hooks.c.retries,
    hooks.c.retry_any,
    hooks.c.ordered,
).select_from(commands.join(hooks, hooks.c.command_id == commands.c.id))
HOOKS = _COLUMNS.where(IS_COMMAND)
HOOK = HOOKS.where(hooks.c.name == bindparam("of_hook"))

_BY_ID = _COLUMNS.where(hooks.c.id == bindparam("of_id"))
_ROTATE = (
    update(hooks)
    .where(hooks.c.id == bindparam("of_id"))
    .values(previous=hooks.c.secret, secret=bindparam("fresh"), rotated_at=bindparam("at"))
)
_OF_COMMAND = select(hooks.c.id).where(
    hooks.c.command_id == bindparam("of_id"), hooks.c.name == bindparam("of_hook")
)
UNFINISHED = (
    select(func.count())
    .select_from(deliveries)
    .where(
        NOT_DONE,
        deliveries.c.state.in_([State.WAITING, State.RUNNING]),
        deliveries.c.command_id == bindparam("of_id"),
        deliveries.c.hook_id == bindparam("of_hook"),
    )
)
_REMOVE = delete(hooks).where(hooks.c.id == bindparam("of_hook"))
COUNT = (
    update(commands)
    .where(commands.c.id == bindparam("of_id"))
    .values(unfinished=commands.c.unfinished + bindparam("more"))
)
"""More, or fewer, deliveries of a command have not ended."""


class Hooks(Part):
    async def add_hook(self, hook: Hook, *, by: str) -> Hook:
        owner, _, name = hook.command.partition("/")

        async def work(connection: Connection) -> Hook:
            command_id, _ = await hold(connection, owner, name)
            row = {
                "command_id": command_id,
                "name": hook.name,
                "scheme": hook.scheme,
                "options": json.dumps(dict(hook.options)),
                "created_at": number(hook.created_at),
                "rotated_at": maybe(number, hook.rotated_at),
                "retries": hook.retries,
                "retry_any": int(hook.retry_any),
                "ordered": int(hook.ordered),
                "secret": hook.secret,
                "previous": hook.previous,
            }
            made = await connection.scalar(insert(hooks).returning(hooks.c.id), row)
            line = entry(by, "hook", hook.command, f"{hook.name} made: {hook.scheme}")
            await note(connection, line)
            return replace(hook, id=int(made or 0))

        try:
            return await self._database.transact(work)
        except TakenError as error:
            raise ExistsError(
                f"{hook.command} has a hook {hook.name} already", "choose another name"
            ) from error

    async def hooks(self, owner: str, name: str) -> list[Hook]:
        rows = await self._database.read(HOOKS, {"of_owner": owner, "of_name": name})
        return sorted(map(_hook, rows), key=lambda hook: hook.name)

    async def hook(self, owner: str, name: str, hook: str) -> Hook | None:
        key = {"of_owner": owner, "of_name": name, "of_hook": hook}
        rows = await self._database.read(HOOK, key)
        return _hook(rows[0]) if rows else None

    async def rotate_hook(self, hook: Hook, secret: bytes, at: datetime, *, by: str) -> Hook:
        key = {"of_id": hook.id}

        async def work(connection: Connection) -> Hook:
            values = {**key, "fresh": secret, "at": number(at)}
            if not (await connection.execute(_ROTATE, values)).rowcount:
                raise NotFoundError(f"{hook.command} has no hook {hook.name}", "see :hooks")
            await note(connection, entry(by, "hook", hook.command, f"{hook.name} rotated"))
            return _hook((await connection.execute(_BY_ID, key)).one())

        return await self._database.transact(work)

    async def remove_hook(self, owner: str, name: str, hook: str, *, by: str) -> bool:
        async def work(connection: Connection) -> bool:
            command_id, _ = await hold(connection, owner, name)
            found = await connection.scalar(_OF_COMMAND, {"of_id": command_id, "of_hook": hook})
            if found is None:
                return False
            key = {"of_id": command_id, "of_hook": found}
            unfinished = await connection.scalar(UNFINISHED, key)
            await connection.execute(COUNT, {"of_id": command_id, "more": -int(unfinished or 0)})
            await connection.execute(_REMOVE, key)
            await note(connection, entry(by, "hook", f"{owner}/{name}", f"{hook} removed"))
            return True

        try:
            return await self._database.transact(work)
        except NotFoundError:
            return False


def _hook(row: Any) -> Hook:
    (
        owner,
        command,
        hook_id,
        name,
        scheme,
        options,
        secret,
        created_at,
        previous,
        rotated_at,
        retries,
        retry_any,
        ordered,
    ) = row
    return Hook(
        hook_id,
        f"{owner}/{command}",
        name,
        scheme,
        json.loads(options),
        bytes(secret),
        moment(created_at),
        maybe(bytes, previous),
        maybe(moment, rotated_at),
        retries,
        bool(retry_any),
        bool(ordered),
    )
