"""Stand-ins for what a test must have in its own hands. Who misbehaves does it by name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import TypeVar

from cmdsvc.engine import Finding, Invocation, Progress, Usage
from cmdsvc.model import Limits, Network, Outcome
from cmdsvc.recipe import Recipe
from cmdsvc.relay import CallerGone, Event, Job

T = TypeVar("T")


async def soon(what: Awaitable[T]) -> T:
    """What is awaited, or a TimeoutError instead of a test that hangs."""
    return await asyncio.wait_for(what, 30)


async def turns(count: int = 10) -> None:
    """Lets every task go on as far as it comes by itself."""
    for _ in range(count):
        await asyncio.sleep(0)


class EndedJob:
    """A run that is over: what it wrote, and how it ended."""

    def __init__(self, outcome: Outcome, *output: tuple[int, bytes]) -> None:
        self.outcome = outcome
        self.left = list(output)
        self.closed = False

    async def send(self, data: bytes) -> None: ...

    async def send_eof(self) -> None: ...

    async def resize(self, columns: int, rows: int) -> None: ...

    async def signal(self, name: str) -> None: ...

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        while self.left:
            yield self.left.pop(0)

    async def wait(self) -> Outcome:
        return self.outcome

    async def aclose(self) -> None:
        self.closed = True


class NeverEndingJob(EndedJob):
    def __init__(self) -> None:
        super().__init__(Outcome(0))

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        yield 1, b"still here"
        await asyncio.Event().wait()


class FakeEngine:
    """Notes what it is asked for. A layer is its digest; a run is a program of this machine, in no
    sandbox and without stdin, over before `start` returns."""

    name = "fake"
    networks = frozenset(Network)
    warm = 0

    def __init__(self) -> None:
        self.here: set[str] = set()
        self.outdated: set[str] = set()
        """Layers whose base has moved on."""
        self.fetched: list[Recipe] = []
        """Builds begun with `again`, in order."""
        self.built: list[Recipe] = []
        """Builds begun, in order."""
        self.runs: list[Invocation] = []
        self.expected: list[tuple[Recipe, Limits, Network]] = []

    async def open(self, *, beside: bool = False) -> None: ...

    async def aclose(self) -> None: ...

    async def check(self) -> list[Finding]:
        return [Finding("ok", "nothing is real here")]

    async def pull(self, base: str, tag: str, progress: Progress) -> None:
        progress(f"{base}:{tag}")

    async def resolve(self, image: str, progress: Progress) -> str:
        progress(f"looking at {image}")
        return f"{image}@sha256:{'a' * 64}"

    async def has(self, recipe: Recipe) -> bool:
        return recipe.digest in self.here

    async def stale(self, recipe: Recipe) -> bool:
        return recipe.digest in self.outdated & self.here

    async def build(self, recipe: Recipe, progress: Progress, *, again: bool = False) -> None:
        if not again and await self.has(recipe) and not await self.stale(recipe):
            return
        if again:
            self.fetched.append(recipe)
        self.built.append(recipe)
        progress("building")
        await self.work(progress)
        self.here.add(recipe.digest)
        self.outdated.discard(recipe.digest)

    async def work(self, progress: Progress) -> None:
        progress("built")

    async def start(self, invocation: Invocation) -> Job:
        if not await self.has(invocation.recipe):
            raise LookupError(invocation.recipe.digest)
        self.runs.append(invocation)
        process = await asyncio.create_subprocess_exec(
            *invocation.argv,
            env=dict(invocation.env),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode is not None
        return EndedJob(Outcome(process.returncode), (1, out), (2, err))

    async def expect(self, recipe: Recipe, limits: Limits, network: Network) -> None:
        if not await self.has(recipe):
            raise LookupError(recipe.digest)
        self.expected.append((recipe, limits, network))

    async def usage(self) -> Mapping[str, Usage]:
        return {}

    async def purge(self) -> None:
        self.here.clear()


class SlowEngine(FakeEngine):
    """Its builds wait until `go` is set; `begun` says that one is at work."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.cancelled = 0

    async def work(self, progress: Progress) -> None:
        self.begun.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        progress("built")


class SlowToStopEngine(SlowEngine):
    """A cancelled build goes on cleaning up until `clean` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.clean = asyncio.Event()

    async def work(self, progress: Progress) -> None:
        try:
            await super().work(progress)
        except asyncio.CancelledError:
            await self.clean.wait()
            raise


class BrokenStopEngine(SlowEngine):
    """A cancelled build fails at cleaning up."""

    async def work(self, progress: Progress) -> None:
        try:
            await super().work(progress)
        except asyncio.CancelledError:
            raise OSError("cannot clean up") from None


class FailingEngine(SlowEngine):
    """Its builds fail with `error` once `go` is set, as long as there is one."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error: Exception | None = error

    async def work(self, progress: Progress) -> None:
        await super().work(progress)
        if self.error:
            raise self.error


class AnsweringEngine(FakeEngine):
    """Every run is the job that it is given."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job

    async def start(self, invocation: Invocation) -> Job:
        self.runs.append(invocation)
        return self.job


class FakeCaller:
    """Sends what it is given, then its end of file; keeps what it gets."""

    def __init__(self, *stdin: bytes) -> None:
        self.given = list(stdin)
        self.got: list[tuple[int, bytes]] = []

    def stream(self, fd: int) -> bytes:
        return b"".join(data for to, data in self.got if to == fd)

    async def stdin(self) -> AsyncIterator[bytes]:
        while self.given:
            yield self.given.pop(0)

    async def events(self) -> AsyncIterator[Event]:
        return
        yield

    async def write(self, fd: int, data: bytes) -> None:
        self.got.append((fd, data))


class LeavingCaller(FakeCaller):
    """Leaves where its stdin's end would be, and takes nothing after it."""

    gone = False

    async def stdin(self) -> AsyncIterator[bytes]:
        async for data in super().stdin():
            yield data
        self.gone = True
        raise CallerGone

    async def write(self, fd: int, data: bytes) -> None:
        if self.gone:
            raise CallerGone
        await super().write(fd, data)


class SlowCaller(FakeCaller):
    """Takes nothing until there is `room`; what was not taken by then is not there."""

    def __init__(self, *stdin: bytes) -> None:
        super().__init__(*stdin)
        self.room = asyncio.Event()
        self.asked = asyncio.Event()
        """Set once something waits for room."""

    async def write(self, fd: int, data: bytes) -> None:
        self.asked.set()
        await self.room.wait()
        await super().write(fd, data)
