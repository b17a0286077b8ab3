"""`python -m bench.deliveries`: deliveries stored and taken, where few wait and where many do.

The two stores take turns. Each delivery is committed before `accept` returns. Beside it: how many
are stored in a second by callers that never pause, and how long one waits at a steady rate. Exit
status 0 whatever the figures are, 2 where it cannot be run.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from bench.store import NUMBERS, SOURCE, databases
from cmdsvc.model import Delivery, Hook, State
from cmdsvc.store import Arrival, Store, open_store
from tests.store.postgres import NoPostgresError

COMMANDS = 100
"""That those which wait are of: as many of each."""
BODY = bytes(2000)
ENV = {b"CONTENT_TYPE": b"application/json", b"HTTP_USER_AGENT": b"GitHub-Hookshot/044aadd"}
CALLERS = 64
RATE = 100
"""In a second."""
AT_ONCE = 10
"""Deliveries that are taken at once."""
MOST = 1_000_000

WAITING = f"""
INSERT INTO deliveries (id, command_id, hook_id, once, event, received_at, state, attempt, due_at,
  message, size, retries, retry_any, env, body)
{NUMBERS}
SELECT 'w' || i, c.id, h.id, CAST('w' || i AS {{bytes}}), 'push', {{now}} + i, 'waiting', 0,
  {{now}} + i, '', 2000, 5, 0, '{{{{}}}}', CAST(:body AS {{bytes}})
FROM numbers JOIN commands c ON c.name = 'c' || (i % {COMMANDS}) JOIN hooks h ON h.command_id = c.id
"""

_ids = itertools.count()


async def prepare(store: Store) -> list[Hook]:
    await store.ensure_user("ann")
    hooks = []
    for number in range(COMMANDS):
        await store.create(
            owner="ann", name=f"c{number}", description="", source=SOURCE, author="ann",
            digest="d", created_at=datetime.now(UTC),
        )  # fmt: skip
        hook = Hook(0, f"ann/c{number}", "hook", "github", {}, b"sealed", datetime.now(UTC))
        hooks.append(await store.add_hook(hook, by="ann"))
    return hooks


async def fill(url: str, count: int) -> None:
    engine = create_async_engine(url)
    sqlite = engine.dialect.name == "sqlite"
    begun = int((time.time() - 3600) * 1e6)
    words = {"count": count, "now": begun, "bytes": "BLOB" if sqlite else "BYTEA"}
    async with engine.begin() as connection:
        await connection.execute(text(WAITING.format(**words)), {"body": BODY})
        unfinished = f"UPDATE commands SET unfinished = {count // COMMANDS}"
        await connection.execute(text(unfinished))
        if not sqlite:  # which has a daemon that does it
            await connection.execute(text("ANALYZE"))
    await engine.dispose()


def arrival(hook: Hook) -> Arrival:
    id_ = f"d{next(_ids)}"
    delivery = Delivery(id_, hook.command, hook.name, "push", datetime.now(UTC), env=ENV, body=BODY)
    return Arrival(delivery, hook.id, id_, None)


class Column:
    """A store, and the milliseconds that each question took."""

    def __init__(self, store: Store, hooks: list[Hook]) -> None:
        self.store = store
        self.hooks = hooks
        self.took: dict[str, list[float]] = {}

    async def ask(self, name: str, question: Callable[[], Awaitable[object]]) -> None:
        begun = time.perf_counter()
        await question()
        self.took.setdefault(name, []).append((time.perf_counter() - begun) * 1e3)

    async def turn(self) -> None:
        hooks = itertools.islice(itertools.cycle(self.hooks), next(_ids) % COMMANDS, None)
        await self.ask("accept", lambda: self.store.accept(arrival(next(hooks)), most=MOST))
        many = [arrival(next(hooks)) for _ in range(CALLERS)]
        await self.ask(
            f"accept {CALLERS} at once",
            lambda: asyncio.gather(*(self.store.accept(one, most=MOST) for one in many)),
        )
        now = datetime.now(UTC)
        until = now + timedelta(minutes=1)
        taken: list[Delivery] = []

        async def take(count: int) -> None:
            taken[:] = await self.store.claim(now, until, count)

        async def end() -> None:
            await self.store.end_attempt(taken[0].id, 1, State.DONE, exit_status=0)

        await self.ask("take 1", lambda: take(1))
        await self.ask("end", end)
        await self.ask(f"take {AT_ONCE}", lambda: take(AT_ONCE))
        await self.ask("next due", self.store.next_due)


async def compare(urls: tuple[str, str], waiting: int, rounds: int) -> None:
    stores = [await open_store(url, server="bench") for url in urls]
    try:
        columns = [Column(store, await prepare(store)) for store in stores]
        await fill(urls[1], waiting)
        for turn in range(rounds + 10):
            if turn == 10:  # what came before was to warm up
                for column in columns:
                    column.took.clear()
            for column in columns:
                await column.turn()
        show(*columns)
        for name, column in zip(("few", "many"), columns, strict=True):
            rate = await most(column)
            p50, p99 = await steady(column)
            print(
                f"{name}: {rate:.0f}/s from {CALLERS} callers;"
                f" at {RATE}/s p50 {p50:.1f} ms, p99 {p99:.1f} ms"
            )
    finally:
        for store in stores:
            await store.aclose()


def show(few: Column, many: Column) -> None:
    print(f"{'ms':20}{'few p50':>11}{'p95':>8}{'many p50':>11}{'p95':>8}{'ratio':>8}")
    for name in few.took:
        one, other = sorted(few.took[name]), sorted(many.took[name])
        p50 = [statistics.median(times) for times in (one, other)]
        p95 = [times[int(0.95 * len(times))] for times in (one, other)]
        print(
            f"{name:20}{p50[0]:11.2f}{p95[0]:8.2f}{p50[1]:11.2f}{p95[1]:8.2f}{p50[1] / p50[0]:8.2f}"
        )


async def most(column: Column, seconds: float = 5.0) -> float:
    """Deliveries a second, from callers that go on as soon as theirs is stored."""
    until = time.perf_counter() + seconds
    count = 0

    async def call(hook: Hook) -> None:
        nonlocal count
        while time.perf_counter() < until:
            await column.store.accept(arrival(hook), most=MOST)
            count += 1

    begun = time.perf_counter()
    await asyncio.gather(*(call(hook) for hook in column.hooks[:CALLERS]))
    return count / (time.perf_counter() - begun)


async def steady(column: Column, seconds: float = 5.0) -> tuple[float, float]:
    """p50 and p99 in milliseconds, at RATE."""
    took: list[float] = []

    async def call(hook: Hook) -> None:
        begun = time.perf_counter()
        await column.store.accept(arrival(hook), most=MOST)
        took.append((time.perf_counter() - begun) * 1e3)

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as calls:
        for number in range(int(seconds * RATE)):
            await asyncio.sleep(max(0.0, begun + number / RATE - time.perf_counter()))
            calls.create_task(call(column.hooks[number % COMMANDS]))
    took.sort()
    return statistics.median(took), took[int(0.99 * len(took))]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.deliveries", description=__doc__)
    parser.add_argument("--waiting", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--database", choices=("sqlite", "postgres"), action="append")
    asked = parser.parse_args()
    for kind in asked.database or ("sqlite", "postgres"):
        print(f"\n{kind}: {asked.waiting} waiting", flush=True)
        try:
            with databases(kind) as urls:
                asyncio.run(compare(urls, asked.waiting, asked.rounds))
        except NoPostgresError as error:
            print(error)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
