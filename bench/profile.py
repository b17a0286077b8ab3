"""`python -m bench.profile`: where each millisecond of a run goes, from the client's start to its end.

The real ssh client with a fresh connection and a kept one, on each engine, and HTTP over sockets
of our own on bubblewrap, taking turns; the server as it is, but for its marks (bench/marks.py).
Exit status 0 whatever the figures are, 2 where it cannot be run. docs/performance.md says how to
read it.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from bench import byhand, floor, ours, peers, report
from bench.http import BARE, contestants
from bench.http import KEPT as HTTP_KEPT
from bench.marks import FILE, Mark
from bench.measure import BenchError, Client, Contestant
from bench.run import AFTER_DOCKER, HELLO, WARM_UP, folder, interrupted
from tests.dockerd import NoDockerError
from tests.kit import Kit, KitError, build

RUN = (
    ("found", "the command is looked up"),
    ("recorded", "its beginning is recorded"),
    ("started", "a sandbox is given its task"),
    ("first byte", "the script starts, to its first byte"),
    ("ended", "the script goes on, to its end"),
    ("closed", "the sandbox is closed"),
    ("answered", "the outcome is settled"),
)
SSH = (
    ("accepted", "the client starts and connects"),
    ("keys", "versions and key exchange"),
    ("named", "client: checks the host's key, names itself"),
    ("logged in", "login: a key offered, then a signature"),
    ("session", "client: until it opens a session"),
    ("asked", "client: names the command"),
    ("run", "the session begins"),
    *RUN,
)
HTTP = (
    ("accepted", "the client connects"),
    ("request", "the client sends its request"),
    ("run", "the request is read, who asks and for what is found"),
    *RUN,
)
"""What is marked, and what was going on until then."""
LAST = "client and network: output, status, its end"


@dataclass
class Profile:
    """A contestant, and the marks of its runs. `phases`: SSH, HTTP, or none for a floor."""

    contestant: Contestant
    engine: str = ""
    phases: Sequence[tuple[str, str]] = ()
    begun: list[float] = field(default_factory=list)

    def measure(self) -> None:
        count = len(self.contestant.seconds)
        self.contestant.measure()
        if len(self.contestant.seconds) > count:
            self.begun.append(self.contestant.begun)

    @property
    def name(self) -> str:
        return f"{self.contestant.name}, {self.contestant.connection}"


@dataclass(frozen=True, slots=True)
class Row:
    """Milliseconds: of a phase in the middle half of the runs, its median in all, and the event
    loop's own work in it (None where no mark was before it)."""

    what: str
    mean: float
    p50: float
    work: float | None


def rows(profile: Profile, marks: Sequence[Mark]) -> list[Row]:
    """The phases of its runs. The means add up to the mean of the client's time."""
    found = [
        _first(profile.phases, marks, begun, begun + took)
        for begun, took in zip(profile.begun, profile.contestant.seconds, strict=True)
    ]
    common = set.intersection(*(set(one) for one in found))
    phases = [phase for phase in profile.phases if phase[0] in common]
    order = sorted(range(len(found)), key=profile.contestant.seconds.__getitem__)
    quarter = len(order) // 4
    middle = order[quarter : len(order) - quarter]
    spans: list[list[float]] = []
    works: list[list[float]] = []
    for number, one in enumerate(found):
        begun = profile.begun[number] * 1e9
        at = [begun, *(one[name][0] for name, _ in phases)]
        at.append(begun + profile.contestant.seconds[number] * 1e9)
        spans.append([(b - a) / 1e6 for a, b in pairwise(at)])
        work = [one[name][1] for name, _ in phases]
        works.append([(b - a) / 1e6 for a, b in pairwise(work)])
    result = []
    for place, what in enumerate([*(what for _, what in phases), LAST]):
        inner = 0 < place < len(phases)
        result.append(
            Row(
                what,
                statistics.fmean(spans[number][place] for number in middle),
                statistics.median(span[place] for span in spans),
                statistics.fmean(works[n][place - 1] for n in middle) if inner else None,
            )
        )
    return result


def _first(
    phases: Sequence[tuple[str, str]], marks: Sequence[Mark], begun: float, ended: float
) -> dict[str, tuple[int, int]]:
    """Of each kind of mark the first one in a run, in their order: when, and the work till then."""
    left = [one for one in marks if begun * 1e9 <= one[1] <= ended * 1e9]
    found = {}
    for name, _ in phases:
        for place, (kind, when, work) in enumerate(left):
            if kind == name:
                found[name] = when, work
                left = left[place + 1 :]
                break
    return found


