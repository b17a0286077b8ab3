"""What the cases of the engine contract share: running scripts in real sandboxes of one engine."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from cmdsvc.engine import Engine, EngineSettings, Invocation, Sources
from cmdsvc.model import SCRIPT_PATH, SEARCH_PATH, WORK_DIR, Limits, Network, Outcome, Terminal
from cmdsvc.recipe import Recipe
from cmdsvc.relay import CallerGone, Event, Job
from tests.contracts import engine_host as host

if TYPE_CHECKING:
    from tests.kit import Kit

MB = 1 << 20
WARM = 3
"""Sandboxes at most that wait for runs: enough for most runs here to get one."""
PATIENCE = 30.0
"""Seconds that a step may take on a busy machine; nothing waits for it to pass."""

LIMITS = Limits(timeout=300.0, memory=256 * MB, cpus=2.0, pids=128, disk=64 * MB)
ENV: Mapping[bytes, bytes] = {b"PATH": SEARCH_PATH, b"HOME": WORK_DIR, b"LANG": b"C.UTF-8"}

CANARY = "CMDSVC_TEST_CANARY"
"""A variable of this process: no sandbox may see it."""


def marker() -> str:
    """An argument that no other process on this machine has."""
    return f"marker-{secrets.token_hex(12)}"


@dataclass(frozen=True, slots=True)
class Result:
    stdout: bytes
    stderr: bytes
    outcome: Outcome

    @property
    def status(self) -> int:
        return self.outcome.exit_status

    @property
    def lines(self) -> list[str]:
        return self.stdout.decode().splitlines()

    def ok(self) -> bytes:
        assert self.status == 0, (self.outcome, self.stdout[-2000:], self.stderr[-2000:])
        return self.stdout


class Transcript:
    """A job's output, read as far as it is asked for."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._output = job.output()
        self._seen = {1: bytearray(), 2: bytearray()}
        self._taken = {1: 0, 2: 0}

    async def until(self, text: bytes, fd: int = 1) -> bytes:
        """Reads until `text` came, and returns what came with it since the last time."""
        seen = self._seen[fd]
        async with asyncio.timeout(PATIENCE):
            while (at := seen.find(text, self._taken[fd])) < 0:
                try:
                    await self._next()
                except StopAsyncIteration:
                    raise AssertionError(f"ended before {text!r}: {self._seen}") from None
        start, self._taken[fd] = self._taken[fd], at + len(text)
        return bytes(seen[start : at + len(text)])

    async def line(self, fd: int = 1) -> str:
        return (await self.until(b"\n", fd)).decode().rstrip("\r\n")

    async def end(self) -> Result:
        """Reads to the end; the result has all that came, from the start."""
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(StopAsyncIteration):
                while True:
                    await self._next()
            outcome = await self.job.wait()
        return Result(bytes(self._seen[1]), bytes(self._seen[2]), outcome)

    async def say(self, text: bytes) -> None:
        async with asyncio.timeout(PATIENCE):
            await self.job.send(text)

    async def _next(self) -> None:
        fd, data = await anext(self._output)
        assert fd in self._seen, fd
        assert data, "an empty piece of output"
        self._seen[fd] += data


class Given(TypedDict, total=False):
    """What a run can be given besides its script and arguments; limits as in `Limits`."""

    argv: tuple[bytes, ...]
    env: Mapping[bytes, bytes]
    recipe: Recipe
    network: Network
    terminal: Terminal
    memory: int
    cpus: float
    pids: int
    disk: int


