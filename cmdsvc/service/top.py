"""What the service is doing: its runs, then each resource by use, saturation and errors.

The USE method: https://www.brendangregg.com/usemethod.html
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cmdsvc.access import Action, Verdict, may
from cmdsvc.engine import Engine, Usage
from cmdsvc.errors import EngineError, ForbiddenError
from cmdsvc.model import Identity, Reason
from cmdsvc.service.admission import WAITING as QUEUE
from cmdsvc.service.builds import AT_ONCE, WAITING, Builds
from cmdsvc.service.live import Going
from cmdsvc.service.runs import Runs
from cmdsvc.store import Store

STORED_FRESH = 30.0
"""Seconds that the count of what is stored holds: it reads through the whole store."""
PATIENCE = 5.0
"""Seconds that the engine has to tell what its sandboxes use."""
UNKNOWN = Usage(None, None)


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A run that goes on, and what it uses; None where that is not known."""

    run_id: str
    command: str
    user: str
    seconds: float
    cpu_seconds: float | None
    memory: int | None
    """Bytes."""
    output: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Resource:
    """`use` of at most `limit`, `saturation` of `full` (who waits, or per cent), and `errors`.

    Errors are since the service's start. What there is not is 0.
    """

    name: str
    use: int
    limit: int
    saturation: int = 0
    full: int = 0
    errors: int = 0


@dataclass(frozen=True, slots=True)
class Picture:
    """The service at one moment; `at` is of the monotonic clock."""

    at: float
    sandboxes: Sequence[Sandbox]
    resources: Sequence[Resource]


class Top:
    """`data_dir` is on the disk that the store fills."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        builds: Builds,
        runs: Runs,
        *,
        data_dir: Path,
        outputs_keep: int,
    ) -> None:
        self._store = store
        self._engine = engine
        self._builds = builds
        self._runs = runs
        self._data_dir = data_dir
        self._outputs_keep = outputs_keep
        self._stored: dict[str, int] = {}
        self._stored_at = -STORED_FRESH
        self.doors: list[Callable[[], Resource]] = []
        """What tells of the connections."""

    async def picture(self, identity: Identity) -> Picture:
        """For operators; ForbiddenError (77) for others."""
        if may(identity, Action.OPERATE) is not Verdict.ALLOWED:
            raise ForbiddenError("only operators see what goes on", "see your own with :runs")
        usage = await self._usage()
        admission, builds, ended = self._runs.admission, self._builds, self._runs.ended
        used = sum(found.memory or 0 for found in usage.values())
        return Picture(
            time.monotonic(),
            [_sandbox(going, usage.get(going.run.id, UNKNOWN)) for going in self._runs.live],
            [
                Resource(
                    "runs",
                    admission.running,
                    admission.most,
                    admission.waiting,
                    QUEUE,
                    admission.refused + ended[Reason.ENGINE],
                ),
                Resource(
                    "builds",
                    min(builds.wanted, AT_ONCE),
                    AT_ONCE,
                    max(0, builds.wanted - AT_ONCE),
                    WAITING - AT_ONCE,
                    builds.failed,
                ),
                *(door() for door in self.doors),
                Resource("memory", used, _memory(), _stalled(), 100, ended[Reason.MEMORY]),
                *await self._disk(),
            ],
        )

    async def _usage(self) -> Mapping[str, Usage]:
        """Nothing where the engine does not answer: the rest is all the more wanted then."""
        with contextlib.suppress(EngineError, TimeoutError):
            async with asyncio.timeout(PATIENCE):
                return await self._engine.usage()
        return {}

    async def _disk(self) -> list[Resource]:
        if time.monotonic() - self._stored_at >= STORED_FRESH:
            self._stored = await self._store.usage()
            self._stored_at = time.monotonic()
        outputs = self._stored.get("output_bytes", 0)
        stored = self._stored.get("source_bytes", 0) + outputs
        disk = await asyncio.to_thread(shutil.disk_usage, self._data_dir)
        percent = round(100 * disk.used / max(1, disk.used + disk.free))
        return [
            Resource("outputs", outputs, self._outputs_keep),
            Resource("stored", stored, stored + disk.free, percent, 100),
        ]


def _sandbox(going: Going, usage: Usage) -> Sandbox:
    run = going.run
    return Sandbox(
        run_id=run.id,
        command=run.command,
        user=run.user,
        seconds=(datetime.now(UTC) - run.started_at).total_seconds(),
        cpu_seconds=usage.cpu_seconds,
        memory=usage.memory,
        output=going.watched.written,
    )


def _memory() -> int:
    """Bytes that this machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _stalled() -> int:
    """Per cent of the last ten seconds in which something waited for memory, where that is told.

    The kernel's pressure stall information (Documentation/accounting/psi.rst).
    """
    try:
        text = Path("/proc/pressure/memory").read_text(encoding="ascii")
    except OSError:
        return 0
    match = re.search(r"(?m)^some avg10=([0-9.]+)", text)
    return round(float(match[1])) if match else 0
