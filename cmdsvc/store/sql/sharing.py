"""What hangs on a command: who may run or change it, and its environment."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import BindParameter, bindparam, delete, insert, select, union

from cmdsvc.errors import NotFoundError
from cmdsvc.model import PUBLIC, TOKEN_PREFIX
from cmdsvc.store import Listing
from cmdsvc.store.database import Connection
from cmdsvc.store.schema import TO_EVERYONE, commands, env, grants, tokens, users, versions
from cmdsvc.store.sql.commands import ACCESS, ADMIN, CURRENT_OF, SUBJECT, hold
from cmdsvc.store.sql.part import Part, entry, moment, note

_ROLE = (grants.c.command_id == bindparam("of_id")) & (grants.c.role == bindparam("of_role"))
_GRANTED = select(SUBJECT).where(_ROLE)
_REVOKE = delete(grants).where(_ROLE, bindparam("of_subject") == SUBJECT)
_SUBJECT: BindParameter[str] = bindparam("of_subject")
_MINE = union(
    select(grants.c.command_id).where(grants.c.user == _SUBJECT),
    select(grants.c.command_id).where(grants.c.token == _SUBJECT),
    select(grants.c.command_id).where(TO_EVERYONE),
).subquery()
RUNNABLE = (
    select(
        commands.c.owner,
        commands.c.name,
        versions.c.description,
        versions.c.number,
        commands.c.updated_at,
    )
    .select_from(
        _MINE.join(commands, commands.c.id == _MINE.c.command_id).join(versions, CURRENT_OF)
    )
    .where(commands.c.owner != _SUBJECT)
)
_UNSET = delete(env).where(
    env.c.command_id == bindparam("of_id"), env.c.name == bindparam("of_variable")
)


class Sharing(Part):
    async def set_access(
        self,
        owner: str,
        name: str,
        *,
        grant: Collection[str] = (),
        revoke: Collection[str] = (),
        by: str,
    ) -> None:
        await self._set(ACCESS, owner, name, grant=set(grant), revoke=set(revoke), by=by)

    async def set_admins(
        self,
        owner: str,
        name: str,
        *,
        grant: Collection[str] = (),
        revoke: Collection[str] = (),
        by: str,
    ) -> None:
        await self._set(ADMIN, owner, name, grant=set(grant), revoke=set(revoke), by=by)

    async def _set(
        self, role: str, owner: str, name: str, *, grant: set[str], revoke: set[str], by: str
    ) -> None:
        words = "" if role == ACCESS else "admin-"

        async def work(connection: Connection) -> None:
            command_id, _ = await hold(connection, owner, name)
            key = {"of_id": command_id, "of_role": role}
            await _check_known(connection, grant, role)
            have = set((await connection.execute(_GRANTED, key)).scalars())
            added, removed = sorted(grant - have - revoke), sorted(revoke & have)
            for subject in added:
                await connection.execute(insert(grants), _row(command_id, role, subject))
            for subject in removed:
                await connection.execute(_REVOKE, {**key, "of_subject": subject})
            for verb, subjects in (("grant", added), ("revoke", removed)):
                if subjects:
                    line = entry(by, words + verb, f"{owner}/{name}", " ".join(subjects))
                    await note(connection, line)

        await self._database.transact(work)

    async def runnable(self, subject: str) -> list[Listing]:
        rows = await self._database.survey(RUNNABLE, {"of_subject": subject})
        found = [
            Listing(owner, name, description, current, moment(updated_at))
            for owner, name, description, current, updated_at in rows
        ]
        return sorted(found, key=lambda listing: listing.full_name)

    async def set_env(
        self,
        owner: str,
        name: str,
        *,
        put: Mapping[str, bytes],
        remove: Collection[str] = (),
        by: str,
    ) -> None:
        upsert = self._database.upsert(env)

        async def work(connection: Connection) -> None:
            command_id, _ = await hold(connection, owner, name)
            for variable, value in put.items():
                row = {"command_id": command_id, "name": variable, "value": value}
                await connection.execute(upsert, row)
            gone = []
            for variable in sorted(remove):
                key = {"of_id": command_id, "of_variable": variable}
                if (await connection.execute(_UNSET, key)).rowcount:
                    gone.append(variable)
            words = [f"set {' '.join(sorted(put))}"] if put else []
            words += [f"unset {' '.join(gone)}"] if gone else []
            if words:
                await note(connection, entry(by, "env", f"{owner}/{name}", ", ".join(words)))

        await self._database.transact(work)


def _row(command_id: int, role: str, subject: str) -> dict[str, Any]:
    token = subject.startswith(TOKEN_PREFIX)
    return {
        "command_id": command_id,
        "role": role,
        "user": None if token or subject == PUBLIC else subject,
        "token": subject if token else None,
    }


async def _check_known(connection: Connection, subjects: set[str], role: str) -> None:
    """NotFoundError for one that nothing can be granted to; held until the commit."""
    wanted_tokens = {one for one in subjects if one.startswith(TOKEN_PREFIX)}
    wanted_users = subjects - wanted_tokens - {PUBLIC}
    known: set[str] = set()
    for column, wanted in ((users.c.name, wanted_users), (tokens.c.id, wanted_tokens)):
        if wanted and not (role == ADMIN and column is tokens.c.id):
            query = select(column).where(column.in_(sorted(wanted)))
            held = query.with_for_update(read=True, key_share=True)
            known |= set((await connection.execute(held)).scalars())
    if role == ACCESS:
        known.add(PUBLIC)
    for subject in sorted(subjects - known):
        if role == ACCESS and subject in wanted_tokens:
            raise NotFoundError(f"there is no token {subject}", "see :tokens")
        raise NotFoundError(f"there is no user {subject}", "nothing was granted")
