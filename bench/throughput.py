"""`python -m bench.throughput`: runs a second, by callers who begin the next run when one has ended.

Each has a connection of its own that is kept. The callers' own share of the processors is told
beside: on few cores it is part of what bounds the figure. Then, once as many sandboxes wait as there
may, as many callers at once. On docker also what the engine can do by hand: containers of the same
description made, started, waited for and removed, on a network of their own and on none. Exit status
1 where a run failed, 2 where it cannot be run.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import asyncssh

from bench import byhand, ours, peers, report
from bench.callers import connections, hello, middle
from bench.measure import PATIENCE, BenchError
from bench.run import folder
from tests.dockerd import NoDockerError
from tests.kit import KitError, build

RESULTS = Path(__file__).parent / "results" / "throughput.json"
WARM_UP = 3.0
"""Seconds that do not count."""
BURST = 20
"""Callers at once, and sandboxes that wait at most (CMDSVC_WARM)."""
SECONDS = {"bubblewrap": 20.0, "docker": 60.0}
SCRIPTS = {
    "internet": peers.SCRIPT,
    "none": '#!/bin/sh\n# /// cmd\n# network = "none"\n# ///\necho hello\n',
}
"""By the network that it is to have."""


@dataclass(frozen=True, slots=True)
class Result:
    engine: str
    callers: int
    seconds: float
    runs: int
    failures: int
    p50: float
    p95: float
    busy: float
    """Processors in use on the machine, of os.cpu_count()."""
    callers_busy: float
    server_busy: float
    """Of the server's own process, without what comes from it."""
    burst: tuple[float, float]
    """Seconds, p50 and the longest of BURST at once."""
    by_hand: dict[str, float]
    """Containers a second, by network."""

    def __str__(self) -> str:
        return (
            f"{self.engine}: {self.runs / self.seconds:.1f} runs/s by {self.callers} callers for"
            f" {self.seconds:.0f} s, {self.failures} failed; p50 {self.p50 * 1e3:.0f} ms, p95"
            f" {self.p95 * 1e3:.0f}; processors busy {self.busy:.2f} of {os.cpu_count()}, the"
            f" callers {self.callers_busy:.2f}, the server's process {self.server_busy:.2f}\n"
            f"{BURST} at once: p50 {self.burst[0] * 1e3:.0f} ms, the last {self.burst[1] * 1e3:.0f}"
            + "".join(f"\nby hand, network {k}: {v:.1f}/s" for k, v in self.by_hand.items())
        )


async def measure(
    server: ours.Ours, callers: int, seconds: float, by_hand: dict[str, float]
) -> Result:
    taken: list[float] = []
    failed: list[str] = []

    async def call(connection: asyncssh.SSHClientConnection, until: float) -> None:
        while time.perf_counter() < until:
            try:
                taken.append(await hello(connection))
            except (BenchError, TimeoutError, asyncssh.Error) as error:
                failed.append(str(error) or type(error).__name__)

    async with connections(server.client, callers) as kept:

        async def everybody(duration: float) -> None:
            until = time.perf_counter() + duration
            await asyncio.gather(*(call(connection, until) for connection in kept))

        await everybody(WARM_UP)
        taken.clear()
        begun, before = time.perf_counter(), _used(server.pid)
        await everybody(seconds)
        took = time.perf_counter() - begun
        used = [(now - then) / took for now, then in zip(_used(server.pid), before, strict=True)]
    burst = await at_once(server)
    for words in sorted(set(failed))[:5]:
        sys.stderr.write(f"{words}\n")
    return Result(
        *(server.engine, callers, took, len(taken), len(failed), *middle(taken or [0.0, 0.0])),
        *(*used, burst, by_hand),
    )


async def at_once(server: ours.Ours) -> tuple[float, float]:
    """BURST callers, once as many sandboxes wait: p50 and the longest."""
    async with connections(server.client, BURST) as kept, asyncio.timeout(PATIENCE):
        while server.warm < BURST:  # noqa: ASYNC110 - it is another process's figure
            await asyncio.sleep(0.5)
        taken = await asyncio.gather(*map(hello, kept))
    return middle(taken)[0], max(taken)


def _used(pid: int) -> tuple[float, float, float]:
    """Seconds of processor time: of all the machine, of this process, of the server's."""
    tick = os.sysconf("SC_CLK_TCK")
    user, nice, system, _idle, _wait, irq, soft = map(
        int, Path("/proc/stat").read_text().splitlines()[0].split()[1:8]
    )
    own = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (
        (user + nice + system + irq + soft) / tick,
        time.process_time(),
        (int(own[11]) + int(own[12])) / tick,  # utime and stime, proc(5)
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.throughput", description=__doc__)
    parser.add_argument("--engine", choices=("bubblewrap", "docker"), default="bubblewrap")
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--seconds", type=float, help="20 by default, on docker 60")
    parser.add_argument("--network", choices=tuple(SCRIPTS), default="internet")
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="FILE")
    given = parser.parse_args()
    seconds = SECONDS[given.engine] if given.seconds is None else given.seconds
    if given.callers < 1 or seconds <= 0:
        parser.error("at least one caller, for some time")
    facts = report.machine()
    try:
        kit = build()
        with folder() as place, ExitStack() as stack:
            host = stack.enter_context(peers.docker_host())[0] if given.engine == "docker" else ""
            by_hand = byhand.rates(host, kit.base) if host else {}
            server = stack.enter_context(
                ours.server(place / "service", given.engine, kit, host, CMDSVC_WARM=str(BURST))
            )
            server.create("hello", SCRIPTS[given.network])
            result = asyncio.run(measure(server, given.callers, seconds, by_hand))
    except (BenchError, KitError, NoDockerError) as error:
        sys.stderr.write(f"bench: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    report.finish(facts)
    print(result)
    report.write(given.json, {"machine": facts, **asdict(result)})
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
