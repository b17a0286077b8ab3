"""Schedules: what owners set and scripts say, and the moments that were dealt with."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    bindparam,
    delete,
    exists,
    literal_column,
    null,
    select,
    union_all,
)

from cmdsvc.errors import NotFoundError
from cmdsvc.model import Schedule, State
from cmdsvc.store import Arrival, Taken, Ticked
from cmdsvc.store.database import Connection, Database
from cmdsvc.store.schema import NOT_DONE, commands, deliveries, schedules, ticks, versions
from cmdsvc.store.sql.arrivals import Wanted, store
from cmdsvc.store.sql.commands import CURRENT_OF, IS_COMMAND, hold
from cmdsvc.store.sql.part import Part, entry, maybe, moment, note, number

_OWN = commands.join(schedules, schedules.c.command_id == commands.c.id).outerjoin(
    ticks, ticks.c.command_id == commands.c.id
)
_OWNERS = select(
    commands.c.owner,
    commands.c.name,
    schedules.c.expression,
    schedules.c.zone,
    schedules.c.since,
    schedules.c.overlap,
    ticks.c.last_at,
    ticks.c.last,
).select_from(_OWN)
_SCRIPTS = (
    select(
        commands.c.owner,
        commands.c.name,
        versions.c.schedule,
        null(),
        commands.c.updated_at,
        literal_column("0"),
        ticks.c.last_at,
        ticks.c.last,
    )
    .select_from(
        versions.join(commands, CURRENT_OF).outerjoin(ticks, ticks.c.command_id == commands.c.id)
    )
    .where(versions.c.schedule.is_not(None))
    .where(~exists().where(schedules.c.command_id == commands.c.id))
)


def _in_force(*which: ColumnElement[bool]) -> CompoundSelect[Any]:
    return union_all(_OWNERS.where(*which), _SCRIPTS.where(*which))


SCHEDULES = _in_force()
SCHEDULE = _in_force(IS_COMMAND)

_REMOVE = delete(schedules).where(schedules.c.command_id == bindparam("of_id"))
GOES_ON = select(
    exists().where(
        NOT_DONE,
        deliveries.c.state.in_([State.WAITING, State.RUNNING]),
        deliveries.c.command_id == bindparam("of_id"),
        deliveries.c.hook_id.is_(None),
    )
)


class Schedules(Part):
    def __init__(self, database: Database, server: str) -> None:
        super().__init__(database, server)
        self._put = database.upsert(schedules)
        self._tick = database.upsert(ticks)

    async def schedules(self) -> list[Schedule]:
        rows = await self._database.survey(SCHEDULES, {})
        return sorted(map(_schedule, rows), key=lambda schedule: schedule.command)

    async def schedule(self, owner: str, name: str) -> Schedule | None:
        rows = await self._database.read(SCHEDULE, {"of_owner": owner, "of_name": name})
        return _schedule(rows[0]) if rows else None

    async def set_schedule(self, schedule: Schedule, *, by: str) -> None:
        owner, _, name = schedule.command.partition("/")

        async def work(connection: Connection) -> None:
            command_id, _ = await hold(connection, owner, name)
            row = {
                "command_id": command_id,
                "expression": schedule.expression,
                "zone": schedule.zone,
                "since": number(schedule.since),
                "overlap": int(schedule.overlap),
            }
            await connection.execute(self._put, row)
            words = f"{schedule.expression} {schedule.zone}"
            await note(connection, entry(by, "schedule", schedule.command, words))

        await self._database.transact(work)

    async def remove_schedule(self, owner: str, name: str, *, by: str) -> bool:
        async def work(connection: Connection) -> bool:
            command_id, _ = await hold(connection, owner, name)
            if not (await connection.execute(_REMOVE, {"of_id": command_id})).rowcount:
                return False
            await note(connection, entry(by, "schedule", f"{owner}/{name}", "removed"))
            return True

        try:
            return await self._database.transact(work)
        except NotFoundError:
            return False

    async def tick(
        self, schedule: Schedule, at: datetime, arrival: Arrival | None, *, most: int
    ) -> Ticked:
        owner, _, name = schedule.command.partition("/")

        async def work(connection: Connection) -> Ticked:
            command_id, _ = await hold(connection, owner, name)
            key = {"of_owner": owner, "of_name": name}
            row = (await connection.execute(SCHEDULE, key)).one_or_none()
            if row is None or not _still(schedule, _schedule(row)):
                return Ticked.TAKEN
            ticked = await _dealt_with(connection, command_id, schedule, arrival, most)
            if ticked is not Ticked.TAKEN:
                tick = {
                    "command_id": command_id,
                    "last_at": number(at),
                    "last": ticked.name.lower(),
                }
                await connection.execute(self._tick, tick)
            return ticked

        try:
            return await self._database.transact(work)
        except NotFoundError:
            return Ticked.TAKEN


async def _dealt_with(
    connection: Connection,
    command_id: int,
    schedule: Schedule,
    arrival: Arrival | None,
    most: int,
) -> Ticked:
    if arrival is None:
        return Ticked.MISSED
    if not schedule.overlap and await connection.scalar(GOES_ON, {"of_id": command_id}):
        return Ticked.SKIPPED
    (result,) = await store([Wanted(arrival, most)], connection)
    if isinstance(result, Exception):
        raise result
    # One that is here already was begun at this moment once, and is no more than noted again.
    return Ticked.SKIPPED if result[0] is Taken.FULL else Ticked.BEGUN


def _still(asked: Schedule, found: Schedule) -> bool:
    """Whether it is what was asked for, and nobody has dealt with it since."""
    return all(
        getattr(asked, part) == getattr(found, part)
        for part in ("expression", "zone", "own", "since", "last_at")
    )


def _schedule(row: Any) -> Schedule:
    owner, name, expression, zone, since, overlap, last_at, last = row
    return Schedule(
        f"{owner}/{name}",
        expression,
        zone or "UTC",
        zone is not None,
        moment(since),
        bool(overlap),
        maybe(moment, last_at),
        last or "",
    )