class Bench:
    def __init__(self) -> None:
        self.profiles: list[Profile] = []
        self.missing = ""
        self.round_trip: list[float] = []
        """Seconds, through a Docker engine and a container."""
        self.marks: dict[str, list[Mark]] = {}
        self._files: dict[str, Path] = {}

    def start(self, stack: ExitStack, place: Path, kit: Kit) -> None:
        script = peers.executable(place / "hello", peers.SCRIPT)
        self._ssh(
            stack, "asyncssh and a fork", "", stack.enter_context(floor.ssh(place / "f", script))
        )
        engines = {"bubblewrap": ""}
        try:
            engines["docker"], _ = stack.enter_context(peers.docker_host())
            self.round_trip = byhand.round_trip(engines["docker"], kit.base)
        except NoDockerError as error:
            self.missing = str(error)
        for engine, host in engines.items():
            self._files[engine] = place / f"{engine}.json"
            settings = {FILE: str(self._files[engine])}
            server = stack.enter_context(
                ours.server(
                    place / engine, engine, kit, host, module=("bench.marks", "serve"), **settings
                )
            )
            server.create("hello", peers.SCRIPT)
            self._ssh(stack, f"ssh, {engine}", engine, server.client)
            if engine == "bubblewrap":
                token = server.ask(":tokens", "new")
                server.ask(":access", "hello", "grant", token)
                url = f"{server.url}/run/{ours.USER}/hello"
                for one in contestants(stack, f"HTTP, {engine}", url, token):
                    if one.connection in {BARE, HTTP_KEPT}:
                        self.profiles.append(Profile(one, engine, HTTP))

    def _ssh(self, stack: ExitStack, name: str, engine: str, client: Client) -> None:
        settle = AFTER_DOCKER if engine == "docker" else 0.05
        kept = stack.enter_context(client.kept())
        for connection, options in (("fresh", ()), ("kept", kept)):
            line = client.line("hello", options=options)
            one = Contestant(name, connection, line, HELLO, settle)
            one.warm_up(WARM_UP)
            self.profiles.append(Profile(one, engine, SSH if engine else ()))

    def run(self, rounds: int) -> None:
        order = list(self.profiles)
        shuffle = random.Random(0).shuffle
        for _ in range(rounds):
            shuffle(order)
            for profile in order:
                profile.measure()

    def read(self) -> None:
        """The marks, once the servers have ended."""
        self.marks = {name: json.loads(file.read_text()) for name, file in self._files.items()}


def show(bench: Bench, machine: dict[str, object], *, markdown: bool) -> str:
    parts = ["\n".join(f"{key}: {value}" for key, value in machine.items())]
    if bench.missing:
        parts.append(f"not measured: docker: {bench.missing}")
    head = ["echo hello, ms by the client's clock", "n", "failed", "p50", "p95", "min"]
    lines = []
    for profile in bench.profiles:
        one = profile.contestant
        times = [f"{ms * 1e3:.1f}" for ms in (one.p50, one.p95, min(one.seconds))]
        lines.append([profile.name, str(len(one.seconds)), str(len(one.failures)), *times])
    parts.append(_table(head, lines, markdown=markdown))
    if bench.round_trip:
        p50, least = statistics.median(bench.round_trip) * 1e3, min(bench.round_trip) * 1e3
        parts.append(
            f"docker: a byte to a container's cat and back: p50 {p50:.2f} ms, min {least:.2f}"
        )
    parts += [
        _phases(profile, bench.marks[profile.engine], markdown=markdown)
        for profile in bench.profiles
        if profile.phases
    ]
    return "\n\n".join(parts)


def _phases(profile: Profile, marks: Sequence[Mark], *, markdown: bool) -> str:
    found = rows(profile, marks)
    total = sum(row.mean for row in found)
    lines = [
        [
            row.what,
            f"{row.mean:.2f}",
            f"{row.mean / total:.0%}",
            f"{row.p50:.2f}",
            "" if row.work is None else f"{row.work:.2f}",
        ]
        for row in found
    ]
    work = sum(row.work or 0 for row in found)
    lines.append(
        ["all", f"{total:.2f}", "100%", f"{profile.contestant.p50 * 1e3:.2f}", f"{work:.2f}"]
    )
    head = [profile.name, "ms", "share", "p50", "server's work"]
    return _table(head, lines, markdown=markdown)


def _table(head: Sequence[str], lines: Sequence[Sequence[str]], *, markdown: bool) -> str:
    if markdown:
        ruler = ["---", *(["---:"] * (len(head) - 1))]
        return "\n".join(f"| {' | '.join(line)} |" for line in [head, ruler, *lines])
    return report.table(head, lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__)
    parser.add_argument("-n", type=int, default=50, metavar="ROUNDS", help="50 by default")
    parser.add_argument("--markdown", action="store_true", help="for docs/performance.md")
    given = parser.parse_args()
    if given.n < 1:
        parser.error("-n: at least 1")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    bench = Bench()
    try:
        machine = report.machine()
        with folder() as place:
            with ExitStack() as stack:
                bench.start(stack, place, build())
                bench.run(given.n)
                report.finish(machine)
            bench.read()
        print(show(bench, machine, markdown=given.markdown))
    except (BenchError, KitError) as error:
        sys.stderr.write(f"bench: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
