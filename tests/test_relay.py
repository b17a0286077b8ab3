"""The relay between a caller and a job, with both ends in the test's hands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from cmdsvc.errors import EngineError
from cmdsvc.model import Outcome, Reason
from cmdsvc.relay import CallerGone, Event, Resize, Signal, relay


class TestCaller:
    """A caller that sends what it is told to and leaves when it is told to."""

    __test__ = False

    def __init__(self, *stdin: bytes, events: tuple[Event, ...] = ()) -> None:
        self.given = list(stdin)
        self.wants = list(events)
        self.got: list[tuple[int, bytes]] = []
        self.left = asyncio.Event()

    async def stdin(self) -> AsyncIterator[bytes]:
        for data in self.given:
            yield data

    async def events(self) -> AsyncIterator[Event]:
        for event in self.wants:
            yield event
        await self.left.wait()
        raise CallerGone

    async def write(self, fd: int, data: bytes) -> None:
        self.got.append((fd, data))


class EchoJob:
    """Gives back what it was sent, at its end of file; notes what else happened to it."""

    def __init__(self, *, never: bool = False, broken: bool = False) -> None:
        self.never = never
        self.broken = broken
        self.sent = b""
        self.ended = asyncio.Event()
        self.notes: list[object] = []
        self.closed = 0

    async def send(self, data: bytes) -> None:
        self.sent += data

    async def send_eof(self) -> None:
        self.ended.set()

    async def resize(self, columns: int, rows: int) -> None:
        self.notes.append((columns, rows))

    async def signal(self, name: str) -> None:
        self.notes.append(name)

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        await self.ended.wait()
        if self.never:
            await asyncio.Event().wait()
        yield 1, self.sent
        yield 2, b"done"

    async def wait(self) -> Outcome:
        if self.broken:
            raise EngineError("it broke")
        return Outcome(7)

    async def aclose(self) -> None:
        self.closed += 1


async def test_bytes_go_in_and_out_and_the_status_comes_back():
    caller, job = TestCaller(b"a", b"b"), EchoJob()
    assert await relay(caller, job, timeout=10) == Outcome(7)
    assert caller.got == [(1, b"ab"), (2, b"done")]
    assert job.closed == 1


async def test_others_have_a_turn_while_nobody_waits():
    """Neither a job that floods, nor a caller who takes it all at once."""
    turns: list[None] = []

    class Flood(EchoJob):
        async def output(self) -> AsyncIterator[tuple[int, bytes]]:
            for _ in range(100_000):
                if turns:
                    return
                yield 2, b"y"

    caller = TestCaller()
    running = asyncio.create_task(relay(caller, Flood(), timeout=10))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(0, turns.append, None)
    assert await running == Outcome(7)
    assert turns
    assert len(caller.got) < 1000


async def test_events_reach_the_job():
    job = EchoJob()
    await relay(TestCaller(events=(Resize(100, 30), Signal("INT"))), job, timeout=10)
    assert job.notes == [(100, 30), "INT"]


async def test_a_caller_that_leaves_ends_the_job():
    caller, job = TestCaller(), EchoJob(never=True)
    running = asyncio.create_task(relay(caller, job, timeout=10))
    await job.ended.wait()
    caller.left.set()
    outcome = await running
    assert outcome.reason == Reason.HANGUP
    assert job.closed == 1


async def test_a_job_that_takes_too_long_is_ended_and_says_so():
    job = EchoJob(never=True)
    outcome = await relay(TestCaller(), job, timeout=0.01)
    assert (outcome.exit_status, outcome.reason) == (124, Reason.TIMEOUT)
    assert "0.01 s" in outcome.message
    assert job.closed == 1


async def test_an_engine_that_fails_is_told_and_the_job_closed():
    job = EchoJob(broken=True)
    with pytest.raises(EngineError):
        await relay(TestCaller(), job, timeout=10)
    assert job.closed == 1


async def test_an_engine_that_takes_no_input_is_told_with_its_cause():
    class Deaf(EchoJob):
        async def send(self, data: bytes) -> None:
            raise EngineError("it broke") from OSError("no more")

    job = Deaf(never=True)
    with pytest.raises(EngineError, match="it broke") as told:
        await relay(TestCaller(b"a"), job, timeout=10)
    assert isinstance(told.value.__cause__, OSError)
    assert job.closed == 1


async def test_who_is_gone_when_the_job_is_closed_does_not_change_how_it_ended():
    class Slow(EchoJob):
        async def aclose(self) -> None:
            caller.left.set()
            await asyncio.sleep(0.01)
            await super().aclose()

    caller, job = TestCaller(), Slow()
    assert await relay(caller, job, timeout=10) == Outcome(7)
    assert job.closed == 1


async def test_nobody_goes_on_once_it_has_returned():
    class Tidy(TestCaller):
        async def events(self) -> AsyncIterator[Event]:
            try:
                async for event in super().events():
                    yield event
            finally:
                await asyncio.sleep(0.01)
                gone.append(None)

    gone: list[None] = []
    await relay(Tidy(), EchoJob(), timeout=10)
    assert gone


async def test_cancelling_closes_the_job():
    job = EchoJob(never=True)
    running = asyncio.create_task(relay(TestCaller(), job, timeout=10))
    await job.ended.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert job.closed == 1
