"""What comes in: stored once, within bounds, several at a time."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from sqlalchemy import bindparam, insert, select, tuple_, union_all, update

from cmdsvc.errors import BusyError, CmdError, DataError, InternalError, NotFoundError
from cmdsvc.model import State
from cmdsvc.store import Arrival, Taken
from cmdsvc.store.database import Connection, DanglingError, Database, TakenError
from cmdsvc.store.schema import commands, deliveries, hooks
from cmdsvc.store.sql.part import Part, number

BATCH = 64
"""Arrivals that one commit is for, at most."""
MOST_PENDING = 1024
"""Arrivals that may wait for theirs."""

Result = tuple[Taken, str] | CmdError

# Held one after the other in the same order by all, so that nobody waits for one who waits for him.
COMMANDS = (
    select(commands.c.id, commands.c.owner, commands.c.name, commands.c.unfinished)
    .where(tuple_(commands.c.owner, commands.c.name).in_(bindparam("names", expanding=True)))
    .order_by(commands.c.id)
    .with_for_update(key_share=True)
)
HOOKS = select(hooks.c.id, hooks.c.command_id, hooks.c.ordered).where(
    hooks.c.id.in_(bindparam("ids", expanding=True))
)
REPEATED = union_all(
    select(deliveries.c.once, deliveries.c.received_at, deliveries.c.id).where(
        deliveries.c.once.in_(bindparam("keys", expanding=True))
    ),
    select(deliveries.c.same, deliveries.c.received_at, deliveries.c.id).where(
        deliveries.c.same.in_(bindparam("keys", expanding=True)),
        deliveries.c.received_at > bindparam("since"),
    ),
)
LINES = (
    select(deliveries.c.line)
    .where(deliveries.c.line.in_(bindparam("lines", expanding=True)))
    .distinct()
)
_INSERT = insert(deliveries)
_COUNT = (
    update(commands).where(commands.c.id == bindparam("of_id")).values(unfinished=bindparam("now"))
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """That an arrival be stored."""

    arrival: Arrival
    most: int


@dataclass(frozen=True, slots=True)
class _Pending(Wanted):
    result: asyncio.Future[tuple[Taken, str]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Arrivals(Part):
    def __init__(self, database: Database, server: str) -> None:
        super().__init__(database, server)
        self._pending: deque[_Pending] = deque()
        self._storing: asyncio.Task[None] | None = None

    async def accept(self, arrival: Arrival, *, most: int) -> tuple[Taken, str]:
        if len(self._pending) >= MOST_PENDING:
            raise BusyError("the store has more to do than it can", "try again in a moment")
        pending = _Pending(arrival, most)
        self._pending.append(pending)
        if self._storing is None or self._storing.done():
            self._storing = asyncio.create_task(self._store_pending())
        return await pending.result

    async def _settled(self) -> None:
        """Waits until everybody knows what became of his arrival."""
        if self._storing is not None:
            await self._storing

    async def _store_pending(self) -> None:
        while self._pending:
            count = min(BATCH, len(self._pending))
            batch = [self._pending.popleft() for _ in range(count)]
            await self._store_batch([one for one in batch if not one.result.done()])

    async def _store_batch(self, batch: Sequence[_Pending]) -> None:
        results: Sequence[Result | BaseException]
        try:
            results = await self._database.transact(partial(store, batch))
        except (TakenError, DanglingError, DataError) as error:
            if len(batch) > 1:  # the others have nothing to do with it
                for one in batch:
                    await self._store_batch([one])
                return
            results = [error if isinstance(error, DataError) else InternalError(str(error))]
        except Exception as error:  # noqa: BLE001 - raised by who waits for it
            results = [error] * len(batch)
        for one, result in zip(batch, results, strict=True):
            if one.result.done():
                continue
            if isinstance(result, BaseException):
                one.result.set_exception(result)
            else:
                one.result.set_result(result)


async def store(batch: Sequence[Wanted], connection: Connection) -> list[Result]:
    """What became of each: all within the transaction, the commands held until its end."""
    arrivals = [one.arrival for one in batch]
    names = sorted({_names(arrival) for arrival in arrivals})
    held = {
        (owner, name): (command_id, unfinished)
        for command_id, owner, name, unfinished in await connection.execute(
            COMMANDS, {"names": names}
        )
    }
    ids = {command_id for command_id, _ in held.values()}
    counted = dict(held.values())
    counts = dict(counted)
    hook_ids = sorted({one.hook_id for one in arrivals if one.hook_id is not None})
    ordered = await _ordered(connection, hook_ids, ids)
    seen = await _seen(connection, arrivals, {n: command_id for n, (command_id, _) in held.items()})
    lines = await _lines(connection, [hook_id for hook_id, is_so in ordered.items() if is_so])
    results: list[Result] = []
    rows: list[dict[str, Any]] = []
    for one in batch:
        arrival = one.arrival
        command_id, _ = held.get(_names(arrival), (None, 0))
        if command_id is None:
            words = f"there is no command {arrival.delivery.command}"
            results.append(NotFoundError(words, "make it with :create"))
            continue
        if arrival.hook_id is not None and arrival.hook_id not in ordered:
            words = f"{arrival.delivery.command} has no such hook any more"
            results.append(NotFoundError(words, "see :hooks"))
            continue
        key = _key(arrival, command_id)
        first = seen.get(key)
        if first is not None and _repeats(arrival, first[0]):
            results.append((Taken.REPEATED, first[1]))
            continue
        delivery = arrival.delivery
        if counts[command_id] >= one.most:
            results.append((Taken.FULL, delivery.id))
            continue
        row = _row(arrival, command_id, key)
        if arrival.hook_id is not None and ordered[arrival.hook_id]:
            row["line"] = arrival.hook_id
            if arrival.hook_id in lines:
                row["due_at"] = None
            lines.add(arrival.hook_id)
        rows.append(row)
        counts[command_id] += 1
        seen[key] = (row["received_at"], delivery.id)
        results.append((Taken.NEW, delivery.id))
    if rows:
        await connection.execute(_INSERT, rows)
    changed = [
        {"of_id": command_id, "now": count}
        for command_id, count in counts.items()
        if count != counted[command_id]
    ]
    if changed:
        await connection.execute(_COUNT, changed)
    return results


def _names(arrival: Arrival) -> tuple[str, str]:
    owner, _, name = arrival.delivery.command.partition("/")
    return owner, name


def _key(arrival: Arrival, command_id: int) -> bytes:
    """Of any text, and of nobody else's hook."""
    of = f"{command_id}/{arrival.hook_id or ''}/{arrival.same}"
    return hashlib.sha256(of.encode("utf-8", "surrogatepass")).digest()


