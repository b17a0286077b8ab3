"""Runs: begun, ended, looked at."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from typing import Any

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Select,
    bindparam,
    func,
    insert,
    select,
    union_all,
    update,
)

from cmdsvc.errors import InternalError
from cmdsvc.model import Door, Outcome, Reason, Run
from cmdsvc.store.database import Connection, TakenError
from cmdsvc.store.schema import BY_ANOTHER, commands, grants, runs
from cmdsvc.store.sql import answers
from cmdsvc.store.sql.commands import ADMIN, IS_COMMAND
from cmdsvc.store.sql.part import Part, bounded, moment, number

INSERT_RUN = insert(runs)
END_RUN = update(runs).where(runs.c.id == bindparam("of_run"), runs.c.ended_at.is_(None))
END_ALL = update(runs).where(runs.c.server == bindparam("of_server"), runs.c.ended_at.is_(None))
END_EVERY = update(runs).where(runs.c.ended_at.is_(None))
LOST = Outcome(70, Reason.LOST, "the server stopped while this ran; start it again")

_COLUMNS = (
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
    runs.c.token,
)
_USER: BindParameter[str] = bindparam("of_user")
_COMMAND: BindParameter[str] = bindparam("of_command")
_LIMIT: BindParameter[int] = bindparam("limit")
_IS_ADMIN = (grants.c.user == _USER) & (grants.c.role == ADMIN)

RUN = select(*_COLUMNS).where(runs.c.id == bindparam("of_run"))
ADMINISTERS = (
    select(grants.c.role)
    .select_from(grants.join(commands, commands.c.id == grants.c.command_id))
    .where(IS_COMMAND, _IS_ADMIN)
)


def _newest(*conditions: ColumnElement[bool]) -> Select[Any]:
    found = select(*_COLUMNS).where(*conditions)
    return found.order_by(runs.c.started_at.desc(), runs.c.id.desc()).limit(_LIMIT)


@cache
def runs_query(of_user: bool, of_command: bool) -> Select[Any]:
    if not of_user and not of_command:
        # Ids sort by time; there is no other index that could find the newest of all.
        return select(*_COLUMNS).order_by(runs.c.id.desc()).limit(_LIMIT)
    conditions = [runs.c.user == _USER] if of_user else []
    conditions += [runs.c.command == _COMMAND] if of_command else []
    return _newest(*conditions)


def _administered() -> Select[Any]:
    """The newest of each command that the user administers, `limit` of each and no more.

    Those are all that can be among the newest of all together.
    """
    command = (
        select((commands.c.owner + "/" + commands.c.name).label("full_name"))
        .select_from(grants.join(commands, commands.c.id == grants.c.command_id))
        .where(_IS_ADMIN, commands.c.owner != _USER)
        .subquery()
    )
    older = runs.alias()
    oldest_shown = (
        select(older.c.started_at)
        .where(older.c.command == command.c.full_name)
        .order_by(older.c.started_at.desc())
        .offset(bindparam("limit_less_one"))
        .limit(1)
        .scalar_subquery()
    )
    shown = (runs.c.command == command.c.full_name) & (
        runs.c.started_at >= func.coalesce(oldest_shown, 0)
    )
    return select(*_COLUMNS).select_from(command.join(runs, shown)).where(runs.c.user != _USER)


def _seen() -> Select[Any]:
    """Of three kinds, none of which is of another: his own, others' of his commands, and the rest."""
    kinds = (
        _newest(runs.c.user == _USER),
        _newest(runs.c.owner == _USER, BY_ANOTHER),
        _administered(),
    )
    seen = union_all(*(select(kind.subquery()) for kind in kinds)).subquery()
    newest = select(seen).order_by(seen.c.started_at.desc(), seen.c.id.desc())
    return newest.limit(_LIMIT)


SEEN = _seen()
SEEN_OF_ANOTHERS = _newest(runs.c.command == _COMMAND, runs.c.user == _USER, BY_ANOTHER)


class Runs(Part):
    async def begin_run(self, run: Run) -> None:
        row = {
            "id": run.id,
            "server": self._server,
            "command": run.command,
            "version": run.version,
            "user": run.user,
            "door": run.door.value,
            "started_at": number(run.started_at),
            "owner": _owner(run.command),
            "token": run.token,
        }
        try:
            await self._database.record(INSERT_RUN, row)
        except TakenError as error:
            raise InternalError(f"there is a run {run.id} already") from error

    async def end_run(self, run_id: str, ended_at: datetime, outcome: Outcome) -> None:
        await self._database.record(END_RUN, {"of_run": run_id, **_end(ended_at, outcome)})

    async def mark_lost(self, now: datetime) -> int:
        values = {"of_server": self._server, **_end(now, LOST)}

        async def work(connection: Connection) -> int:
            await connection.execute(answers.END_ALL, {"of_server": self._server})
            return (await connection.execute(END_ALL, values)).rowcount

        return await self._database.transact(work)

    async def run(self, run_id: str) -> Run | None:
        rows = await self._database.read(RUN, {"of_run": run_id})
        return _run(rows[0]) if rows else None

    async def runs(
        self, *, user: str | None = None, command: str | None = None, limit: int = 20
    ) -> list[Run]:
        wanted: dict[str, Any] = {"limit": bounded(limit)}
        if user is not None:
            wanted["of_user"] = user
        if command is not None:
            wanted["of_command"] = command
        rows = await self._database.read(runs_query(user is not None, command is not None), wanted)
        return [_run(row) for row in rows]

    async def runs_seen_by(
        self, user: str, *, command: str | None = None, limit: int = 20
    ) -> list[Run]:
        limit = bounded(limit)
        if not limit:
            return []
        if command is None:
            wanted = {"of_user": user, "limit": limit, "limit_less_one": limit - 1}
            rows = await self._database.read(SEEN, wanted)
        elif _owner(command) == user or await self._administers(user, command):
            return await self.runs(command=command, limit=limit)
        else:
            wanted = {"of_user": user, "of_command": command, "limit": limit}
            rows = await self._database.read(SEEN_OF_ANOTHERS, wanted)
        return [_run(row) for row in rows]

    async def _administers(self, user: str, command: str) -> bool:
        owner, _, name = command.partition("/")
        key = {"of_user": user, "of_owner": owner, "of_name": name}
        return bool(await self._database.read(ADMINISTERS, key))


async def all_lost(connection: Connection) -> None:
    """Ends, as lost, every run that has no end, whatever server it was of."""
    await connection.execute(END_EVERY, _end(datetime.now(UTC), LOST))


def _owner(command: str) -> str:
    return command.partition("/")[0]


def _end(ended_at: datetime, outcome: Outcome) -> dict[str, Any]:
    return {
        "ended_at": number(ended_at),
        "exit_status": outcome.exit_status,
        "reason": outcome.reason.value,
        "message": outcome.message,
    }


def _run(row: Any) -> Run:
    run_id, command, version, user, door, started_at, *ending, token = row
    ended_at, exit_status, reason, message = ending
    begun = Run(run_id, command, version, user, Door(door), moment(started_at), token=token)
    if ended_at is None:
        return begun
    outcome = Outcome(exit_status, Reason(reason), message)
    return replace(begun, ended_at=moment(ended_at), outcome=outcome)
