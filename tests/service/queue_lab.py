"""Hooks, deliveries and schedules on a real store; no sandbox is real, and the clock is the test's."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any

from cmdsvc.engine import Invocation
from cmdsvc.model import Delivery, Door, Identity, Limits, Network, Outcome, State, Via
from cmdsvc.relay import Job
from cmdsvc.service.admission import Admission
from cmdsvc.service.builds import Builds
from cmdsvc.service.commands import Commands, Policy
from cmdsvc.service.deliveries import Deliveries
from cmdsvc.service.environment import Environment
from cmdsvc.service.figures import Figures
from cmdsvc.service.hooks import Hooks, Received, Settings
from cmdsvc.service.invocation import Invocations
from cmdsvc.service.readymade import ReadyMade
from cmdsvc.service.runs import Runs
from cmdsvc.service.schedules import Schedules
from cmdsvc.service.secretkey import open_sealer
from cmdsvc.service.signatures import Post
from cmdsvc.store import Store, open_store
from tests.fakes import EndedJob, FakeEngine, soon

LIMITS = Limits(timeout=600.0, memory=512 << 20, cpus=1.0, pids=256, disk=512 << 20)
ANN, BOB, EVE = (Identity(name, Via.KEY) for name in ("ann", "bob", "eve"))
SOURCE = b"#!cmd alpine\n#!/bin/sh\n"
SECRET = b"swordfish"
MOST = 20
"""Deliveries of a command that may wait."""
START = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.time = START
        self.since: float | None = None

    def __call__(self) -> datetime:
        return self.time + timedelta(seconds=0 if self.since is None else monotonic() - self.since)

    def goes(self) -> None:
        """From now on by itself, too."""
        self.since = monotonic()

    def forward(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


class TakingJob(EndedJob):
    """Reads its stdin to the end; then it ends, once it may."""

    def __init__(self, outcome: Outcome, *, held: bool = False) -> None:
        super().__init__(outcome)
        self.stdin = bytearray()
        self.may_end = asyncio.Event()
        self.eof = asyncio.Event()
        if not held:
            self.may_end.set()

    async def send(self, data: bytes) -> None:
        self.stdin += data

    async def send_eof(self) -> None:
        self.eof.set()

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        await self.eof.wait()
        yield 1, b"got %d\n" % len(self.stdin)
        await self.may_end.wait()


class ScriptedEngine(FakeEngine):
    """A run ends as `plan` says, the first of it first, and else well; or goes on where it is held."""

    def __init__(self) -> None:
        super().__init__()
        self.plan: list[Outcome | Exception] = []
        self.held = False
        self.jobs: asyncio.Queue[TakingJob] = asyncio.Queue()
        self.going: list[TakingJob] = []

    async def has(self, recipe: object) -> bool:
        return True

    async def start(self, invocation: Invocation) -> Job:
        self.runs.append(invocation)
        end = self.plan.pop(0) if self.plan else Outcome(0)
        if isinstance(end, Exception):
            raise end
        job = TakingJob(end, held=self.held)
        self.jobs.put_nowait(job)
        return job

    async def job(self) -> TakingJob:
        """The next that has begun."""
        return await soon(self.jobs.get())

    def env(self, index: int = -1) -> dict[bytes, bytes]:
        return dict(self.runs[index].env)


@dataclass
class Lab:
    store: Store
    engine: FakeEngine
    commands: Commands
    runs: Runs
    deliveries: Deliveries
    hooks: Hooks
    schedules: Schedules
    clock: Clock
    ended: asyncio.Queue[tuple[Door, State]]
    """Attempts that ended, and what then became of their deliveries."""

    @property
    def scripted(self) -> ScriptedEngine:
        assert isinstance(self.engine, ScriptedEngine)
        return self.engine

    async def hook(self, name: str = "push", command: str = "job", **settings: object) -> None:
        """One of ann's, whose secret is SECRET."""
        made = Settings(**{"scheme": "github", **settings})
        await self.hooks.new(ANN, command, name, made, SECRET)

    async def post(
        self,
        body: bytes = b"{}",
        delivery: str | None = None,
        *,
        hook: str = "push",
        command: str = "job",
        event: str = "push",
        secret: bytes = SECRET,
        env: dict[bytes, bytes] | None = None,
    ) -> Received:
        signature = hmac.digest(secret, body, "sha256").hex().encode()
        headers = [
            (b"x-hub-signature-256", b"sha256=" + signature),
            (b"x-github-event", event.encode()),
        ]
        if delivery is not None:
            headers.append((b"x-github-delivery", delivery.encode()))
        return await self.hooks.receive("ann", command, hook, Post(headers, b"", body), env or {})

    async def end(self) -> tuple[Door, State]:
        """The next attempt's."""
        return await soon(self.ended.get())

    async def listed(self, command: str = "job") -> list[Delivery]:
        """Oldest first."""
        return list(reversed(await self.store.deliveries("ann", command, limit=1000)))

    async def newest(self) -> Delivery:
        return (await self.listed())[-1]


