"""One build of a layer at a time, for all who want it; and what is in a layer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cmdsvc.engine import Invocation
from cmdsvc.errors import BusyError, DataError, EngineError
from cmdsvc.model import SCRIPT_PATH, Limits, Network, Outcome, Reason
from cmdsvc.recipe import Recipe
from cmdsvc.relay import Job
from cmdsvc.service import builds as module
from cmdsvc.service.builds import AT_ONCE, PACKAGES, WAITING, Builds
from cmdsvc.service.figures import Figures
from tests.fakes import (
    AnsweringEngine,
    BrokenStopEngine,
    EndedJob,
    FailingEngine,
    FakeEngine,
    NeverEndingJob,
    SlowEngine,
    SlowToStopEngine,
    soon,
    turns,
)

LIMITS = Limits(timeout=600.0, memory=512 << 20, cpus=1.0, pids=256, disk=512 << 20)
JQ = Recipe("alpine", "", ("jq",), "alpine")


class Waiter:
    """Somebody who wants a layer; `lines` is the progress that it was told."""

    def __init__(
        self, builds: Builds, recipe: Recipe = JQ, *, fresh: bool = False, again: bool = False
    ) -> None:
        self.lines: list[str] = []
        wanted = builds.ensure(recipe, self.lines.append, fresh=fresh, again=again)
        self.task = asyncio.create_task(wanted)

    async def leave(self) -> None:
        self.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(self.task)

    @property
    def waits(self) -> bool:
        return not self.task.done()


def recipe_of(number: int) -> Recipe:
    return Recipe("alpine", "", (f"p{number}",), "alpine")


class TestEnsure:
    async def test_what_is_here_is_not_built(self):
        engine = FakeEngine()
        builds = Builds(engine, LIMITS, Figures("fake"))
        await builds.ensure(JQ, lambda _: None)
        again = Waiter(builds)
        await soon(again.task)
        assert engine.built == [JQ]
        assert again.lines == []

    async def test_two_waiters_share_one_build_and_its_progress(self):
        engine = SlowEngine()
        builds = Builds(engine, LIMITS, Figures("fake"))
        first, second = Waiter(builds), Waiter(builds)
        await soon(engine.begun.wait())
        await turns()
        late = Waiter(builds)
        await turns()
        engine.go.set()
        await soon(asyncio.gather(first.task, second.task, late.task))
        assert engine.built == [JQ]
        assert first.lines == second.lines == ["building", "built"]
        assert late.lines == ["built"]

    async def test_another_recipe_is_another_build(self):
        engine = SlowEngine()
        builds = Builds(engine, LIMITS, Figures("fake"))
        waiters = [Waiter(builds, recipe_of(n)) for n in range(2)]
        engine.go.set()
        await soon(asyncio.gather(*(w.task for w in waiters)))
        assert engine.built == [recipe_of(0), recipe_of(1)]

    async def test_who_leaves_does_not_stop_the_others(self):
        engine = SlowEngine()
        builds = Builds(engine, LIMITS, Figures("fake"))
        first, second = Waiter(builds), Waiter(builds)
        await soon(engine.begun.wait())
        await first.leave()
        await turns()
        assert engine.cancelled == 0
        engine.go.set()
        await soon(second.task)
        assert engine.built == [JQ]
        assert JQ.digest in engine.here
        assert first.lines == ["building"]  # nothing is told to who left
        assert second.lines == ["building", "built"]

    async def test_the_last_who_leaves_stops_the_build(self):
        engine = SlowEngine()
        builds = Builds(engine, LIMITS, Figures("fake"))
        first, second = Waiter(builds), Waiter(builds)
        await soon(engine.begun.wait())
        await second.leave()
        await first.leave()
        assert engine.cancelled == 1  # already: it is waited for
        assert not engine.here
        again = Waiter(builds)
        engine.go.set()
        await soon(again.task)
        assert engine.built == [JQ, JQ]

    async def test_who_leaves_while_it_waits_for_its_turn_is_not_built_for(self):
        engine = SlowEngine()
        builds = Builds(engine, LIMITS, Figures("fake"))
        waiters = [Waiter(builds, recipe_of(n)) for n in range(AT_ONCE + 1)]
        await turns()
        await waiters.pop().leave()
        engine.go.set()
        await soon(asyncio.gather(*(w.task for w in waiters)))
        assert engine.built == [recipe_of(n) for n in range(AT_ONCE)]

    async def test_who_comes_while_a_stopped_build_cleans_up_gets_another(self):
        engine = SlowToStopEngine()
        builds = Builds(engine, LIMITS, Figures("fake"))
        first = Waiter(builds)
        await soon(engine.begun.wait())
        first.task.cancel()
        await turns()
        assert engine.cancelled == 1
        assert first.waits
        second = Waiter(builds)
        await turns()
        engine.clean.set()
        engine.go.set()
        await soon(second.task)
        with pytest.raises(asyncio.CancelledError):
            await soon(first.task)
        assert engine.built == [JQ, JQ]

    async def test_what_fails_at_cleaning_up_is_still_a_cancellation(self):
        engine = BrokenStopEngine()
        builds = Builds(engine, LIMITS, Figures("fake"))
        waiter = Waiter(builds)
        await soon(engine.begun.wait())
        await waiter.leave()
        assert engine.cancelled == 1

    @pytest.mark.parametrize(
        "error", [DataError("no such package"), EngineError("gone"), OSError()]
    )
    async def test_a_failure_reaches_all_and_the_next_try_builds_again(self, error: Exception):
        engine = FailingEngine(error)
        builds = Builds(engine, LIMITS, Figures("fake"))
        waiters = [Waiter(builds), Waiter(builds)]
        await soon(engine.begun.wait())
        engine.go.set()
        assert await asyncio.gather(*(w.task for w in waiters), return_exceptions=True) == [
            error,
            error,
        ]
        engine.error = None
        await builds.ensure(JQ, lambda _: None)
        assert engine.built == [JQ, JQ]
        assert engine.here == {JQ.digest}

    async def test_a_failure_that_nobody_waits_for_is_no_ones_business(self):
        """An exception that was never retrieved would be a warning, and fail this test."""
        engine = FailingEngine(DataError("no such package"))
        builds = Builds(engine, LIMITS, Figures("fake"))
        waiter = Waiter(builds)
        await soon(engine.begun.wait())
        engine.go.set()
        waiter.task.cancel()
        with pytest.raises((asyncio.CancelledError, DataError)):
            await soon(waiter.task)

    async def test_so_many_at_once_and_so_many_waiting(self):
        engine = SlowEngine()
        builds = Builds(engine, LIMITS, Figures("fake"))
        waiters = [Waiter(builds, recipe_of(n)) for n in range(WAITING)]
        await turns()
        assert len(engine.built) == AT_ONCE
        with pytest.raises(BusyError, match=f"{WAITING} builds are waiting"):
            await builds.ensure(JQ, lambda _: None)
        sharing = Waiter(builds, recipe_of(WAITING - 1))  # is not one more
        await turns()
        assert sharing.waits
        engine.go.set()
        await soon(asyncio.gather(sharing.task, *(w.task for w in waiters)))
        assert len(engine.built) == WAITING
        await builds.ensure(JQ, lambda _: None)


class TestABaseThatMovedOn:
    async def test_it_is_built_upon_for_who_wants_that(self):
        engine = FakeEngine()
        engine.here, engine.outdated = {JQ.digest}, {JQ.digest}
        builds = Builds(engine, LIMITS, Figures("fake"))
        await builds.ensure(JQ, lambda _: None)
        assert engine.built == []
        for _ in range(2):
            await builds.ensure(JQ, lambda _: None, fresh=True)
        assert engine.built == [JQ]
        assert engine.fetched == []

    async def test_again_is_always(self):
        engine = FakeEngine()
        builds = Builds(engine, LIMITS, Figures("fake"))
        for count in (1, 2):
            await builds.ensure(JQ, lambda _: None, again=True)
            assert engine.fetched == [JQ] * count

    @pytest.mark.parametrize("before", [False, True])
    async def test_again_is_not_what_began_before(self, before: bool):
        """Else the base might have been looked at too early."""
        engine = SlowEngine()
        builds = Builds(engine, LIMITS, Figures("fake"))
        first = Waiter(builds, again=before)
        await soon(engine.begun.wait())
        later = [Waiter(builds, again=True) for _ in range(3)]
        await turns()
        assert engine.built == [JQ]
        assert builds.wanted == 2
        engine.go.set()
        await soon(asyncio.gather(first.task, *(one.task for one in later)))
        assert engine.built == [JQ, JQ]
        assert engine.fetched == [JQ] * (1 + before)
        assert first.lines == later[0].lines == ["building", "built"]

    async def test_fresh_looks_again_after_what_began_before(self):
        engine = SlowEngine()
        builds = Builds(engine, LIMITS, Figures("fake"))
        first = Waiter(builds)
        await soon(engine.begun.wait())
        second = Waiter(builds, fresh=True)
        await turns()
        engine.go.set()
        await soon(asyncio.gather(first.task, second.task))
        assert engine.built == [JQ], "what it found was right"

    async def test_who_needs_what_is_here_does_not_wait(self):
        engine = SlowEngine()
        engine.here.add(JQ.digest)
        builds = Builds(engine, LIMITS, Figures("fake"))
        rebuilding = Waiter(builds, again=True)
        await soon(engine.begun.wait())
        await soon(builds.ensure(JQ, lambda _: None))
        assert rebuilding.waits
        assert builds.holds(JQ.digest[:24])
        await rebuilding.leave()
        assert not builds.holds(JQ.digest[:24])

    async def test_one_of_a_layer_at_a_time(self):
        """Who builds one layer again and again does not take the room of the others."""
        engine = SlowEngine()
        builds = Builds(engine, LIMITS, Figures("fake"))
        waiters = [Waiter(builds, again=again) for again in (False, True)]
        await soon(engine.begun.wait())
        waiters += [Waiter(builds, again=True), Waiter(builds, recipe_of(1))]
        await turns()
        assert engine.built == [JQ, recipe_of(1)]
        engine.go.set()
        await soon(asyncio.gather(*(one.task for one in waiters)))
        assert builds.wanted == 0

    async def test_a_failure_is_for_who_wanted_it(self):
        engine = FailingEngine(BusyError("the source is down"))
        engine.here.add(JQ.digest)
        builds = Builds(engine, LIMITS, Figures("fake"))
        rebuilding = Waiter(builds, again=True)
        await soon(engine.begun.wait())
        engine.go.set()
        with pytest.raises(BusyError):
            await soon(rebuilding.task)
        await builds.ensure(JQ, lambda _: None)
        assert builds.failed == 1

    async def test_programs_are_looked_for_again(self):
        engine = FakeEngine()
        builds = Builds(engine, LIMITS, Figures("fake"))
        other = recipe_of(1)
        for recipe in (JQ, other):
            await builds.ensure(recipe, lambda _: None)
            await builds.check_programs(recipe, ["sh"])
        await builds.ensure(JQ, lambda _: None, again=True)
        for recipe in (JQ, other):
            await builds.check_programs(recipe, ["sh"])
        assert [run.recipe for run in engine.runs] == [JQ, other, JQ]

    async def test_what_was_looked_at_meanwhile_is_not_remembered(self):
        class Engine(FakeEngine):
            async def start(self, invocation: Invocation) -> Job:
                if not self.runs:
                    self.outdated = {JQ.digest}
                    await builds.ensure(JQ, lambda _: None, fresh=True)
                return await super().start(invocation)

        engine = Engine()
        engine.here.add(JQ.digest)
        builds = Builds(engine, LIMITS, Figures("fake"))
        for _ in range(3):
            await builds.check_programs(JQ, ["sh"])
        assert len(engine.runs) == 2


class TestCheckPrograms:
    """The search itself is done for real, by this machine's shell."""

    @pytest.fixture
    def engine(self) -> FakeEngine:
        engine = FakeEngine()
        engine.here.add(JQ.digest)
        return engine

    async def test_what_is_there(self, engine: FakeEngine, tmp_path: Path):
        program = tmp_path / "it's $(here); or not"
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        await Builds(engine, LIMITS, Figures("fake")).check_programs(
            JQ, ["/bin/sh", "sh", str(program)]
        )
        (look,) = engine.runs
        assert look.network == Network.NONE
        assert look.limits == LIMITS
        assert look.script is None
        assert look.argv[0] != SCRIPT_PATH

    async def test_it_is_looked_for_once(self, engine: FakeEngine):
        builds = Builds(engine, LIMITS, Figures("fake"))
        for _ in range(3):
            await builds.check_programs(JQ, ["/bin/sh"])
        assert len(engine.runs) == 1
        await builds.check_programs(JQ, ["sh"])
        other = recipe_of(1)
        engine.here.add(other.digest)
        await builds.check_programs(other, ["/bin/sh"])
        assert len(engine.runs) == 3

    async def test_what_is_remembered_is_bounded(
        self, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(module, "KNOWN", 2)
        builds = Builds(engine, LIMITS, Figures("fake"))
        for programs in (["sh"], ["cat"], ["ls"]):  # the first is forgotten
            await builds.check_programs(JQ, programs)
        await builds.check_programs(JQ, ["ls"])
        assert len(engine.runs) == 3
        await builds.check_programs(JQ, ["sh"])
        assert len(engine.runs) == 4

    async def test_nothing_to_look_for(self, engine: FakeEngine):
        await Builds(engine, LIMITS, Figures("fake")).check_programs(JQ, [])
        assert engine.runs == []

    @pytest.mark.parametrize("program", sorted(PACKAGES))
    async def test_the_package_that_brings_it(self, program: str, engine: FakeEngine):
        with pytest.raises(DataError) as caught:
            await Builds(engine, LIMITS, Figures("fake")).check_programs(
                JQ, ["/bin/sh", f"/nowhere/{program}"]
            )
        assert caught.value.what == f"/nowhere/{program} is not in the image"
        assert caught.value.hint == f"add the package {PACKAGES[program]} to the #!cmd line"

    @pytest.mark.parametrize(
        "program",
        [
            "/nowhere/x",
            "no-such-program",
            "-x",
            "-/x",
            "$(id)",
            "a b",
            "*",
            "export",
            "/etc/passwd",
            "/etc",
            "/dev/null",
        ],
    )
    async def test_no_package_is_known(self, program: str, engine: FakeEngine):
        with pytest.raises(DataError) as caught:
            await Builds(engine, LIMITS, Figures("fake")).check_programs(
                JQ, ["sh", program, "/nowhere/jq"]
            )
        assert caught.value.what == f"{program} is not in the image"
        assert caught.value.hint == "add the package that brings it to the #!cmd line"

    async def test_a_failure_is_not_remembered(self, engine: FakeEngine, tmp_path: Path):
        builds = Builds(engine, LIMITS, Figures("fake"))
        program = tmp_path / "later"
        with pytest.raises(DataError):
            await builds.check_programs(JQ, [str(program)])
        program.write_text("")
        program.chmod(0o755)
        await builds.check_programs(JQ, [str(program)])

    async def test_a_name_that_is_not_text(self, engine: FakeEngine):
        with pytest.raises(DataError) as caught:
            await Builds(engine, LIMITS, Figures("fake")).check_programs(
                JQ, ["/nowhere/\udcff\x1b"]
            )
        assert str(caught.value).isprintable()

    async def test_a_layer_that_is_gone(self):
        with pytest.raises(BusyError, match="removed meanwhile"):
            await Builds(FakeEngine(), LIMITS, Figures("fake")).check_programs(JQ, ["sh"])

    @pytest.mark.parametrize(
        ("outcome", "says"),
        [
            (Outcome(127), "status 127"),
            (Outcome(1), "status 1"),  # without a name: not what was looked for
            (Outcome(137, Reason.MEMORY, "out of memory"), "out of memory"),
            (Outcome(125, Reason.ENGINE, "the engine stopped"), "the engine stopped"),
        ],
    )
    async def test_a_search_that_fails(self, outcome: Outcome, says: str):
        job = EndedJob(outcome, (2, b"sh: something else\n"))
        with pytest.raises(EngineError, match=f"could not be searched: {says}"):
            await Builds(AnsweringEngine(job), LIMITS, Figures("fake")).check_programs(JQ, ["sh"])
        assert job.closed

    async def test_a_search_that_never_ends(self):
        job = NeverEndingJob()
        limits = Limits(timeout=0.01, memory=1, cpus=1, pids=1, disk=1)
        with pytest.raises(EngineError, match="timed out"):
            await Builds(AnsweringEngine(job), limits, Figures("fake")).check_programs(JQ, ["sh"])
        assert job.closed

    async def test_a_program_that_talks_too_much(self):
        job = EndedJob(Outcome(1), *[(1, b"x" * 200)] * 5)
        with pytest.raises(DataError) as caught:
            await Builds(AnsweringEngine(job), LIMITS, Figures("fake")).check_programs(JQ, ["sh"])
        assert len(str(caught.value)) < 400
