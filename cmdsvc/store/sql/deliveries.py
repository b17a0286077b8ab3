"""Deliveries: taken, ended, looked at, replayed, removed."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from sqlalchemy import (
    BindParameter,
    Update,
    bindparam,
    delete,
    exists,
    func,
    null,
    or_,
    select,
    update,
)

from cmdsvc.model import Delivery, State
from cmdsvc.store import Backlog
from cmdsvc.store.database import Connection
from cmdsvc.store.schema import NOT_DONE, commands, deliveries, hooks
from cmdsvc.store.sql.arrivals import Arrivals
from cmdsvc.store.sql.commands import IS_COMMAND, hold
from cmdsvc.store.sql.hooks import COUNT
from cmdsvc.store.sql.part import bounded, entry, maybe, moment, note, number

BATCH = 100
"""Deliveries that one transaction removes at most."""

_ENDED = (State.DONE, State.FAILED)
_OF: BindParameter[str] = bindparam("of_delivery")
_ME: BindParameter[str] = bindparam("of_server")
_MINE = deliveries.c.server == _ME
_NOT_MINE = or_(deliveries.c.server.is_(None), deliveries.c.server != _ME)

_COLUMNS = (
    commands.c.owner,
    commands.c.name,
    hooks.c.name,
    deliveries.c.number,
    deliveries.c.id,
    deliveries.c.event,
    deliveries.c.received_at,
    deliveries.c.state,
    deliveries.c.attempt,
    deliveries.c.due_at,
    deliveries.c.run,
    deliveries.c.exit_status,
    deliveries.c.message,
    deliveries.c.size,
    deliveries.c.retries,
    deliveries.c.retry_any,
)
_JOINED = deliveries.join(commands, commands.c.id == deliveries.c.command_id).outerjoin(
    hooks, hooks.c.id == deliveries.c.hook_id
)

DUE = (
    select(*_COLUMNS, deliveries.c.env, deliveries.c.body)
    .select_from(_JOINED)
    .where(deliveries.c.due_at <= bindparam("now"), _NOT_MINE)
    .order_by(deliveries.c.due_at, deliveries.c.number)
    .limit(bindparam("limit"))
    .with_for_update(of=deliveries, skip_locked=True)
)
NEXT_DUE = (
    select(deliveries.c.due_at)
    .where(deliveries.c.due_at.is_not(None), _NOT_MINE)
    .order_by(deliveries.c.due_at, deliveries.c.number)
    .limit(1)
)
_CLAIM = (
    update(deliveries)
    .where(deliveries.c.number == bindparam("of_number"))
    .values(
        state=State.RUNNING,
        attempt=deliveries.c.attempt + 1,
        due_at=bindparam("until"),
        server=_ME,
    )
)
_RENEW = update(deliveries).where(deliveries.c.id == _OF, _MINE).values(due_at=bindparam("until"))
RECLAIM = (
    update(deliveries)
    .where(_MINE)
    .values(state=State.WAITING, due_at=bindparam("now"), server=null())
)
_ATTEMPT = update(deliveries).where(
    deliveries.c.id == _OF,
    deliveries.c.attempt == bindparam("of_attempt"),
    deliveries.c.state == State.RUNNING,
    _MINE,
)
_BEGIN = _ATTEMPT.values(run=bindparam("of_run"))
_END = _ATTEMPT.values(server=null())
_PLACE = select(deliveries.c.command_id, deliveries.c.line).where(deliveries.c.id == _OF)
_HOLD = (
    select(commands.c.id).where(commands.c.id == bindparam("of_id")).with_for_update(key_share=True)
)
_EACH = deliveries.alias()
_FIRST = select(func.min(_EACH.c.number)).where(_EACH.c.line == bindparam("of_line"))
ADVANCE = (
    update(deliveries)
    .where(deliveries.c.number == _FIRST.scalar_subquery())
    .values(due_at=deliveries.c.received_at)
)
"""The first of an ordered hook may be taken. Not to be called where another one is."""

_LISTED = (
    select(*_COLUMNS)
    .select_from(_JOINED)
    .order_by(deliveries.c.number.desc())
    .limit(bindparam("limit"))
)
LISTED = _LISTED.where(IS_COMMAND)
LISTED_OF_HOOK = _LISTED.where(
    deliveries.c.hook_id
    == select(hooks.c.id)
    .select_from(hooks.join(commands, commands.c.id == hooks.c.command_id))
    .where(IS_COMMAND, hooks.c.name == bindparam("of_hook"))
    .scalar_subquery()
)
LISTED_OF_SCHEDULE = LISTED.where(deliveries.c.hook_id.is_(None))

_REPLAYED = select(deliveries.c.number, deliveries.c.hook_id, hooks.c.ordered).select_from(
    deliveries.outerjoin(hooks, hooks.c.id == deliveries.c.hook_id)
)
_REPLAY_ONE = _REPLAYED.where(
    deliveries.c.command_id == bindparam("of_id"),
    deliveries.c.id == _OF,
    deliveries.c.state.in_(_ENDED),
)
REPLAY_FAILED = _REPLAYED.where(
    NOT_DONE,
    deliveries.c.state == State.FAILED,
    deliveries.c.command_id == bindparam("of_id"),
)
_REPLAY = (
    update(deliveries)
    .where(deliveries.c.number == bindparam("of_number"))
    .values(
        state=State.WAITING,
        attempt=0,
        due_at=bindparam("at"),
        line=bindparam("of_line"),
        ended_at=null(),
        run=null(),
        exit_status=null(),
        message="",
    )
)
_HAS_HEAD = select(
    exists().where(deliveries.c.line == bindparam("of_line"), deliveries.c.due_at.is_not(None))
)
BACKLOG = (
    select(deliveries.c.state, func.count(), func.min(deliveries.c.received_at))
    .where(NOT_DONE)
    .group_by(deliveries.c.state)
)
OLD = (
    select(deliveries.c.number)
    .where(deliveries.c.ended_at < bindparam("before"))
    .order_by(deliveries.c.ended_at)
    .limit(BATCH)
    .with_for_update(skip_locked=True)
)


class Deliveries(Arrivals):
    async def claim(
        self, now: datetime, until: datetime, limit: int, *, apart: Collection[str] = ()
    ) -> list[Delivery]:
        wanted = {"now": number(now), "limit": max(0, limit), "of_server": self._server}
        due = DUE
        if apart:
            theirs = select(commands.c.id).where(commands.c.owner.in_(sorted(apart)))
            due = DUE.where(deliveries.c.command_id.not_in(theirs))

        async def work(connection: Connection) -> list[Delivery]:
            rows = (await connection.execute(due, wanted)).all()
            taken = [
                {"of_number": row[3], "until": number(until), "of_server": self._server}
                for row in rows
            ]
            if taken:
                await connection.execute(_CLAIM, taken)
            return [_claimed(row) for row in rows]

        return await self._database.transact(work)

    async def renew(self, ids: Collection[str], until: datetime) -> None:
        rows = [
            {"of_delivery": one, "until": number(until), "of_server": self._server}
            for one in sorted(ids)
        ]
        if rows:
            await self._changed(_RENEW, rows)

    async def begin_attempt(self, delivery_id: str, attempt: int, run_id: str) -> bool:
        key = {"of_delivery": delivery_id, "of_attempt": attempt, "of_server": self._server}
        return bool(await self._changed(_BEGIN, {**key, "of_run": run_id}))

    async def end_attempt(
        self,
        delivery_id: str,
        attempt: int,
        state: State,
        *,
        due_at: datetime | None = None,
        exit_status: int | None = None,
        message: str = "",
        uncounted: bool = False,
    ) -> bool:
        ended = state in _ENDED
        values: dict[str, Any] = {
            "of_delivery": delivery_id,
            "of_attempt": attempt,
            "of_server": self._server,
            "state": state.value,
            "attempt": attempt - uncounted,
            "exit_status": exit_status,
            "message": message,
            "ended_at": number(datetime.now(UTC)) if ended else None,
            "due_at": None if ended else number(due_at or datetime.now(UTC)),
        }
        if not ended:
            return bool(await self._changed(_END, values))

        async def work(connection: Connection) -> bool:
            # The command first: those that add to a line, or go on in it, come one by one.
            place = (await connection.execute(_PLACE, {"of_delivery": delivery_id})).one_or_none()
            if place is None:
                return False
            command_id, line = place
            await connection.execute(_HOLD, {"of_id": command_id})
            if not (await connection.execute(_END, {**values, "line": None})).rowcount:
                return False
            await connection.execute(COUNT, {"of_id": command_id, "more": -1})
            if line is not None:
                await connection.execute(ADVANCE, {"of_line": line})
            return True

        return await self._database.transact(work)

    async def reclaim(self, now: datetime) -> int:
        return await self._changed(RECLAIM, {"now": number(now), "of_server": self._server})

    async def _changed(self, statement: Update, values: Any) -> int:
        """How many rows."""

        async def work(connection: Connection) -> int:
            return (await connection.execute(statement, values)).rowcount

        return await self._database.transact(work)

    async def next_due(self) -> datetime | None:
        rows = await self._database.read(NEXT_DUE, {"of_server": self._server})
        return moment(rows[0][0]) if rows else None

    async def deliveries(
        self, owner: str, name: str, *, hook: str | None = None, limit: int = 20
    ) -> list[Delivery]:
        wanted = {"of_owner": owner, "of_name": name, "limit": bounded(limit)}
        if not hook:
            listed = LISTED if hook is None else LISTED_OF_SCHEDULE
            rows = await self._database.read(listed, wanted)
        else:
            rows = await self._database.read(LISTED_OF_HOOK, {**wanted, "of_hook": hook})
        return [_delivery(row) for row in rows]

    async def replay(
        self, owner: str, name: str, *, delivery: str | None, now: datetime, by: str
    ) -> int:
        async def work(connection: Connection) -> int:
            command_id, _ = await hold(connection, owner, name)
            key: dict[str, Any] = {"of_id": command_id}
            if delivery is None:
                found = (await connection.execute(REPLAY_FAILED, key)).all()
            else:
                key["of_delivery"] = delivery
                found = (await connection.execute(_REPLAY_ONE, key)).all()
            if not found:
                return 0
            lines = {hook_id for _, hook_id, ordered in found if ordered}
            changes = [
                {
                    "of_number": one,
                    "at": None if ordered else number(now),
                    "of_line": hook_id if ordered else None,
                }
                for one, hook_id, ordered in found
            ]
            await connection.execute(_REPLAY, changes)
            for line in sorted(lines):
                if not await connection.scalar(_HAS_HEAD, {"of_line": line}):
                    await connection.execute(ADVANCE, {"of_line": line})
            await connection.execute(COUNT, {"of_id": command_id, "more": len(found)})
            words = delivery or f"all failed: {len(found)}"
            await note(connection, entry(by, "replay", f"{owner}/{name}", words))
            return len(found)

        return await self._database.transact(work)

    async def backlog(self) -> Backlog:
        rows = await self._database.survey(BACKLOG, {})
        found = {state: (int(count), oldest) for state, count, oldest in rows}
        waiting, oldest = found.get(State.WAITING, (0, None))
        running, _ = found.get(State.RUNNING, (0, None))
        failed, _ = found.get(State.FAILED, (0, None))
        return Backlog(waiting, running, failed, maybe(moment, oldest))

    async def retire_deliveries(self, *, before: datetime) -> int:
        gone, found = 0, BATCH
        while found == BATCH:
            found = await self._step(partial(_remove, number(before)))
            gone += found
        return gone


async def _remove(before: int, connection: Connection) -> int:
    """Some that ended before a moment; how many."""
    found = (await connection.execute(OLD, {"before": before})).scalars().all()
    await connection.execute(delete(deliveries).where(deliveries.c.number.in_(found)))
    return len(found)


def _claimed(row: Any) -> Delivery:
    *listed, env, body = row
    pairs = json.loads(env).items()
    return replace(
        _delivery(listed),
        state=State.RUNNING,
        attempt=row.attempt + 1,
        due_at=None,
        env={name.encode("latin-1"): value.encode("latin-1") for name, value in pairs},
        body=bytes(body),
    )


def _delivery(row: Any) -> Delivery:
    (
        owner,
        command,
        hook,
        _,
        delivery_id,
        event,
        received_at,
        state,
        attempt,
        due_at,
        run,
        exit_status,
        message,
        size,
        retries,
        retry_any,
    ) = row
    return Delivery(
        delivery_id,
        f"{owner}/{command}",
        hook or "",
        event,
        moment(received_at),
        State(state),
        attempt,
        maybe(moment, None if state == State.RUNNING else due_at),
        run,
        exit_status,
        message,
        size=size,
        retries=retries,
        retry_any=bool(retry_any),
    )
