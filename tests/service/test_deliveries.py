"""What came to hooks runs: once, in order where that is asked for, again where it is worth it."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from cmdsvc.errors import BusyError, DataError, EngineError, InternalError
from cmdsvc.model import Door, Outcome, Reason, State
from cmdsvc.service.deliveries import FIRST_PAUSE, LONGEST_PAUSE, pause_after
from cmdsvc.service.hooks import Settings
from cmdsvc.service.invocation import WITH_BODY, Request
from cmdsvc.service.signatures import Post
from tests.e2e import forked
from tests.fakes import FakeCaller, soon, turns
from tests.service.queue_lab import ANN, EVE, MOST, Lab, a_lab

pytest_plugins = ("tests.store.backends",)

TABLES = True
"""A new store is nothing that is tried here: see tests.store.backends."""

TIMED_OUT = Outcome(124, Reason.TIMEOUT, "timed out after 1 s")
KILLED = Outcome(137, Reason.KILLED, "killed by ann")


@pytest.fixture
async def lab(url: str, tmp_path: Path) -> AsyncIterator[Lab]:
    async with a_lab(url, tmp_path) as lab:
        await lab.deliveries.start()
        yield lab


class TestRunning:
    async def test_it_gets_the_body_and_knows_what_it_is(self, lab: Lab):
        await lab.hook()
        body = bytes(range(256)) * 1000
        env = {b"REMOTE_ADDR": b"192.0.2.9", b"HTTP_X_A": b"\xff", b"HTTP_AUTHORIZATION": b"x"}
        received = await lab.post(body, "d-1", env=env)
        job = await lab.scripted.job()
        assert await lab.end() == (Door.HOOK, State.DONE)
        assert job.stdin == body
        seen = lab.scripted.env()
        assert (
            seen.items()
            >= {
                b"HOOK_NAME": b"push",
                b"HOOK_EVENT": b"push",
                b"HOOK_DELIVERY": received.delivery.encode(),
                b"HOOK_ATTEMPT": b"1",
                b"HTTP_X_A": b"\xff",
                b"REMOTE_ADDR": b"192.0.2.9",
                b"CMD_USER": b"ann",
                b"CMD_NAME": b"job",
            }.items()
        )
        assert b"HTTP_AUTHORIZATION" not in seen
        assert lab.engine.runs[0].argv[: len(WITH_BODY)] == WITH_BODY

    async def test_its_record_and_its_output(self, lab: Lab):
        await lab.hook()
        received = await lab.post(b"12345")
        await lab.end()
        ended = await lab.newest()
        assert (ended.id, ended.state, ended.attempt) == (received.delivery, State.DONE, 1)
        assert (ended.exit_status, ended.message, ended.due_at) == (0, "", None)
        assert ended.run is not None
        run = await lab.store.run(ended.run)
        assert run is not None
        assert (run.door, run.user, run.command) == (Door.HOOK, "ann", "ann/job")
        output = await lab.store.output(ended.run)
        assert output is not None
        assert output.head == ((1, b"got 5\n"),)

    async def test_one_line_in_the_log(self, lab: Lab, caplog: pytest.LogCaptureFixture):
        await lab.hook()
        with caplog.at_level(logging.INFO, "cmdsvc.delivery"):
            received = await lab.post()
            await lab.end()
            await turns()
        (line,) = (r for r in caplog.records if r.name == "cmdsvc.delivery")
        ended = await lab.newest()
        fields = line.__dict__["fields"]
        assert fields.pop("seconds") >= 0
        assert fields == {
            "delivery": received.delivery,
            "run": ended.run,
            "command": "ann/job",
            "hook": "push",
            "state": State.DONE,
            "attempt": 1,
            "exit_status": 0,
        }

    async def test_so_many_at_once_and_no_more(self, url: str, tmp_path: Path):
        async with a_lab(url, tmp_path) as lab:
            await lab.hook()
            for number in range(10):
                await lab.post(b"%d" % number)
            lab.scripted.held = True
            await lab.deliveries.start()
            jobs = [await lab.scripted.job() for _ in range(4)]
            await turns(100)
            assert lab.scripted.jobs.empty()
            lab.scripted.held = False
            for job in jobs:
                job.may_end.set()
            for _ in range(10):
                assert await lab.end() == (Door.HOOK, State.DONE)

    async def test_one_owner_does_not_keep_others_waiting(self, url: str, tmp_path: Path):
        async with a_lab(url, tmp_path, most=16) as lab:
            await lab.hook()
            await lab.hooks.new(EVE, "job", "push", Settings("token"), b"swordfish")
            for number in range(MOST):
                await lab.post(b"%d" % number)
            lab.scripted.held = True
            await lab.deliveries.start()
            first = [await lab.scripted.job() for _ in range(8)]
            lab.scripted.held = False
            token = Post([(b"x-hook-token", b"swordfish")], b"", b"of eve")
            await lab.hooks.receive("eve", "job", "push", token, {})
            while (await lab.store.deliveries("eve", "job"))[0].state is not State.DONE:
                assert await lab.end() == (Door.HOOK, State.DONE)
            waiting = [d for d in await lab.listed() if d.state is State.WAITING]
            assert len(waiting) == MOST - 8
            for job in first:
                job.may_end.set()

    async def test_callers_are_served_meanwhile(self, lab: Lab):
        lab.scripted.held = True
        await lab.hook()
        for number in range(10):
            await lab.post(b"%d" % number)
        jobs = [await lab.scripted.job() for _ in range(2)]
        lab.scripted.held = False
        request = Request(ANN, Door.SSH, "job", [], {}, "192.0.2.1")
        assert await soon(lab.runs.run(request, FakeCaller())) == Outcome(0)
        for job in jobs:
            job.may_end.set()


class TestTryingAgain:
    @pytest.mark.parametrize("outcome", [Outcome(75), TIMED_OUT])
    async def test_what_may_go_better_later(self, lab: Lab, outcome: Outcome):
        await lab.hook(retries=2)
        lab.scripted.plan = [outcome, outcome]
        await lab.post()
        for attempt in (1, 2):
            assert await lab.end() == (Door.HOOK, State.WAITING)
            waiting = await lab.newest()
            assert (waiting.state, waiting.attempt) == (State.WAITING, attempt)
            assert (waiting.exit_status, waiting.message) == (outcome.exit_status, outcome.message)
            assert waiting.due_at is not None
            pause = (waiting.due_at - lab.clock()).total_seconds()
            assert 0.8 * 5 * 2 ** (attempt - 1) <= pause <= 1.2 * 5 * 2 ** (attempt - 1)
            lab.deliveries.wake()
            await turns(50)
            assert lab.ended.empty()
            lab.clock.forward(pause)
            lab.deliveries.wake()
        assert await lab.end() == (Door.HOOK, State.DONE)
        assert lab.scripted.env()[b"HOOK_ATTEMPT"] == b"3"
        assert len({run.run_id for run in lab.engine.runs}) == 3

    @pytest.mark.parametrize("retries", [0, 1])
    async def test_until_it_has_failed(self, lab: Lab, retries: int):
        await lab.hook(retries=retries)
        lab.scripted.plan = [Outcome(75)] * 5
        await lab.post()
        for _ in range(retries):
            assert await lab.end() == (Door.HOOK, State.WAITING)
            lab.clock.forward(60)
            lab.deliveries.wake()
        assert await lab.end() == (Door.HOOK, State.FAILED)
        failed = await lab.newest()
        assert (failed.state, failed.attempt, failed.due_at) == (State.FAILED, retries + 1, None)
        assert failed.exit_status == 75

    async def test_what_is_three_days_old_is_tried_no_more(self, lab: Lab):
        await lab.hook(retries=100)
        lab.scripted.plan = [Outcome(75)] * 2
        await lab.post()
        assert await lab.end() == (Door.HOOK, State.WAITING)
        lab.clock.forward(timedelta(days=3).total_seconds())
        lab.deliveries.wake()
        assert await lab.end() == (Door.HOOK, State.FAILED)
        failed = await lab.newest()
        assert (failed.attempt, failed.exit_status, failed.due_at) == (2, 75, None)

    @pytest.mark.parametrize(
        "outcome", [Outcome(1), Outcome(139, Reason.SIGNAL), Outcome(137, Reason.MEMORY), KILLED]
    )
    async def test_other_failures_are_final(self, lab: Lab, outcome: Outcome):
        await lab.hook()
        lab.scripted.plan = [outcome]
        await lab.post()
        assert await lab.end() == (Door.HOOK, State.FAILED)
        assert (await lab.newest()).exit_status == outcome.exit_status

    @pytest.mark.parametrize("outcome", [Outcome(1), Outcome(137, Reason.MEMORY)])
    async def test_unless_the_hook_says_otherwise(self, lab: Lab, outcome: Outcome):
        await lab.hook(retry_any=True)
        lab.scripted.plan = [outcome]
        await lab.post()
        assert await lab.end() == (Door.HOOK, State.WAITING)

    async def test_but_who_killed_it_meant_it(self, lab: Lab):
        await lab.hook(retry_any=True)
        lab.scripted.held = True
        await lab.post()
        await lab.scripted.job()
        (going,) = lab.runs.live
        assert await lab.runs.live.kill(ANN, going.run.id)
        assert await lab.end() == (Door.HOOK, State.FAILED)
        assert (await lab.newest()).message == "killed by ann"

    @pytest.mark.parametrize("error", [EngineError("no sandbox"), InternalError("full"), OSError()])
    async def test_what_is_the_services_fault(self, lab: Lab, error: Exception):
        await lab.hook(retries=1)
        lab.scripted.plan = [error, error]
        await lab.post()
        assert await lab.end() == (Door.HOOK, State.WAITING)
        waiting = await lab.newest()
        assert waiting.attempt == 1
        assert waiting.message
        lab.clock.forward(60)
        lab.deliveries.wake()
        assert await lab.end() == (Door.HOOK, State.FAILED)

    async def test_what_cannot_be_run(self, lab: Lab):
        await lab.hook()
        lab.scripted.plan = [DataError("no such base")]
        await lab.post()
        assert await lab.end() == (Door.HOOK, State.FAILED)
        assert (await lab.newest()).message == "no such base"

    async def test_no_room_is_no_attempt(self, lab: Lab):
        await lab.hook(retries=0)
        lab.scripted.plan = [BusyError("no room")] * 3
        await lab.post()
        for _ in range(3):
            assert await lab.end() == (Door.HOOK, State.WAITING)
            waiting = await lab.newest()
            assert waiting.attempt == 0
            assert waiting.due_at is not None
            assert timedelta(0) < waiting.due_at - lab.clock() < timedelta(seconds=10)
            lab.clock.forward(10)
            lab.deliveries.wake()
        assert await lab.end() == (Door.HOOK, State.DONE)

    async def test_a_closed_service(self, lab: Lab):
        await lab.hook(retries=0)
        lab.runs.closed = "back at noon"
        await lab.post()
        assert await lab.end() == (Door.HOOK, State.WAITING)
        assert "back at noon" in (await lab.newest()).message
        lab.runs.closed = ""
        lab.clock.forward(10)
        lab.deliveries.wake()
        assert await lab.end() == (Door.HOOK, State.DONE)

    def test_pauses(self):
        for attempt, pause in ((1, FIRST_PAUSE), (2, 10), (5, 80), (12, 3600), (10**9, 3600)):
            assert 0.8 * pause <= pause_after(attempt) <= 1.2 * pause
        assert len({pause_after(1) for _ in range(10)}) > 1
        assert max(pause_after(n) for n in range(1, 100)) <= 1.2 * LONGEST_PAUSE


class TestOrder:
    async def test_one_after_the_other(self, lab: Lab):
        await lab.hook(ordered=True, retries=1)
        lab.scripted.held = True
        for number in range(3):
            await lab.post(b"%d" % number)
        for number in range(3):
            job = await lab.scripted.job()
            await turns(50)
            assert lab.scripted.jobs.empty()
            assert job.stdin == b"%d" % number
            job.may_end.set()
            assert await lab.end() == (Door.HOOK, State.DONE)

    async def test_what_waits_for_its_next_attempt_holds_up_the_others(self, lab: Lab):
        await lab.hook(ordered=True, retries=1)
        lab.scripted.plan = [Outcome(75)]
        await lab.post(b"1")
        assert await lab.end() == (Door.HOOK, State.WAITING)
        await lab.post(b"2")
        lab.deliveries.wake()
        await turns(100)
        assert len(lab.engine.runs) == 1
        lab.clock.forward(60)
        lab.deliveries.wake()
        for _ in range(2):
            assert await lab.end() == (Door.HOOK, State.DONE)
        stdin = [bytes((await lab.scripted.job()).stdin) for _ in range(3)]
        assert stdin == [b"1", b"1", b"2"]


class TestGoingDown:
    async def test_it_waits_for_what_runs(self, lab: Lab):
        lab.scripted.held = True
        await lab.hook()
        await lab.post()
        job = await lab.scripted.job()
        draining = asyncio.create_task(lab.deliveries.drain(60))
        await turns()
        await lab.post(b"more")
        job.may_end.set()
        assert await soon(draining) is True
        assert [d.state for d in await lab.listed()] == [State.DONE, State.WAITING]

    async def test_what_is_stopped_waits_again(self, url: str, tmp_path: Path):
        async with a_lab(url, tmp_path) as lab:
            await lab.deliveries.start()
            await lab.hook(retries=0)
            lab.scripted.held = True
            await lab.post(b"x")
            await lab.scripted.job()
            assert await soon(lab.deliveries.drain(0.01)) is False
        async with a_lab(url, tmp_path) as lab:
            waiting = await lab.newest()
            assert (waiting.state, waiting.attempt) == (State.WAITING, 0)
            assert waiting.message.startswith("the server stopped while this ran")
            await lab.deliveries.start()
            assert await lab.end() == (Door.HOOK, State.DONE)
            assert (await lab.scripted.job()).stdin == b"x"

    async def test_nothing_is_begun_any_more(self, lab: Lab):
        await lab.hook()
        assert await soon(lab.deliveries.drain(60)) is True
        await lab.post()
        await soon(lab.deliveries.aclose())
        assert lab.engine.runs == []

    async def test_what_was_taken_meanwhile_is_given_back(
        self, lab: Lab, monkeypatch: pytest.MonkeyPatch
    ):
        claim, taking, go_on = lab.store.claim, asyncio.Event(), asyncio.Event()

        async def slow(*args: object, **more: object) -> object:
            taking.set()
            await go_on.wait()
            return await claim(*args, **more)

        monkeypatch.setattr(lab.store, "claim", slow)
        await lab.hook()
        await lab.post()
        await soon(taking.wait())
        await soon(lab.deliveries.drain(60))
        go_on.set()
        await soon(lab.deliveries.aclose())
        assert lab.engine.runs == []
        waiting = await lab.newest()
        assert (waiting.state, waiting.attempt) == (State.WAITING, 0)


class TestTrouble:
    async def test_a_store_that_does_not_answer(
        self, lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ):
        """What ended is said until it is heard, and what is due is asked for again."""
        end_attempt, claim, left = lab.store.end_attempt, lab.store.claim, [2, 2]

        async def deaf(*args: object, **more: object) -> bool:
            left[0] -= 1
            if left[0] >= 0:
                raise BusyError("locked")
            return await end_attempt(*args, **more)

        async def blind(*args: object, **more: object) -> object:
            left[1] -= 1
            if left[1] >= 0:
                raise InternalError("out of reach")
            return await claim(*args, **more)

        monkeypatch.setattr("cmdsvc.service.deliveries.SOON", 0.01)
        monkeypatch.setattr(lab.store, "end_attempt", deaf)
        monkeypatch.setattr(lab.store, "claim", blind)
        await lab.hook()
        await lab.post()
        assert await lab.end() == (Door.HOOK, State.DONE)
        assert len(lab.engine.runs) == 1
        assert "deliveries could not be taken" in caplog.text
        assert "a delivery's end was not recorded" in caplog.text

    async def test_what_was_taken_without_an_answer(
        self, lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ):
        """As when the connection breaks at the commit: nobody here is at it, yet it is held."""
        claim, end_attempt, broken = lab.store.claim, lab.store.end_attempt, [False, False]

        async def broken_claim(*args: object, **more: object) -> object:
            taken = await claim(*args, **more)
            if taken and not broken[0]:
                broken[0] = True
                raise InternalError("the connection broke")
            return taken

        async def broken_end(*args: object, **more: object) -> bool:
            if not broken[1]:
                broken[1] = True
                raise ValueError("nobody thought of this")
            return await end_attempt(*args, **more)

        monkeypatch.setattr("cmdsvc.service.deliveries.SOON", 0.01)
        monkeypatch.setattr(lab.store, "claim", broken_claim)
        monkeypatch.setattr(lab.store, "end_attempt", broken_end)
        await lab.hook()
        await lab.post()
        assert await lab.end() == (Door.HOOK, State.DONE)
        assert (await lab.newest()).attempt == 3
        assert "a delivery was given up" in caplog.text

    async def test_a_command_that_is_gone(self, lab: Lab):
        lab.scripted.held = True
        await lab.hook()
        await lab.post()
        job = await lab.scripted.job()
        await lab.commands.delete(ANN, "job")
        job.may_end.set()
        await lab.end()
        assert (await lab.store.backlog()).running == 0

    async def test_a_lease_is_renewed(self, url: str, tmp_path: Path):
        """Another server takes over only what nobody holds any more."""
        async with (
            a_lab(url, tmp_path, lease=0.3) as lab,
            a_lab(url, tmp_path, server="two", clock=lab.clock) as other,
        ):
            await lab.deliveries.start()
            await lab.hook()
            lab.scripted.held = True
            await lab.post()
            job = await lab.scripted.job()
            renewed = asyncio.Event()
            renew = lab.store.renew

            async def noting(ids: object, until: object) -> None:
                await renew(ids, until)
                renewed.set()

            lab.store.renew = noting
            lab.clock.forward(0.25)
            await soon(renewed.wait())
            lab.clock.forward(0.25)  # past the first lease
            assert await other.store.claim(lab.clock(), lab.clock(), 10) == []
            job.may_end.set()
            assert await lab.end() == (Door.HOOK, State.DONE)

    async def test_who_has_lost_his_lease_says_nothing(self, url: str, tmp_path: Path):
        async with (
            a_lab(url, tmp_path) as lab,
            a_lab(url, tmp_path, server="two", clock=lab.clock) as other,
        ):
            await lab.deliveries.start()
            await lab.hook()
            lab.scripted.held = True
            lab.scripted.plan = [Outcome(1)]
            await lab.post()
            job = await lab.scripted.job()
            lab.clock.forward(46)
            await other.deliveries.start()
            await other.scripted.job()
            assert await other.end() == (Door.HOOK, State.DONE)
            job.may_end.set()
            await lab.end()
            ended = await lab.newest()
            assert (ended.state, ended.attempt, ended.exit_status) == (State.DONE, 2, 0)

    async def test_two_servers_share_the_work(self, url: str, tmp_path: Path):
        async with (
            a_lab(url, tmp_path) as lab,
            a_lab(url, tmp_path, server="two", clock=lab.clock, ended=lab.ended) as other,
        ):
            await lab.hook()
            for number in range(MOST):
                await lab.post(b"%d" % number)
            lab.scripted.held = other.scripted.held = True
            await lab.deliveries.start()
            await other.deliveries.start()
            jobs = [await side.scripted.job() for side in (lab, other) for _ in range(4)]
            lab.scripted.held = other.scripted.held = False
            for job in jobs:
                job.may_end.set()
            for _ in range(MOST):
                assert await lab.end() == (Door.HOOK, State.DONE)
            stdin = [bytes(job.stdin) for job in jobs]
            for side in (lab, other):
                while not side.scripted.jobs.empty():
                    stdin.append(bytes(side.scripted.jobs.get_nowait().stdin))
            assert sorted(stdin) == sorted(b"%d" % number for number in range(MOST))
            assert all(d.attempt == 1 for d in await lab.listed())


STEPS = [
    ("accept", "before", 0, 0),
    ("accept", "commit", 0, 0),
    ("accept", "after", 1, 1),
    ("claim", "commit", 1, 1),
    ("claim", "after", 1, 1),
    ("begin_attempt", "before", 1, 1),
    ("begin_attempt", "after", 1, 1),
    ("begin_run", "before", 1, 1),
    ("begin_run", "after", 1, 1),
    ("start", "before", 1, 1),
    ("start", "after", 1, 2),
    ("keep_output", "before", 1, 2),
    ("end_run", "after", 1, 2),
    ("end_attempt", "before", 1, 2),
    ("end_attempt", "commit", 1, 2),
    ("end_attempt", "after", 1, 1),
]
"""Where a server dies; whether the delivery was answered; how often it has run in the end."""


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step[1]}-{step[0]}")
async def test_killed(url: str, tmp_path: Path, step: tuple[str, str, int, int]):
    """What was answered has run, at least once; of what was not, nothing is kept."""
    name, when, answered, times = step
    async with a_lab(url, tmp_path) as lab:
        await lab.hook()
    status, out, err = await forked.child("tests.service.queue_child", url, tmp_path, name, when)
    assert status == -signal.SIGKILL, err.decode()
    assert out.decode().split() == ["202"] * answered
    ran = tmp_path / "ran"
    before = len(ran.read_text().splitlines()) if ran.exists() else 0
    async with a_lab(url, tmp_path) as lab:
        assert len(await lab.listed()) == answered
        await lab.deliveries.start()
        while answered and (await lab.newest()).state is not State.DONE:
            await lab.end()
        assert before + len(lab.engine.runs) == times
        backlog = await lab.store.backlog()
        assert (backlog.waiting, backlog.running, backlog.failed) == (0, 0, 0)
