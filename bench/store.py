"""`python -m bench.store`: what users wait for, in a store that is nearly empty and in a full one.

In both stores the user who asks has the same commands; the full one has those of a hundred others
too, and a million runs. The two take turns. Exit status 0 whatever the figures are, 2 where it
cannot be run.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from cmdsvc.model import PUBLIC, Door, Outcome, Run
from cmdsvc.service.invocation import run_id
from cmdsvc.store import Store, open_store
from tests.store.postgres import NoPostgresError, server

OWN = 20
"""Commands of the user who asks."""
OTHERS = 100
"""Other users."""
VERSIONS = 10
"""Of each command that is looked at."""
BEGUN = datetime.now(UTC) - timedelta(days=365)
SOURCE = b"#!cmd alpine\n#!/bin/sh\n" + b"echo hello\n" * 50

NUMBERS = """
WITH RECURSIVE numbers(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM numbers WHERE i + 1 < {count})
"""
USERS = f"INSERT INTO users (name) {NUMBERS} SELECT 'u' || i FROM numbers"
COMMANDS = f"""
INSERT INTO commands (id, owner, name, current, last, updated_at) {NUMBERS}
SELECT 1000 + i, 'u' || (i % {OTHERS}), 'c' || (i / {OTHERS}), 1, 1, {{now}} FROM numbers
"""
SOURCES = f"""
INSERT INTO versions (command_id, number, description, author, digest, created_at, source) {NUMBERS}
SELECT 1000 + i, 1, 'does something', 'u' || (i % {OTHERS}), 'digest' || (i % 500), {{now}},
  CAST(:source AS {{bytes}})
FROM numbers
"""
GRANTS = f"""
INSERT INTO grants (command_id, role, "user") {NUMBERS}
SELECT 1000 + i, 'access', 'u' || ((i + 1) % {OTHERS}) FROM numbers
"""
# One in ten is of a command of ann's, and one in three of somebody else than its owner.
RUNS = f"""
INSERT INTO runs (id, server, command, version, "user", door, started_at, ended_at, exit_status,
  reason, message, owner)
{NUMBERS}, named AS (
  SELECT i, CASE WHEN i % 10 = 0 THEN 'ann' ELSE 'u' || (i % {OTHERS}) END AS owner,
    'u' || (i / 7 % {OTHERS}) AS other,
    CASE WHEN i % 10 = 0 THEN i / 10 % {OWN} ELSE i / {OTHERS} % {{each}} END AS command
  FROM numbers
)
SELECT '00' || (10000000 + i), 'one', owner || '/c' || command, 1,
  CASE WHEN i % 3 = 0 THEN other ELSE owner END, 'ssh', {{begun}} + i * CAST(1000000 AS BIGINT),
  {{begun}} + i * CAST(1000000 AS BIGINT) + 500000, 0, 'exit', '', owner
