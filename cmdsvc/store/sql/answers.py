"""What was answered under an Idempotency-Key."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import bindparam, delete, insert, or_, select, update

from cmdsvc.errors import BusyError
from cmdsvc.model import Answer
from cmdsvc.store.database import Connection, TakenError
from cmdsvc.store.schema import answers
from cmdsvc.store.sql.part import Part, number

BATCH = 100
"""Answers that one transaction removes at most."""
ATTEMPTS = 5
"""How often one is put down where another comes and goes meanwhile."""

_KEY = (answers.c.caller == bindparam("of_caller")) & (answers.c.key == bindparam("of_key"))
ANSWER = select(
    answers.c.digest, answers.c.run, answers.c.status, answers.c.headers, answers.c.body
).where(_KEY)
_FORGET = delete(answers).where(_KEY, answers.c.begun_at <= bindparam("since"))
_END = update(answers).where(_KEY, answers.c.run == bindparam("of_run"))
_DROP = delete(answers).where(_KEY, answers.c.status.is_(None))
END_ALL = (
    update(answers)
    .where(answers.c.server == bindparam("of_server"), answers.c.status.is_(None))
    .values(status=500)
)
"""Those that a server left under way."""
OLD = (
    select(answers.c.caller, answers.c.key)
    .where(answers.c.begun_at < bindparam("before"))
    .order_by(answers.c.begun_at)
    .limit(BATCH)
    .with_for_update(skip_locked=True)
)


class Answers(Part):
    async def begin_answer(
        self, caller: str, key: str, answer: Answer, now: datetime, since: datetime
    ) -> Answer | None:
        which = _which(caller, key)
        row = {
            "caller": which["of_caller"],
            "key": which["of_key"],
            "server": self._server,
            "begun_at": number(now),
            "digest": answer.digest,
            "run": answer.run,
            **_end(answer),
        }

        async def work(connection: Connection) -> Answer | None:
            await connection.execute(_FORGET, {**which, "since": number(since)})
            found = (await connection.execute(ANSWER, which)).one_or_none()
            if found is not None:
                return _answer(found)
            await connection.execute(insert(answers), row)
            return None

        for _ in range(ATTEMPTS):
            try:
                return await self._database.transact(work)
            except TakenError:  # by another server's, which is there to be found now
                continue
        raise BusyError("others use the same Idempotency-Key", "try again in a moment")

    async def end_answer(self, caller: str, key: str, answer: Answer) -> None:
        values = {**_which(caller, key), "of_run": answer.run, **_end(answer)}

        async def work(connection: Connection) -> None:
            await connection.execute(_END, values)

        await self._database.transact(work)

    async def drop_answer(self, caller: str, key: str) -> None:
        async def work(connection: Connection) -> None:
            await connection.execute(_DROP, _which(caller, key))

        await self._database.transact(work)

    async def retire_answers(self, *, before: datetime) -> int:
        gone, found = 0, BATCH
        while found == BATCH:
            found = await self._step(partial(_remove, number(before)))
            gone += found
        return gone


async def _remove(before: int, connection: Connection) -> int:
    found = [tuple(row) for row in await connection.execute(OLD, {"before": before})]
    each = ((answers.c.caller == caller) & (answers.c.key == key) for caller, key in found)
    await connection.execute(delete(answers).where(or_(False, *each)))
    return len(found)


def _which(caller: str, key: str) -> dict[str, Any]:
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    return {"of_caller": caller, "of_key": digest}


def _end(answer: Answer) -> dict[str, Any]:
    return {
        "status": answer.status,
        "headers": json.dumps(answer.headers),
        "body": answer.body,
    }


def _answer(row: Any) -> Answer:
    digest, run, status, headers, body = row
    pairs = tuple((name, value) for name, value in json.loads(headers))
    return Answer(bytes(digest), run, status, pairs, bytes(body))
