"""Nothing outlives a run: callers that leave, daemons, sandboxes that are still being made."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import pytest

from cmdsvc.errors import EngineError
from cmdsvc.model import Outcome, Reason
from cmdsvc.relay import relay
from tests.contracts import engine_host as host
from tests.contracts.engine_lab import PATIENCE, Lab, Progress, ScriptedCaller, Transcript, marker

pytestmark = [pytest.mark.every_road, pytest.mark.asyncio(loop_scope="session")]

STUBBORN = """
    trap '' TERM INT HUP QUIT USR1
    sh -c 'trap "" TERM HUP; echo 1; while :; do sleep 300; done' "$1" &
    setsid sh -c 'echo 2; exec </dev/null >/dev/null 2>&1; while :; do sleep 300; done' "$1" &
    (setsid sh -c 'echo 3; sleep 300; :' "$1" &)
    echo ready
    while :; do sleep 300; done
"""


async def test_close_in_mid_run_ends_all(lab: Lab) -> None:
    mark = marker()
    async with lab.job(STUBBORN, mark) as job:
        transcript = Transcript(job)
        for _ in range(4):
            await transcript.line()
        assert len(host.with_argument(mark)) >= 4
        async with asyncio.timeout(PATIENCE):
            started = time.monotonic()
            await job.aclose()
            took = time.monotonic() - started
        assert host.with_argument(mark) == []
        assert took < 5
        await job.aclose()


async def test_close_right_after_the_start(lab: Lab) -> None:
    mark = marker()
    for _ in range(10):
        job = await lab.engine.start(lab.invocation("sleep 300", mark))
        async with asyncio.timeout(PATIENCE):
            await job.aclose()
        assert host.with_argument(mark) == []


async def test_close_while_output_is_being_read(lab: Lab) -> None:
    mark = marker()
    async with lab.job("while :; do echo x; done", mark) as job:
        talk = Transcript(job)
        await talk.line()
        reading = asyncio.create_task(talk.end())
        async with asyncio.timeout(PATIENCE):
            await job.aclose()
            with contextlib.suppress(EngineError):
                outcome = (await reading).outcome
                assert outcome.exit_status in (137, 143)
        assert host.with_argument(mark) == []


async def test_close_while_a_sender_waits(lab: Lab) -> None:
    async with lab.job("echo ready; sleep 300") as job:
        await Transcript(job).line()
        sending = asyncio.create_task(job.send(bytes(16 << 20)))
        async with asyncio.timeout(PATIENCE):
            await job.aclose()
            await sending


async def test_close_by_several_at_once(lab: Lab) -> None:
    mark = marker()
    async with lab.job(STUBBORN, mark) as job:
        await Transcript(job).line()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(job.aclose() for _ in range(5)))
        assert host.with_argument(mark) == []


async def test_a_cancelled_close_can_be_done_again(lab: Lab) -> None:
    mark = marker()
    async with lab.job(STUBBORN, mark) as job:
        await Transcript(job).line()
        closing = asyncio.create_task(job.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await closing
        async with asyncio.timeout(PATIENCE):
            await job.aclose()
        assert host.with_argument(mark) == []


async def test_a_caller_that_leaves_ends_its_run(lab: Lab) -> None:
    mark = marker()
    caller = ScriptedCaller()
    job = await lab.engine.start(lab.invocation(STUBBORN, mark))
    relaying = asyncio.create_task(relay(caller, job, timeout=PATIENCE))
    await caller.saw(b"ready\n")
    caller.leave()
    started = time.monotonic()
    outcome = await relaying
    assert time.monotonic() - started < 5
    assert outcome.reason is Reason.HANGUP
    assert host.with_argument(mark) == []


async def test_a_cancelled_relay_ends_its_run(lab: Lab) -> None:
    mark = marker()
    caller = ScriptedCaller()
    job = await lab.engine.start(lab.invocation(STUBBORN, mark))
    relaying = asyncio.create_task(relay(caller, job, timeout=PATIENCE))
    await caller.saw(b"ready\n")
    relaying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await relaying
    assert host.with_argument(mark) == []


DAEMONS = {
    "in the background": "sleep 300 &",
    "holding stdout": 'sh -c "sleep 300; :" "$1" &',
    "in another session": 'setsid sh -c "sleep 300; :" "$1" &',
    "twice forked": '(setsid sh -c "sleep 300; :" "$1" &)',
    "deaf": 'sh -c \'trap "" TERM HUP INT; while :; do sleep 300; done\' "$1" &',
    "writing": "sh -c 'while :; do echo noise; done' \"$1\" >/dev/null 2>&1 &",
    "stopped": "sh -c 'kill -STOP $$' \"$1\" &",
}


@pytest.mark.parametrize("daemon", DAEMONS.values(), ids=DAEMONS.keys())
async def test_a_run_ends_with_its_script(lab: Lab, daemon: str) -> None:
    """Whatever it started: the status is the script's, and at the end of the job all are dead."""
    mark = marker()
    async with lab.job(f"{daemon}\necho out; exit 5", mark) as job:
        result = await Transcript(job).end()
        assert (result.status, result.stdout, result.stderr) == (5, b"out\n", b"")
    assert host.with_argument(mark) == []


