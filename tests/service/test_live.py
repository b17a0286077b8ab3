"""What runs and what ran: limits, output, who may see it and who may stop it; no sandbox is real."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from cmdsvc.engine import Invocation, Usage
from cmdsvc.errors import (
    BusyError,
    CmdError,
    EngineError,
    ForbiddenError,
    NotFoundError,
    UsageError,
)
from cmdsvc.model import Door, Identity, Limits, Network, Outcome, Output, Reason, Run, Via
from cmdsvc.relay import Caller, Job
from cmdsvc.service.admission import Admission
from cmdsvc.service.builds import Builds
from cmdsvc.service.commands import Commands, Policy
from cmdsvc.service.environment import Environment
from cmdsvc.service.figures import Figures
from cmdsvc.service.invocation import Invocations, Request
from cmdsvc.service.outputs import Gap
from cmdsvc.service.readymade import ReadyMade
from cmdsvc.service.retention import Retention
from cmdsvc.service.runs import Runs
from cmdsvc.service.secretkey import open_sealer
from cmdsvc.service.top import Top
from cmdsvc.store import Store, open_store
from tests.fakes import EndedJob, FakeCaller, FakeEngine, soon, turns

LIMITS = Limits(timeout=600.0, memory=512 << 20, cpus=1.0, pids=256, disk=512 << 20)
OUTPUT_MAX = 4096
ANN, BOB, EVE = (Identity(name, Via.KEY) for name in ("ann", "bob", "eve"))
ROOT = Identity("root", Via.KEY, operator=True)
SOURCE = b"#!cmd alpine\n#!/bin/sh\n"
KEEPING = b"#!cmd alpine\n#!/bin/sh\n# /// cmd\n# keep_output = true\n# timeout = '9s'\n# ///\n"


class HeldJob(EndedJob):
    """Writes what it is given, and ends when it is told to, or is closed."""

    def __init__(self) -> None:
        super().__init__(Outcome(0))
        self.lines: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue()

    def write(self, fd: int, data: bytes) -> None:
        self.lines.put_nowait((fd, data))

    def end(self, outcome: Outcome = Outcome(0)) -> None:  # noqa: B008 - it is frozen
        self.outcome = outcome
        self.lines.put_nowait(None)

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        while (piece := await self.lines.get()) is not None:
            yield piece


class HoldingEngine(FakeEngine):
    """Its runs go on until the test ends them; `error` is what starting one fails with."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: list[HeldJob] = []
        self.started = asyncio.Event()
        self.error: Exception | None = None

    async def has(self, recipe: object) -> bool:
        return True

    async def start(self, invocation: Invocation) -> Job:
        self.runs.append(invocation)
        if self.error is not None:
            raise self.error
        if invocation.run_id.startswith("look-"):
            return EndedJob(Outcome(0))
        self.jobs.append(HeldJob())
        self.started.set()
        return self.jobs[-1]

    async def usage(self) -> dict[str, Usage]:
        if self.error is not None:
            raise self.error
        return {run.run_id: Usage(1.5, 1 << 20) for run in self.runs}

    async def job(self, count: int = 1) -> HeldJob:
        """The newest, once so many were begun."""
        while len(self.jobs) < count:
            self.started.clear()
            await soon(self.started.wait())
        return self.jobs[count - 1]


@dataclass
class Lab:
    store: Store
    engine: HoldingEngine
    builds: Builds
    commands: Commands
    runs: Runs

    def request(self, identity: Identity = ANN, name: str = "job", **more: object) -> Request:
        return Request(identity, Door.SSH, name, [], {}, "192.0.2.1", **more)

    def begin(
        self, identity: Identity = ANN, name: str = "job", caller: Caller | None = None
    ) -> asyncio.Task[Outcome]:
        request = self.request(identity, name)
        return asyncio.create_task(self.runs.run(request, caller or FakeCaller()))

    async def newest(self, identity: Identity = ANN) -> Run:
        return (await self.runs.live.runs(identity, None, 1))[0]

    async def logs(
        self, identity: Identity, run_id: str, *, follow: bool = False
    ) -> list[tuple[int, bytes] | Gap] | None:
        pieces = await self.runs.live.output(identity, run_id, follow=follow)
        return None if pieces is None else [piece async for piece in pieces]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await open_store(f"sqlite+aiosqlite:///{tmp_path}/store.db", server="one")
    yield opened
    await opened.aclose()