def _repeats(arrival: Arrival, first_at: int) -> bool:
    if arrival.window is None:
        return True
    return first_at > _since(arrival)


def _since(arrival: Arrival) -> int:
    return number(arrival.delivery.received_at) - int((arrival.window or 0) * 1e6)


async def _ordered(
    connection: Connection, hook_ids: Sequence[int], command_ids: Collection[int]
) -> dict[int, bool]:
    """The hooks that are there, and whether their order is kept."""
    if not hook_ids:
        return {}
    rows = await connection.execute(HOOKS, {"ids": hook_ids})
    return {
        hook_id: bool(ordered) for hook_id, command_id, ordered in rows if command_id in command_ids
    }


async def _seen(
    connection: Connection,
    arrivals: Sequence[Arrival],
    command_ids: dict[tuple[str, str], int],
) -> dict[bytes, tuple[int, str]]:
    """Those that are here already, by key: when the newest came, and its id."""
    known = [one for one in arrivals if _names(one) in command_ids]
    if not known:
        return {}
    values = {
        "keys": [_key(one, command_ids[_names(one)]) for one in known],
        "since": min(map(_since, known)),
    }
    rows = await connection.execute(REPEATED, values)
    return {bytes(key): (at, id_) for key, at, id_ in sorted(map(tuple, rows))}


async def _lines(connection: Connection, hook_ids: Sequence[int]) -> set[int]:
    """Those ordered hooks of which one has not ended."""
    if not hook_ids:
        return set()
    found = await connection.execute(LINES, {"lines": hook_ids})
    return cast("set[int]", set(found.scalars()))


def _row(arrival: Arrival, command_id: int, key: bytes) -> dict[str, Any]:
    delivery = arrival.delivery
    received_at = number(delivery.received_at)
    env = {name.decode("latin-1"): value.decode("latin-1") for name, value in delivery.env.items()}
    return {
        "id": delivery.id,
        "command_id": command_id,
        "hook_id": arrival.hook_id,
        "once": key if arrival.window is None else None,
        "same": None if arrival.window is None else key,
        "event": delivery.event,
        "received_at": received_at,
        "state": State.WAITING.value,
        "attempt": 0,
        "due_at": received_at if delivery.due_at is None else number(delivery.due_at),
        "line": None,
        "message": "",
        "size": len(delivery.body),
        "retries": delivery.retries,
        "retry_any": int(delivery.retry_any),
        "env": json.dumps(env),
        "body": delivery.body,
    }
