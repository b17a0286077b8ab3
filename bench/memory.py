"""How much memory processes hold, by /proc (proc(5))."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PEAK_OF_RSS = "5"
"""Written to clear_refs, begins VmHWM anew at what is resident now."""


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes of a process and all that come from it.

    `pss` counts a page that several share once; `rss` is of the first process alone.
    """

    rss: int
    pss: int
    processes: int


def held(pid: int) -> Held:
    everyone = [pid, *_descendants(pid)]
    pss = sum(_field(process, "smaps_rollup", "Pss") for process in everyone)
    return Held(_field(pid, "status", "VmRSS"), pss, len(everyone))


@dataclass
class Growth:
    """`bytes`: by how much a process's memory rose at most above what it was at the beginning."""

    bytes: int = 0


@contextmanager
def growth(pid: int) -> Iterator[Growth]:
    result = Growth()
    Path(f"/proc/{pid}/clear_refs").write_text(PEAK_OF_RSS)
    before = _field(pid, "status", "VmRSS")
    yield result
    result.bytes = max(0, _field(pid, "status", "VmHWM") - before)


def _descendants(pid: int) -> Iterator[int]:
    with suppress(OSError):  # ended meanwhile
        for task in Path(f"/proc/{pid}/task").iterdir():
            for word in (task / "children").read_text().split():
                yield int(word)
                yield from _descendants(int(word))


def _field(pid: int, file: str, name: str) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) << 10
    return 0
