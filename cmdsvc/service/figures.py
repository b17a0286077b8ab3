"""What a monitoring system reads: counted where it happens, measured when it is asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from math import nan
from time import monotonic
from weakref import WeakSet

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from cmdsvc import __version__
from cmdsvc.engine import Engine
from cmdsvc.errors import BusyError, CmdError, EngineError, InternalError
from cmdsvc.model import Door, Outcome, Reason, State
from cmdsvc.service.admission import Admission
from cmdsvc.store import Backlog, Store

MILLISECONDS = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 600),
)
"""Bounds in seconds: close together where runs begin."""
SECONDS = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)

FRESH = 1.0
"""Seconds that what the store counted holds: anybody may ask, and it has other work."""
PATIENCE = 5.0
"""Seconds that it has."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""https://prometheus.io/docs/instrumenting/exposition_formats/, which every version reads."""


class Figures:
    """No label has a value that a caller can choose.

    What can be counted is there from the start, at zero: of a series that begins with 1,
    Prometheus' rate() does not see that first one.
    """

    def __init__(self, engine: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each, of no use
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        info = Gauge(
            "cmdsvc_info", "Which program this is.", ["version", "engine"], registry=registry
        )
        info.labels(__version__, engine).set(1)
        self._engine = engine
        self._runs = Counter(
            "cmdsvc_runs",
            "Runs that ended.",
            ["door", "outcome", "engine"],
            registry=registry,
        )
        self._seconds = Histogram(
            "cmdsvc_run_seconds",
            "From when a run was asked for to its end.",
            ["door", "engine"],
            buckets=MILLISECONDS,
            registry=registry,
        )
        self._first_byte = Histogram(
            "cmdsvc_run_first_byte_seconds",
            "From when a run was asked for to the first byte that it wrote.",
            ["door", "engine"],
            buckets=MILLISECONDS,
            registry=registry,
        )
        self._queue = Histogram(
            "cmdsvc_queue_wait_seconds",
            "How long runs waited for others, of those that had to and then began.",
            buckets=MILLISECONDS,
            registry=registry,
        )
        self._refused = Counter(
            "cmdsvc_runs_refused",
            "Runs that were not begun, by the exit status that was told.",
            ["door", "exit_status"],
            registry=registry,
        )
        self._builds = Histogram(
            "cmdsvc_build_seconds",
            "Builds of package layers.",
            ["outcome", "engine"],
            buckets=SECONDS,
            registry=registry,
        )
        self._errors = Counter(
            "cmdsvc_errors", "What failed that should not.", ["part"], registry=registry
        )
        self._counted: WeakSet[BaseException] = WeakSet()
        for part in ("engine", "store"):
            self._errors.labels(part)
        for door in Door:
            self._refused.labels(door, BusyError.exit_status)
            for reason in Reason:
                self._runs.labels(door, reason, engine)
        self._attempts = Counter(
            "cmdsvc_delivery_attempts",
            "Attempts at deliveries, by what then became of the delivery.",
            ["door", "state"],
            registry=registry,
        )
        for door in (Door.HOOK, Door.SCHEDULE):
            for state in (State.DONE, State.WAITING, State.FAILED):
                self._attempts.labels(door, state)
        self._running = Gauge("cmdsvc_sandboxes_running", "Runs that go on.", registry=registry)
        self._warm = Gauge(
            "cmdsvc_sandboxes_warm",
            "Sandboxes that are made and wait for a run.",
            registry=registry,
        )
        self._waiting = Gauge(
            "cmdsvc_runs_waiting", "Runs that wait for others.", registry=registry
        )
        self._deliveries = Gauge(
            "cmdsvc_deliveries", "Deliveries that are kept.", ["state"], registry=registry
        )
        self._oldest = Gauge(
            "cmdsvc_deliveries_oldest_seconds",
            "How long the oldest delivery waits.",
            registry=registry,
        )
        self._backlog: Backlog | None = None
        self._looked = -FRESH
        self._looking = asyncio.Lock()

    def ended(self, door: Door, outcome: Outcome, seconds: float, first_byte: float | None) -> None:
        """A run; `first_byte` in seconds too, None where it wrote nothing."""
        self._runs.labels(door, outcome.reason, self._engine).inc()
        self._seconds.labels(door, self._engine).observe(seconds)
        if first_byte is not None:
            self._first_byte.labels(door, self._engine).observe(first_byte)

    def refused(self, door: Door, error: CmdError) -> None:
        """A run that was not begun."""
        self._refused.labels(door, error.exit_status).inc()

    def failed(self, error: BaseException) -> None:
        """Counts what was the engine's or the store's fault, or was caused by it; each only once."""
        for one in (error, error.__cause__):
            if not isinstance(one, EngineError | InternalError) or one in self._counted:
                continue
            self._counted.add(one)
            self._errors.labels("engine" if isinstance(one, EngineError) else "store").inc()

    def attempted(self, door: Door, state: State) -> None:
        """A delivery, and what became of it by that."""
        self._attempts.labels(door, state).inc()

    def waited(self, seconds: float) -> None:
        """A run that could begin only then."""
        self._queue.observe(seconds)

    @contextmanager
    def building(self) -> Iterator[None]:
        begun, outcome = monotonic(), "failed"
        try:
            yield
            outcome = "built"
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except CmdError as error:
            self.failed(error)
            raise
        finally:
            self._builds.labels(outcome, self._engine).observe(monotonic() - begun)

    async def exposition(self, store: Store, admission: Admission, engine: Engine) -> bytes:
        """All of it in Prometheus' text format. What the store cannot tell now is left out."""
        async with self._looking:
            if monotonic() - self._looked >= FRESH:
                await self._look(store)
                self._looked = monotonic()
            self._running.set(admission.running)
            self._waiting.set(admission.waiting)
            self._warm.set(engine.warm)
            self._tell(self._backlog)
            return await asyncio.to_thread(generate_latest, self._registry)

    async def _look(self, store: Store) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                self._backlog = await store.backlog()
        except (CmdError, TimeoutError):
            self._errors.labels("store").inc()
            self._backlog = None

    def _tell(self, backlog: Backlog | None) -> None:
        if backlog is None:
            self._deliveries.clear()
            self._oldest.set(nan)
            return
        self._deliveries.labels(State.WAITING).set(backlog.waiting)
        self._deliveries.labels(State.RUNNING).set(backlog.running)
        self._deliveries.labels(State.FAILED).set(backlog.failed)
        now = datetime.now(UTC)
        oldest = (now - backlog.oldest).total_seconds() if backlog.oldest else 0.0
        self._oldest.set(max(0.0, oldest))
