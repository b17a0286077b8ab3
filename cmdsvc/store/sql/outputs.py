"""What is kept of the output of runs, and how long that and they are kept."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial

from sqlalchemy import bindparam, delete, func, select

from cmdsvc.model import Output
from cmdsvc.store.database import Connection, DanglingError, Database
from cmdsvc.store.schema import outputs, runs
from cmdsvc.store.sql.part import Part, number

BATCH = 100
"""Runs, or outputs, that one transaction removes at most."""

_PIECE = struct.Struct(">BI")

OUTPUT = select(outputs.c.head, outputs.c.tail, outputs.c.dropped).where(
    outputs.c.run_id == bindparam("of_run")
)
KEPT = select(func.coalesce(func.sum(outputs.c.size), 0))
# Two servers that clean up at once share the work.
OLD_RUNS = (
    select(runs.c.id)
    .where(runs.c.ended_at < bindparam("before"))
    .order_by(runs.c.ended_at)
    .limit(BATCH)
    .with_for_update(skip_locked=True)
)
OLD_OUTPUTS = (
    select(outputs.c.run_id, outputs.c.size)
    .order_by(outputs.c.kept_at)
    .limit(BATCH)
    .with_for_update(skip_locked=True)
)

_OLD = runs.c.ended_at < bindparam("before")
WOULD_RETIRE = select(
    select(func.count()).select_from(runs).where(_OLD).scalar_subquery(),
    KEPT.where(outputs.c.run_id.in_(select(runs.c.id).where(_OLD))).scalar_subquery(),
    KEPT.scalar_subquery(),
)


class Outputs(Part):
    def __init__(self, database: Database, server: str) -> None:
        super().__init__(database, server)
        self._keep = database.upsert(outputs)

    async def keep_output(self, run_id: str, output: Output) -> None:
        row = {
            "run_id": run_id,
            "kept_at": number(datetime.now(UTC)),
            "size": sum(len(data) for _, data in (*output.head, *output.tail)),
            "dropped": output.dropped,
            "head": b"".join(_packed(output.head)),
            "tail": b"".join(_packed(output.tail)),
        }
        with suppress(DanglingError):
            await self._database.record(self._keep, row)

    async def output(self, run_id: str) -> Output | None:
        rows = await self._database.read(OUTPUT, {"of_run": run_id})
        if not rows:
            return None
        head, tail, dropped = rows[0]
        return Output(tuple(_unpacked(head)), tuple(_unpacked(tail)), dropped)

    async def retire_runs(self, *, before: datetime, bytes_kept: int) -> tuple[int, int]:
        gone, freed, found = 0, 0, BATCH
        old = partial(_remove_runs, number(before))
        while found == BATCH:
            found, size = await self._step(old)
            gone, freed = gone + found, freed + size
        found = BATCH
        while found:
            ((kept,),) = await self._database.survey(KEPT, {})
            excess = int(kept) - bytes_kept
            found, size = await self._step(partial(_remove_outputs, excess))
            freed += size
        return gone, freed

    async def would_retire(self, *, before: datetime, bytes_kept: int) -> tuple[int, int]:
        rows = await self._database.survey(WOULD_RETIRE, {"before": number(before)})
        count, size, kept = map(int, rows[0])
        return count, size + max(0, kept - size - bytes_kept)


async def _remove_runs(before: int, connection: Connection) -> tuple[int, int]:
    """Some that ended before a moment: how many, and how many bytes of output went with them."""
    found = (await connection.execute(OLD_RUNS, {"before": before})).scalars().all()
    theirs = KEPT.where(outputs.c.run_id.in_(found))
    size = await connection.scalar(theirs)
    await connection.execute(delete(runs).where(runs.c.id.in_(found)))
    return len(found), int(size or 0)


async def _remove_outputs(excess: int, connection: Connection) -> tuple[int, int]:
    """The oldest, until `excess` bytes are gone, but only some: how many, and how many bytes."""
    found: list[str] = []
    freed = 0
    for run_id, size in await connection.execute(OLD_OUTPUTS):
        if freed >= excess:
            break
        found.append(run_id)
        freed += size
    await connection.execute(delete(outputs).where(outputs.c.run_id.in_(found)))
    return len(found), freed


def _packed(pieces: Iterable[tuple[int, bytes]]) -> Iterator[bytes]:
    for stream, data in pieces:
        yield _PIECE.pack(stream, len(data))
        yield data


def _unpacked(packed: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(packed):
        stream, size = _PIECE.unpack_from(packed, at)
        at += _PIECE.size
        yield stream, packed[at : at + size]
        at += size