ATTACKS = {
    "kill the parent": "kill -KILL $PPID",
    "kill the first": "kill -KILL 1; exit 5",
    "kill all": "kill -KILL -1",
    "kill the group": "kill -KILL 0",
    "end all": "kill -TERM -1; kill -HUP -1; exit 5",
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
async def test_a_script_that_attacks_what_runs_it(lab: Lab, attack: str) -> None:
    """It ends its own run, in whatever way, and no other."""
    mark = marker()
    async with lab.job("echo ready; read -r x; echo $x") as other:
        watched = Transcript(other)
        await watched.line()
        async with lab.job(f"setsid sleep 300 & {attack}", mark) as job:
            with contextlib.suppress(EngineError):
                await Transcript(job).end()
        assert host.with_argument(mark) == []
        await other.send(b"alive\n")
        assert (await watched.end()).ok() == b"ready\nalive\n"


async def test_a_script_that_stops_what_runs_it(lab: Lab) -> None:
    """Then only the time limit ends it: by the same way as here."""
    mark = marker()
    script = (
        "echo ready; trap '' TERM; kill -STOP $PPID; kill -STOP 1; kill -STOP -1; kill -STOP $$"
    )
    async with lab.job(script, mark) as job:
        await Transcript(job).line()
        async with asyncio.timeout(PATIENCE):
            await job.aclose()
        assert host.with_argument(mark) == []


async def test_a_noisy_daemon_does_not_hold_the_end(lab: Lab) -> None:
    """What it writes to the run's stdout before the script's end may be there, and no more."""
    mark = marker()
    script = "sh -c 'while :; do echo noise; done' \"$1\" & echo out; exit 5"
    async with lab.job(script, mark) as job:
        result = await Transcript(job).end()
    assert result.status == 5
    assert set(result.lines) <= {"noise", "out", "nois", "noi", "no", "n"}
    assert host.with_argument(mark) == []


async def test_a_start_that_is_cancelled_leaves_nothing(lab: Lab, place: Path) -> None:
    """A caller leaves while its sandbox is being made: at any moment of it."""
    mark = marker()
    async with lab.another(place) as own:
        await own.engine.build(own.recipe, Progress())
        before = time.monotonic()
        await own.run("true")
        whole = time.monotonic() - before
        for step in range(24):
            starting = asyncio.create_task(own.engine.start(own.invocation("sleep 300", mark)))
            await asyncio.sleep(whole * step / 20)  # the moment is the case; nothing is waited for
            starting.cancel()
            try:
                job = await starting
            except asyncio.CancelledError:
                continue
            await job.aclose()
        assert (await own.run("echo alive")).ok() == b"alive\n"
        await host.gone(lambda: host.with_argument(mark))
    assert own.traces() == {}


async def test_the_engines_end_is_the_end_of_its_runs(lab: Lab, place: Path) -> None:
    marks = [marker() for _ in range(3)]
    async with lab.another(place) as own:
        await own.engine.build(own.recipe, Progress())
        jobs = [await own.engine.start(own.invocation(STUBBORN, mark)) for mark in marks]
        talks = [Transcript(job) for job in jobs]
        for talk in talks:
            await talk.line()
        cgroups = {
            c for mark in marks for p in host.with_argument(mark) for c in host.cgroups_of(p)
        }
        async with asyncio.timeout(PATIENCE):
            await own.engine.aclose()
        assert [p for mark in marks for p in host.with_argument(mark)] == []
        for talk in talks:
            with contextlib.suppress(EngineError):
                await talk.end()
        for job in jobs:
            async with asyncio.timeout(PATIENCE):
                await job.aclose()
        await own.engine.aclose()
    assert own.traces() == {}
    assert not [folder for folder in cgroups if folder.exists()]


async def test_a_closed_run_leaves_no_trace_on_the_host(lab: Lab) -> None:
    mark = marker()
    async with lab.job(STUBBORN, mark) as job:
        await Transcript(job).line()
        cgroups = {c for p in host.with_argument(mark) for c in host.cgroups_of(p)}
    # Its tear-down may go on in the background, but not for long.
    await host.gone(lambda: [c for c in cgroups if c.exists()])


async def test_a_layer_that_is_not_here(lab: Lab) -> None:
    missing = lab.layer("hello-noarch", "no-such-package-ever")
    assert not await lab.engine.has(missing)
    with pytest.raises(LookupError):
        await lab.engine.start(lab.invocation("true", recipe=missing))


async def test_wait_after_close(lab: Lab) -> None:
    async with lab.job("sleep 300") as job:
        async with asyncio.timeout(PATIENCE):
            await job.aclose()
            with contextlib.suppress(EngineError):
                outcome = await job.wait()
                assert isinstance(outcome, Outcome)
                assert outcome.exit_status != 0