@pytest.fixture
async def lab(store: Store, tmp_path: Path) -> AsyncIterator[Lab]:
    """Ann has `job` and `keeping`; Bob may change `job`, everybody may run it."""
    engine = HoldingEngine()
    figures = Figures("fake")
    builds = Builds(engine, LIMITS, figures)
    policy = Policy(LIMITS, 1 << 20, {"alpine": "alpine"}, frozenset(Network), 3, 1000)
    commands = Commands(store, builds, ReadyMade({}), policy)
    env = Environment(store, commands, await open_sealer(tmp_path, store))
    runs = Runs(
        store,
        engine,
        builds,
        commands,
        Invocations(engine, commands, env, LIMITS),
        figures=figures,
        admission=Admission(3, 2, 60),
        output_max=OUTPUT_MAX,
    )
    for identity in (ANN, BOB, EVE, ROOT):
        await store.ensure_user(identity.user)
    await commands.create(ANN, "job", SOURCE, lambda _: None)
    await commands.create(ANN, "keeping", KEEPING, lambda _: None)
    await store.set_admins("ann", "job", grant=["bob"], by="ann")
    await store.set_access("ann", "job", grant=["public"], by="ann")
    engine.runs.clear()
    yield Lab(store, engine, builds, commands, runs)
    await soon(runs.aclose())


