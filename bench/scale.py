"""`python -m bench.scale`: what connections, sessions and commands cost as they grow in number.

Memory is of the server and all that comes from it (PSS), times are of `hello` on a kept connection.
Exit status 2 where it cannot be run.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncssh

from bench import memory, ours, peers, report
from bench.callers import connections, hello, middle
from bench.measure import BenchError
from bench.plot import Chart, svg
from bench.run import folder
from cmdsvc.store import open_store
from tests.dockerd import NoDockerError
from tests.kit import KitError, build

IDLE = (0, 100, 250, 500)
RUNNING = (0, 25, 50, 100)
STORED = (1, 2500, 5000, 10000)
OF_ONE_USER = 1000
PER_CONNECTION = 10
"""Sessions that run on one connection."""
WARM_UP = 20
SETTLE = 2.0
"""Seconds in which what was begun comes to rest, before it is measured."""
# What would refuse that many from one user.
SETTINGS = {"CMDSVC_MAX_RUNS": "200", "CMDSVC_MAX_RUNS_PER_USER": "200"}
WAITER = "#!/bin/sh\necho here\nread line\n"
SOURCE = b"#!cmd alpine\n#!/bin/sh\n" + b"echo hello\n" * 50
RESULTS = Path(__file__).parent / "results" / "scale.json"
PLOT = Path(__file__).parents[1] / "docs" / "performance-scale.svg"


@dataclass
class Series:
    """What was measured at each of `places`: bytes of memory, and seconds."""

    title: str
    places: list[int] = field(default_factory=list)
    held: list[memory.Held] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p95: list[float] = field(default_factory=list)

    @property
    def each(self) -> float:
        """Bytes that one more takes, from the first to the last place."""
        grown = self.held[-1].pss - self.held[0].pss
        return grown / (self.places[-1] - self.places[0])

    def json(self) -> dict[str, Any]:
        return {
            "places": self.places,
            "rss": [one.rss for one in self.held],
            "pss": [one.pss for one in self.held],
            "p50": self.p50,
            "p95": self.p95,
            "bytes each": self.each,
        }


class Bench:
    def __init__(self, server: ours.Ours, times: int) -> None:
        self.idle = Series("connections, idle")
        self.running = Series("sessions, running")
        self.stored = Series("commands, stored")
        self._server = server
        self._times = times

    @property
    def series(self) -> Sequence[Series]:
        return (self.idle, self.running, self.stored)

    async def run(self) -> None:
        async with connections(self._server.client, 1) as (kept,):
            for _ in range(WARM_UP):
                await hello(kept)
            await self._keep_idle(kept)
            await self._keep_running(kept)
            await self._fill(kept)

    async def _keep_idle(self, kept: asyncssh.SSHClientConnection) -> None:
        async with AsyncExitStack() as stack:
            for number in IDLE:
                more = number - sum(self.idle.places[-1:])
                await stack.enter_async_context(connections(self._server.client, more))
                await self._look(self.idle, number, kept)

    async def _keep_running(self, kept: asyncssh.SSHClientConnection) -> None:
        self._server.create("waits", WAITER)
        async with connections(self._server.client, max(RUNNING) // PER_CONNECTION) as carriers:
            processes: list[asyncssh.SSHClientProcess[bytes]] = []
            for number in RUNNING:
                while len(processes) < number:
                    carrier = carriers[len(processes) // PER_CONNECTION]
                    process = await carrier.create_process("waits", encoding=None)
                    processes.append(process)
                    if await process.stdout.readline() != b"here\n":
                        raise BenchError(f"session {len(processes)} does not run")
                await self._look(self.running, number, kept)
            for process in processes:
                process.stdin.write_eof()
            await asyncio.gather(*(process.wait() for process in processes))

    async def _fill(self, kept: asyncssh.SSHClientConnection) -> None:
        """Past the server: what is counted here is what is found there, not how it came there."""
        store = await open_store(f"sqlite+aiosqlite:///{self._server.database}")
        try:
            filled = STORED[0]  # which is `hello` itself
            for number in STORED:
                for one in range(filled, number):
                    owner = f"user{one // OF_ONE_USER}"
                    if filled == one or one % OF_ONE_USER == 0:
                        await store.ensure_user(owner)
                    await store.create(
                        owner=owner,
                        name=f"c{one}",
                        description="",
                        source=SOURCE,
                        author=owner,
                        digest="digest",
                        created_at=datetime.now(UTC),
                    )
                filled = number
                await self._look(self.stored, number, kept)
        finally:
            await store.aclose()

    async def _look(self, series: Series, number: int, kept: asyncssh.SSHClientConnection) -> None:
        await asyncio.sleep(SETTLE)
        series.places.append(number)
        series.held.append(memory.held(self._server.pid))
        p50, p95 = middle([await hello(kept) for _ in range(self._times)])
        series.p50.append(p50)
        series.p95.append(p95)
        held = series.held[-1]
        print(
            f"{number:>6} {series.title:18} server {held.rss / 1e6:6.1f} MB, with all that comes"
            f" from it {held.pss / 1e6:6.1f} MB; hello {p50 * 1e3:5.1f} ms p50 {p95 * 1e3:5.1f} p95",
            flush=True,
        )


def drawn(every: Sequence[Series]) -> str:
    return svg(
        [
            [
                Chart(
                    f"hello, {one.title}",
                    one.title,
                    "ms",
                    one.places,
                    [("p50", [s * 1e3 for s in one.p50]), ("p95", [s * 1e3 for s in one.p95])],
                )
                for one in every
            ],
            [
                Chart(
                    f"memory, {one.title}",
                    one.title,
                    "MB",
                    one.places,
                    [
                        ("server (RSS)", [held.rss / 1e6 for held in one.held]),
                        ("with all below (PSS)", [held.pss / 1e6 for held in one.held]),
                    ],
                )
                for one in every
            ],
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("-n", type=int, default=100, metavar="RUNS", help="at each place")
    parser.add_argument("--engine", choices=("bubblewrap", "docker"), default="bubblewrap")
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="FILE")
    parser.add_argument("--svg", type=Path, default=PLOT, metavar="FILE")
    given = parser.parse_args()
    if given.n < 2:
        parser.error("-n: at least 2")
    facts = report.machine()
    try:
        kit = build()
        with folder() as place, ExitStack() as stack:
            host = stack.enter_context(peers.docker_host())[0] if given.engine == "docker" else ""
            server = stack.enter_context(
                ours.server(place / "service", given.engine, kit, host, **SETTINGS)
            )
            server.create("hello", peers.SCRIPT)
            bench = Bench(server, given.n)
            asyncio.run(bench.run())
    except (BenchError, KitError, NoDockerError) as error:
        sys.stderr.write(f"bench: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    report.finish(facts)
    for one in bench.series[:2]:
        print(f"one more of {one.title}: {one.each / 1e3:.0f} kB")
    report.write(
        given.json, {"machine": facts, "series": {one.title: one.json() for one in bench.series}}
    )
    given.svg.write_text(drawn(bench.series))
    print(f"written: {given.json}, {given.svg}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