FROM named
"""


@dataclass
class Column:
    """One store, and the microseconds that each question took."""

    store: Store
    took: dict[str, list[float]] = field(default_factory=dict)

    async def ask(self, name: str, question: Callable[[Store], Awaitable[object]]) -> None:
        begun = time.perf_counter()
        await question(self.store)
        self.took.setdefault(name, []).append((time.perf_counter() - begun) * 1e6)


async def prepare(store: Store) -> None:
    """What is the same in both."""
    for user in ("ann", "bob"):
        await store.ensure_user(user)
    for number in range(OWN):
        for version in range(VERSIONS):
            make = store.add_version if version else store.create
            await make(
                owner="ann",
                name=f"c{number}",
                description="does something",
                source=SOURCE,
                author="ann",
                digest="digest",
                created_at=BEGUN,
            )
    await store.create(
        owner="bob",
        name="shared",
        description="",
        source=SOURCE,
        author="bob",
        digest="digest",
        created_at=BEGUN,
    )
    await store.set_admins("bob", "shared", grant=["ann"], by="bob")
    await store.set_access("ann", "c0", grant=["bob", PUBLIC], by="ann")
    await store.set_env("ann", "c0", put={"A": b"sealed", "B": b"sealed"}, by="ann")
    for number in range(100):
        user, command = (("ann", "ann/c0"), ("bob", "ann/c1"), ("bob", "bob/shared"))[number % 3]
        started_at = datetime.now(UTC) - timedelta(minutes=100 - number)
        run = Run(f"01{number:07}", command, 1, user, Door.SSH, started_at)
        await store.begin_run(run)
        await store.end_run(run.id, started_at + timedelta(seconds=1), Outcome(0))


async def fill(url: str, commands: int, runs: int) -> None:
    """Past the store, which would take a while."""
    engine = create_async_engine(url)
    sqlite = engine.dialect.name == "sqlite"
    words = {
        "now": int(time.time() * 1e6),
        "begun": int(BEGUN.timestamp() * 1e6),
        "bytes": "BLOB" if sqlite else "BYTEA",
        "each": max(1, commands // OTHERS),
    }
    async with engine.begin() as connection:
        for count, statement in (
            (OTHERS, USERS),
            (commands, COMMANDS),
            (commands, SOURCES),
            (commands, GRANTS),
            (runs, RUNS),
        ):
            filled = text(statement.format(count=count, **words))
            values = {"source": SOURCE} if ":source" in statement else {}
            await connection.execute(filled, values)
        if not sqlite:  # which has a daemon that does it
            await connection.execute(text("ANALYZE"))
    await engine.dispose()


async def start_of_a_run(store: Store) -> None:
    """All that the store does before a sandbox starts."""
    await store.find("ann", "c0")
    await store.begin_run(Run(run_id(), "ann/c0", 1, "ann", Door.SSH, datetime.now(UTC)))


QUESTIONS: dict[str, Callable[[Store], Awaitable[object]]] = {
    "find": lambda store: store.find("ann", "c0"),
    "a run's start": start_of_a_run,
    ":ls": lambda store: store.list_commands("ann"),
    ":ls -a": lambda store: store.runnable("ann"),
    ":history": lambda store: store.history("ann", "c0"),
    ":runs": lambda store: store.runs_seen_by("ann"),
    ":runs NAME": lambda store: store.runs_seen_by("ann", command="ann/c1"),
    ":runs of a grantee": lambda store: store.runs_seen_by("bob", command="ann/c1"),
    "token": lambda store: store.token("cmd_none"),
}


async def compare(urls: tuple[str, str], commands: int, runs: int, rounds: int) -> None:
    columns = [Column(await open_store(url, server="bench")) for url in urls]
    try:
        for column in columns:
            await prepare(column.store)
        begun = time.perf_counter()
        await fill(urls[1], commands, runs)
        print(f"filled in {time.perf_counter() - begun:.0f} s")
        for turn in range(rounds + 20):
            if turn == 20:  # what came before was to warm up
                for column in columns:
                    column.took.clear()
            for name, question in QUESTIONS.items():
                for column in columns:
                    await column.ask(name, question)
    finally:
        for column in columns:
            await column.store.aclose()
    show(*columns)


def show(empty: Column, full: Column) -> None:
    print(f"{'µs':20}{'empty p50':>11}{'p95':>7}{'full p50':>11}{'p95':>7}{'ratio':>8}")
    for name in QUESTIONS:
        few, many = sorted(empty.took[name]), sorted(full.took[name])
        p50 = [statistics.median(times) for times in (few, many)]
        p95 = [times[int(0.95 * len(times))] for times in (few, many)]
        print(
            f"{name:20}{p50[0]:11.0f}{p95[0]:7.0f}{p50[1]:11.0f}{p95[1]:7.0f}{p50[1] / p50[0]:8.2f}"
        )


@contextmanager
def databases(kind: str) -> Iterator[tuple[str, str]]:
    """The URLs of two that are empty."""
    if kind == "sqlite":
        with tempfile.TemporaryDirectory(prefix="bench-store-") as folder:
            few, many = (Path(folder) / name / "store.db" for name in ("empty", "full"))
            yield f"sqlite+aiosqlite:///{few}", f"sqlite+aiosqlite:///{many}"
        return
    with server() as postgres, postgres.database() as few_, postgres.database() as many_:
        yield postgres.url(few_), postgres.url(many_)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.store", description=__doc__)
    parser.add_argument("--commands", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--database", choices=("sqlite", "postgres"), action="append")
    asked = parser.parse_args()
    for kind in asked.database or ("sqlite", "postgres"):
        print(f"\n{kind}: {asked.commands} commands, {asked.runs} runs; ", end="", flush=True)
        try:
            with databases(kind) as urls:
                asyncio.run(compare(urls, asked.commands, asked.runs, asked.rounds))
        except NoPostgresError as error:
            print(error)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