class TestDetached:
    async def test_it_goes_on_alone_and_its_output_is_kept(self, lab: Lab):
        run_id = await lab.runs.detach(lab.request())
        job = await lab.engine.job()
        job.write(1, b"out\n")
        job.write(2, b"err\n")
        assert (await lab.newest()).id == run_id
        assert (await lab.newest()).outcome is None
        job.end(Outcome(3))
        assert await soon(lab.logs(ANN, run_id, follow=True)) == [(1, b"out\n"), (2, b"err\n")]
        await lab.runs.aclose()
        assert await lab.store.output(run_id) == Output(((1, b"out\n"), (2, b"err\n")), ())
        assert await lab.logs(ANN, run_id) == [(1, b"out\n"), (2, b"err\n")]
        kept = await lab.store.run(run_id)
        assert kept is not None
        assert kept.outcome == Outcome(3)

    async def test_what_fails_before_it_has_begun_is_told(self, lab: Lab):
        with pytest.raises(NotFoundError):
            await lab.runs.detach(lab.request(name="nothing"))
        assert lab.runs.admission.running == 0
        assert await lab.runs.live.runs(ANN, None, 10) == []

    async def test_what_fails_later_is_in_its_log(self, lab: Lab):
        lab.engine.error = EngineError("no sandbox", "wait")
        run_id = await lab.runs.detach(lab.request())
        assert await soon(lab.logs(ANN, run_id, follow=True)) == [
            (2, b"cmdsvc: job: no sandbox; wait\n")
        ]
        assert (await lab.newest()).outcome == Outcome(125, Reason.ENGINE, "no sandbox; wait")

    async def test_who_leaves_before_he_has_the_id_leaves_nothing_running(self, lab: Lab):
        task = asyncio.create_task(lab.runs.detach(lab.request()))
        await turns(2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(task)
        await lab.runs.aclose()
        assert lab.runs.admission.running == 0

    async def test_what_is_stopped_before_it_has_begun_has_no_id(
        self, lab: Lab, monkeypatch: pytest.MonkeyPatch
    ):
        recording = asyncio.Event()

        async def slow(run: Run) -> None:
            recording.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(lab.store, "begin_run", slow)
        task = asyncio.create_task(lab.runs.detach(lab.request()))
        await soon(recording.wait())
        assert await soon(lab.runs.stop("ann", by="root")) == 1
        with pytest.raises(BusyError, match="stopped before it began: killed by root"):
            await soon(task)
        assert lab.runs.admission.running == 0

    async def test_it_counts_within_the_limits(self, lab: Lab):
        for _ in range(2):
            await lab.runs.detach(lab.request())
        third = asyncio.create_task(lab.runs.detach(lab.request()))
        await lab.engine.job(2)
        await turns()
        assert lab.runs.admission.waiting == 1
        (await lab.engine.job(1)).end()
        await soon(third)

    async def test_draining_waits_for_it_then_ends_it(self, lab: Lab):
        run_id = await lab.runs.detach(lab.request())
        await lab.engine.job()
        assert await soon(lab.runs.drain(0.01)) is False
        with pytest.raises(BusyError, match="shutting down"):
            await lab.runs.detach(lab.request())
        await soon(lab.runs.aclose())
        assert lab.engine.jobs[0].closed
        ended = await lab.store.run(run_id)
        assert ended is not None
        assert ended.outcome == Outcome(
            70, Reason.LOST, "the server stopped while this ran; start it again"
        )
        assert await lab.store.output(run_id) == Output(
            ((2, b"cmdsvc: job: the server stopped while this ran; start it again\n"),), ()
        )

    async def test_draining_is_over_when_it_ends(self, lab: Lab):
        await lab.runs.detach(lab.request())
        draining = asyncio.create_task(lab.runs.drain(60))
        (await lab.engine.job()).end()
        assert await soon(draining) is True


class TestTimeout:
    async def test_it_can_be_lowered(self, lab: Lab):
        run = asyncio.create_task(lab.runs.run(lab.request(timeout=0.01), FakeCaller()))
        outcome = await soon(run)
        assert outcome == Outcome(124, Reason.TIMEOUT, "timed out after 0.01 s; give it more time")
        assert lab.engine.runs[0].limits.timeout == 0.01

    @pytest.mark.parametrize(("name", "most"), [("job", 600), ("keeping", 9)])
    async def test_it_cannot_be_raised(self, lab: Lab, name: str, most: int):
        with pytest.raises(UsageError, match=f"its time limit is {most} s"):
            await lab.runs.run(lab.request(name=name, timeout=most + 1.0), FakeCaller())
        assert lab.engine.runs == []
        assert lab.runs.admission.running == 0


class TestOutput:
    async def test_of_an_attached_run_nothing_is_kept(self, lab: Lab):
        task = lab.begin()
        (await lab.engine.job()).write(1, b"out")
        run = await lab.newest()
        assert await lab.logs(ANN, run.id) is None
        assert await lab.logs(ANN, run.id, follow=True) is None
        lab.engine.jobs[0].end()
        await soon(task)
        assert await lab.logs(ANN, run.id) is None

    async def test_unless_its_script_asks_for_it(self, lab: Lab):
        caller = FakeCaller()
        task = lab.begin(name="keeping", caller=caller)
        job = await lab.engine.job()
        job.write(1, b"out")
        job.end()
        await soon(task)
        assert caller.got == [(1, b"out")]
        assert await lab.logs(ANN, (await lab.newest()).id) == [(1, b"out")]

    async def test_it_is_there_when_the_caller_knows_of_the_end(self, lab: Lab):
        task = lab.begin(name="keeping")
        job = await lab.engine.job()
        run_id = lab.engine.runs[0].run_id
        job.end()
        await soon(task)
        assert await lab.store.output(run_id) == Output((), ())
        ended = await lab.store.run(run_id)
        assert ended is not None
        assert ended.outcome == Outcome(0)

    async def test_it_is_bounded(self, lab: Lab):
        run_id = await lab.runs.detach(lab.request())
        job = await lab.engine.job()
        for _ in range(100):
            job.write(1, b"x" * 1000)
        job.end()
        await soon(lab.logs(ANN, run_id, follow=True))
        pieces = await lab.logs(ANN, run_id)
        assert pieces is not None
        sizes = [piece.size if isinstance(piece, Gap) else len(piece[1]) for piece in pieces]
        assert sum(sizes) == 100_000
        (gap,) = (piece for piece in pieces if isinstance(piece, Gap))
        assert gap.size >= 100_000 - OUTPUT_MAX

    async def test_of_whom(self, lab: Lab):
        """The caller himself, and who administers the command; others see no such run."""
        run_id = await lab.runs.detach(lab.request(EVE, "ann/job"))
        (await lab.engine.job()).end()
        await soon(lab.logs(EVE, run_id, follow=True))
        for identity in (ANN, BOB, EVE):
            assert await lab.logs(identity, run_id) == []
        own = await lab.runs.detach(lab.request())
        nobody = str(await refusal(lab.logs(EVE, "0123456789abcdef")))
        for identity, run in ((ROOT, run_id), (EVE, own)):
            assert str(await refusal(lab.logs(identity, run))) == nobody.replace(
                "0123456789abcdef", run
            )

    async def test_of_a_command_that_is_gone(self, lab: Lab):
        run_id = await lab.runs.detach(lab.request(EVE, "ann/job"))
        (await lab.engine.job()).end()
        await soon(lab.logs(EVE, run_id, follow=True))
        await lab.commands.delete(ANN, "job")
        assert await lab.logs(EVE, run_id) == []
        assert await lab.logs(ANN, run_id) == []
        await refusal(lab.logs(BOB, run_id))

    async def test_a_token_sees_nothing(self, lab: Lab):
        run_id = await lab.runs.detach(lab.request())
        token = Identity("ann", Via.TOKEN, token="cmd_00000000")
        for asked in (
            lab.logs(token, run_id),
            lab.runs.live.kill(token, run_id),
            lab.runs.live.runs(token, None, 1),
        ):
            with pytest.raises(ForbiddenError):
                await asked

    @pytest.mark.parametrize("run_id", ["", "x", "\x1b[2J\n", "x" * 10_000, "../../etc", "\udcff"])
    async def test_what_is_no_id(self, lab: Lab, run_id: str):
        for asked in (lab.logs(ANN, run_id), lab.runs.live.kill(ANN, run_id)):
            line = str(await refusal(asked))
            assert line.isprintable()
            assert len(line) < 200


async def refusal(asked: object) -> CmdError:
    with pytest.raises(NotFoundError) as caught:
        await soon(asked)
    return caught.value


class TestListing:
    async def test_own_calls_and_all_of_own_commands(self, lab: Lab):
        ids = []
        for identity, name in ((ANN, "job"), (BOB, "ann/job"), (EVE, "ann/job")):
            ids.append(await lab.runs.detach(lab.request(identity, name)))
            (await lab.engine.job(len(ids))).end()
            await soon(lab.logs(identity, ids[-1], follow=True))

        async def seen(identity: Identity, name: str | None = None, limit: int = 10) -> list[str]:
            return [run.id for run in await lab.runs.live.runs(identity, name, limit)]

        assert sorted(await seen(ANN)) == sorted(await seen(BOB)) == sorted(ids)
        assert await seen(EVE) == [ids[2]]
        assert await seen(ROOT) == []
        assert await seen(ANN, "job", 2) == list(reversed(ids))[:2]
        assert await seen(ANN, "ann/job") == list(reversed(ids))
        assert await seen(ANN, "keeping") == []
        assert await seen(EVE, "ann/job") == [ids[2]]
        await refusal(seen(EVE, "ann/keeping"))
        await refusal(seen(EVE, "job"))
        with pytest.raises(UsageError):
            await seen(ANN, "no such/../name")
        await lab.commands.delete(ANN, "job")
        assert await seen(ANN, "job") == list(reversed(ids))
        assert await seen(BOB, "ann/job") == [ids[1]]

    async def test_an_end_is_seen_before_it_is_recorded(self, lab: Lab):
        task = lab.begin()
        (await lab.engine.job()).end(Outcome(7))
        await soon(task)
        assert (await lab.newest()).outcome == Outcome(7)


class TestKilling:
    @pytest.mark.parametrize("killer", [ANN, BOB, EVE, ROOT])
    async def test_by_who_may(self, lab: Lab, killer: Identity):
        task = lab.begin(EVE, "ann/job")
        job = await lab.engine.job()
        run_id = lab.engine.runs[0].run_id
        assert await soon(lab.runs.live.kill(killer, run_id)) is True
        assert job.closed
        killed = Outcome(137, Reason.KILLED, f"killed by {killer.user}")
        assert await soon(task) == killed
        assert await soon(lab.runs.live.kill(killer, run_id)) is False
        entries = [(e.user, e.action, e.subject) for e in await lab.store.entries()]
        assert ((killer.user, "kill", "ann/job") in entries) == (killer is not EVE)

    async def test_by_who_may_not(self, lab: Lab):
        task = lab.begin()
        await lab.engine.job()
        await refusal(lab.runs.live.kill(EVE, lab.engine.runs[0].run_id))
        assert not task.done()
        lab.engine.jobs[0].end()
        await soon(task)

    async def test_a_run_of_a_command_that_is_gone(self, lab: Lab):
        task = lab.begin(EVE, "ann/job")
        await lab.engine.job()
        await lab.commands.delete(ANN, "job")
        run_id = lab.engine.runs[0].run_id
        await refusal(lab.runs.live.kill(BOB, run_id))
        assert await soon(lab.runs.live.kill(ROOT, run_id)) is True
        await soon(task)

    async def test_before_the_sandbox_is_there(self, lab: Lab):
        started, go = asyncio.Event(), asyncio.Event()

        async def slow(invocation: Invocation) -> Job:
            started.set()
            await go.wait()
            raise AssertionError("it was not stopped")

        lab.engine.start = slow  # type: ignore[method-assign]
        task = lab.begin()
        await soon(started.wait())
        assert await soon(lab.runs.live.kill(ANN, (await lab.newest()).id)) is True
        assert (await soon(task)).reason is Reason.KILLED

    async def test_twice_at_once(self, lab: Lab):
        task = lab.begin()
        await lab.engine.job()
        run_id = lab.engine.runs[0].run_id
        kills = await soon(
            asyncio.gather(lab.runs.live.kill(ANN, run_id), lab.runs.live.kill(BOB, run_id))
        )
        assert kills == [True, True]
        assert (await soon(task)).message in {"killed by ann", "killed by bob"}

    async def test_its_time_limit_is_still_its_own(self, lab: Lab):
        run = asyncio.create_task(lab.runs.run(lab.request(timeout=0.01), FakeCaller()))
        assert (await soon(run)).reason is Reason.TIMEOUT

    async def test_all_of_a_subject(self, lab: Lab):
        token = Identity("eve", Via.TOKEN, token="cmd_00000000")
        tasks = [lab.begin(identity, "ann/job") for identity in (ANN, EVE, token)]
        await lab.engine.job(3)
        assert await soon(lab.runs.stop("nobody", by="ann")) == 0
        assert await soon(lab.runs.stop("eve", by="ann", command="ann/keeping")) == 0
        assert await soon(lab.runs.stop("eve", by="ann", command="ann/job")) == 1
        assert (await soon(tasks[1])).message == "killed by ann"
        assert await soon(lab.runs.stop("cmd_00000000", by="ann")) == 1
        await soon(tasks[2])
        assert not tasks[0].done()
        tasks += [lab.begin(identity, "ann/job") for identity in (EVE, token)]
        await lab.engine.job(5)
        assert await soon(lab.runs.stop("eve", by="")) == 2
        assert (await soon(tasks[4])).message == "killed"


class TestLimits:
    async def test_a_caller_waits_for_his_turn(self, lab: Lab):
        tasks = [lab.begin() for _ in range(3)]
        await lab.engine.job(2)
        await turns()
        assert lab.runs.admission.waiting == 1
        lab.engine.jobs[0].end()
        (await lab.engine.job(3)).end()
        lab.engine.jobs[1].end()
        await soon(asyncio.gather(*tasks))
        assert lab.runs.admission.running == 0

    async def test_who_leaves_while_waiting(self, lab: Lab):
        tasks = [lab.begin() for _ in range(3)]
        await lab.engine.job(2)
        await turns()
        tasks[2].cancel()
        await asyncio.gather(tasks[2], return_exceptions=True)
        assert lab.runs.admission.waiting == 0
        assert len(await lab.runs.live.runs(ANN, None, 10)) == 2

    async def test_too_many_commands(self, lab: Lab):
        await lab.commands.create(ANN, "third", SOURCE, lambda _: None)
        for make in (
            lab.commands.check_new(ANN, "fourth"),
            lab.commands.create(ANN, "fourth", SOURCE, lambda _: None),
        ):
            with pytest.raises(BusyError, match="you have 3 commands, and can have 3"):
                await make
        await lab.commands.create(BOB, "first", SOURCE, lambda _: None)
        await lab.commands.edit(ANN, "third", SOURCE, lambda _: None)

    async def test_too_many_bytes(self, lab: Lab):
        _, stored = await lab.store.stored("ann")
        large = SOURCE + b"#" * (1000 - stored - len(SOURCE))
        await lab.commands.edit(BOB, "ann/job", large, lambda _: None)
        with pytest.raises(BusyError, match="ann has 1000 bytes of source"):
            await lab.commands.edit(BOB, "ann/job", SOURCE, lambda _: None)
        with pytest.raises(BusyError, match="ann has 1000 bytes of source"):
            await lab.commands.create(ANN, "third", SOURCE, lambda _: None)
        await lab.commands.delete(ANN, "job")
        await lab.commands.create(ANN, "third", SOURCE, lambda _: None)


class TestRetention:
    async def test_old_runs_and_too_much_output(self, lab: Lab):
        for count in (1, 2):
            run_id = await lab.runs.detach(lab.request())
            job = await lab.engine.job(count)
            job.write(1, b"x" * 100)
            job.end()
            await soon(lab.logs(ANN, run_id, follow=True))
        await lab.runs.aclose()
        older, newer = reversed([run.id for run in await lab.runs.live.runs(ANN, None, 10)])
        await Retention(lab.store, 3600, 150, 3600).retire()
        assert await lab.store.output(older) is None
        assert await lab.store.output(newer) is not None
        assert len(await lab.runs.live.runs(ANN, None, 10)) == 2
        await Retention(lab.store, timedelta(0).total_seconds(), 150, 3600).retire()
        assert await lab.runs.live.runs(ANN, None, 10) == []

    async def test_it_goes_on_by_itself_and_ends_with_the_server(self, lab: Lab):
        run_id = await lab.runs.detach(lab.request())
        (await lab.engine.job()).end()
        await soon(lab.logs(ANN, run_id, follow=True))
        await lab.runs.aclose()
        retired = asyncio.Event()

        class Noticing(Retention):
            async def retire(self) -> None:
                await super().retire()
                retired.set()

        async with Noticing(lab.store, 0.0, 0, 3600).regularly():
            await soon(retired.wait())
        assert await lab.store.run(run_id) is None


class TestTop:
    @pytest.fixture
    def top(self, lab: Lab, tmp_path: Path) -> Top:
        return Top(
            lab.store, lab.engine, lab.builds, lab.runs, data_dir=tmp_path, outputs_keep=1 << 30
        )

    async def test_only_for_operators(self, top: Top):
        for identity in (ANN, Identity("root", Via.TOKEN, operator=True, token="cmd_00000000")):
            with pytest.raises(ForbiddenError):
                await top.picture(identity)

    async def test_what_runs_and_what_it_uses(self, lab: Lab, top: Top):
        run_id = await lab.runs.detach(lab.request(EVE, "ann/job"))
        (await lab.engine.job()).write(1, b"x" * 100)
        await turns()
        picture = await top.picture(ROOT)
        (sandbox,) = picture.sandboxes
        assert (sandbox.run_id, sandbox.command, sandbox.user) == (run_id, "ann/job", "eve")
        assert (sandbox.cpu_seconds, sandbox.memory, sandbox.output) == (1.5, 1 << 20, 100)
        resources = {resource.name: resource for resource in picture.resources}
        assert list(resources) == ["runs", "builds", "memory", "outputs", "stored"]
        runs = resources["runs"]
        assert (runs.use, runs.limit, runs.saturation, runs.errors) == (1, 3, 0, 0)
        assert resources["memory"].use == 1 << 20
        assert 0 < resources["stored"].use < resources["stored"].limit

    async def test_an_engine_that_fails(self, lab: Lab, top: Top):
        await lab.runs.detach(lab.request())
        await lab.engine.job()
        lab.engine.error = EngineError("it is gone")
        with contextlib.suppress(EngineError):
            await lab.runs.run(lab.request(), FakeCaller())
        picture = await top.picture(ROOT)
        assert [(s.cpu_seconds, s.memory) for s in picture.sandboxes] == [(None, None)]
        assert picture.resources[0].errors == 1