@dataclass(frozen=True)
class Options:
    server: str = "one"
    most: int = 4
    lease: float = 45
    clock: Clock = field(default_factory=Clock)
    ended: asyncio.Queue[tuple[Door, State]] = field(default_factory=asyncio.Queue)


@asynccontextmanager
async def a_lab(
    url: str, folder: Path, engine: FakeEngine | None = None, **options: Any
) -> AsyncIterator[Lab]:
    """Ann's `job` and `other`, eve's `job`. Nothing is taken before `deliveries.start`."""
    made = Options(**options)
    store = await open_store(url, server=made.server)
    try:
        async with _opened(store, folder, engine, made) as lab:
            yield lab
    finally:
        await store.aclose()


@asynccontextmanager
async def _opened(
    store: Store, folder: Path, engine: FakeEngine | None, options: Options
) -> AsyncIterator[Lab]:
    engine = engine or ScriptedEngine()
    figures = Figures("fake")
    builds = Builds(engine, LIMITS, figures)
    policy = Policy(LIMITS, 1 << 20, {"alpine": "alpine"}, frozenset(Network), 10, 1 << 20)
    commands = Commands(store, builds, ReadyMade({}), policy)
    sealer = await open_sealer(folder, store)
    env = Environment(store, commands, sealer)
    runs = Runs(
        store,
        engine,
        builds,
        commands,
        Invocations(engine, commands, env, LIMITS),
        figures=figures,
        admission=Admission(16, 16, 60),
        output_max=4096,
    )
    clock, ended = options.clock, options.ended
    deliveries = Deliveries(
        store,
        runs,
        most=options.most,
        lease=options.lease,
        now=clock,
        attempted=lambda door, state: ended.put_nowait((door, state)),
    )
    wake = deliveries.wake
    hooks = Hooks(store, commands, sealer, wake, most=MOST, now=clock)
    schedules = Schedules(store, commands, wake, catch_up=3600, most=MOST, now=clock)
    await store.mark_lost(clock())
    for identity in (ANN, BOB, EVE):
        await store.ensure_user(identity.user)
    if not await store.names("ann"):
        for owner, name in ((ANN, "job"), (ANN, "other"), (EVE, "job")):
            await commands.create(owner, name, SOURCE, lambda _: None)
        await store.set_admins("ann", "job", grant=["bob"], by="ann")
        await store.set_access("ann", "job", grant=["public"], by="ann")
    if isinstance(engine, ScriptedEngine):
        engine.runs.clear()
        while not engine.jobs.empty():
            engine.jobs.get_nowait()
    try:
        yield Lab(store, engine, commands, runs, deliveries, hooks, schedules, clock, ended)
    finally:
        await soon(runs.aclose())
        await soon(deliveries.aclose())