@dataclass(frozen=True)
class Lab:
    """One opened engine, with a layer to run on."""

    name: str
    """ "bubblewrap" or "docker"."""
    engine: Engine
    settings: EngineSettings
    make: Callable[[EngineSettings], Engine]
    recipe: Recipe
    """The bare base; built."""
    docker_host: str = ""
    """Where the Docker engine is, if it is one."""
    limits: Limits = LIMITS
    instances: list[str] = field(default_factory=list)
    """Of all engines made, so that what they keep can be removed in the end."""

    def traces(self) -> Counter[str]:
        return host.traces(self.settings, self.docker_host)

    def left_by_a_build(self, before: Counter[str]) -> set[str]:
        """What is here besides: but for what is kept warm for runs, which comes and goes."""
        new = set(self.traces() - before)
        return {
            text
            for text in new
            if (not text.startswith("process") or "apk" in text) and "'cmdsvc.run'" not in text
        }

    async def shortcoming(self, *words: str) -> str:
        """What `check` warns of, with one of the words in it; "" if it does not."""
        for finding in await self.engine.check():
            if finding.level == "warning" and any(word in finding.what.lower() for word in words):
                return finding.what
        return ""

    def layer(self, *packages: str, tag: str = "") -> Recipe:
        return dataclasses.replace(self.recipe, packages=tuple(sorted(packages)), tag=tag)

    def invocation(
        self, script: bytes | str | None, *arguments: bytes | str, **given: Unpack[Given]
    ) -> Invocation:
        """A run of `script` (one in words is for /bin/sh), or without one of the program `argv`."""
        if isinstance(script, str):
            script = f"#!/bin/sh\n{script}\n".encode()
        words = tuple(a.encode() if isinstance(a, str) else a for a in arguments)
        limits = self.limits
        return Invocation(
            run_id=secrets.token_hex(8),
            recipe=given.get("recipe", self.recipe),
            argv=given.get("argv", (SCRIPT_PATH, *words)),
            script=script,
            env=given.get("env", ENV),
            limits=dataclasses.replace(
                limits,
                memory=given.get("memory", limits.memory),
                cpus=given.get("cpus", limits.cpus),
                pids=given.get("pids", limits.pids),
                disk=given.get("disk", limits.disk),
            ),
            network=given.get("network", Network.NONE),
            terminal=given.get("terminal"),
        )

    @contextlib.asynccontextmanager
    async def job(
        self, script: bytes | str | None, *arguments: bytes | str, **given: Unpack[Given]
    ) -> AsyncIterator[Job]:
        async with asyncio.timeout(PATIENCE):
            job = await self.engine.start(self.invocation(script, *arguments, **given))
        try:
            yield job
        finally:
            async with asyncio.timeout(PATIENCE):
                await job.aclose()

    async def run(
        self,
        script: bytes | str | None,
        *arguments: bytes | str,
        stdin: bytes = b"",
        **given: Unpack[Given],
    ) -> Result:
        """Runs to the end, with `stdin` and then its end."""
        async with self.job(script, *arguments, **given) as job:
            feeding = asyncio.create_task(feed(job, stdin))
            try:
                return await Transcript(job).end()
            finally:
                async with asyncio.timeout(PATIENCE):
                    await feeding  # the program's end lets it go

    @contextlib.asynccontextmanager
    async def another(
        self,
        data_dir: Path,
        *,
        instance: str = "",
        sources: Sources | None = None,
        build_timeout: float = 120.0,
    ) -> AsyncIterator[Lab]:
        """Another engine of the kind, opened, and closed again."""
        settings = dataclasses.replace(
            self.settings,
            data_dir=data_dir,
            instance=instance or f"test-{secrets.token_hex(6)}",
            sources=sources or self.settings.sources,
            build_timeout=build_timeout,
        )
        self.instances.append(settings.instance)
        engine = self.make(settings)
        try:
            async with asyncio.timeout(PATIENCE):
                await engine.open()
            yield dataclasses.replace(self, engine=engine, settings=settings)
        finally:
            async with asyncio.timeout(PATIENCE):
                await engine.aclose()


def maker(name: str, docker_host: str) -> Callable[[EngineSettings], Engine]:
    """What makes a closed engine of that kind."""
    if name == "bubblewrap":
        from cmdsvc.engine.bubblewrap import BubblewrapEngine

        return BubblewrapEngine
    from cmdsvc.engine.docker import DockerEngine

    return lambda settings: DockerEngine(settings, docker_host)


def kit_sources(kit: Kit, mirror: str, *repositories: str, keys: bool = True) -> Sources:
    """The offline kit as the operator's setting; `mirror` is the URL that serves it."""
    return Sources(
        bases={"alpine": str(kit.base)},
        alpine_mirrors=tuple(
            f"{mirror}/{name}" for name in repositories or ("main", "community", "broken")
        ),
        apk_keys=kit.keys if keys else None,
    )


async def feed(job: Job, data: bytes) -> None:
    """Sends in pieces of an odd size, then the end."""
    for start in range(0, len(data), 50_001):
        await job.send(data[start : start + 50_001])
    await job.send_eof()


class ScriptedCaller:
    """Who asks: sends what it is given, keeps what comes, leaves when it is told to."""

    def __init__(self, stdin: bytes = b"", *, events: tuple[Event, ...] = ()) -> None:
        self._stdin = stdin
        self._events = events
        self._left = asyncio.Event()
        self._changed = asyncio.Event()
        self.written = {1: bytearray(), 2: bytearray()}

    def leave(self) -> None:
        self._left.set()

    async def saw(self, text: bytes) -> None:
        """Returns when `text` has come on stdout."""
        async with asyncio.timeout(PATIENCE):
            while text not in self.written[1]:
                self._changed.clear()
                await self._changed.wait()

    async def stdin(self) -> AsyncIterator[bytes]:
        if self._stdin:
            yield self._stdin

    async def events(self) -> AsyncIterator[Event]:
        for event in self._events:
            yield event
        await self._left.wait()
        raise CallerGone

    async def write(self, fd: int, data: bytes) -> None:
        if self._left.is_set():
            raise CallerGone
        self.written[fd] += data
        self._changed.set()


class Progress:
    """Keeps what a build says of itself."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._changed = asyncio.Event()

    def __call__(self, line: str) -> None:
        assert "\n" not in line, line
        self.lines.append(line)
        self._changed.set()

    def __contains__(self, text: str) -> bool:
        return any(text in line for line in self.lines)

    async def saw(self, text: str) -> None:
        """Returns when a line with `text` has come."""
        async with asyncio.timeout(PATIENCE):
            while text not in self:
                self._changed.clear()
                await self._changed.wait()
