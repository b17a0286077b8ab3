"""An engine of its own for a test of bubblewrap, and runs in it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

from cmdsvc.engine import EngineSettings, Invocation, Sources
from cmdsvc.engine.bubblewrap import BubblewrapEngine
from cmdsvc.errors import EngineError
from cmdsvc.model import SCRIPT_PATH, SEARCH_PATH, WORK_DIR, Limits, Network, Outcome
from cmdsvc.recipe import Recipe
from tests.availability import unavailable

MB = 1 << 20
LIMITS = Limits(timeout=60.0, memory=256 * MB, cpus=2.0, pids=64, disk=64 * MB)
ENV = {b"PATH": SEARCH_PATH, b"HOME": WORK_DIR}


def settings_for(folder: Path, base: str, *, warm: int = 0) -> EngineSettings:
    return EngineSettings(
        data_dir=folder / "engine",
        instance=f"test-{secrets.token_hex(6)}",
        sources=Sources({"alpine": base, "debian": "debian:12"}),
        limits=LIMITS,
        warm=warm,
    )


def quiet(line: str) -> None:
    assert "\n" not in line


@contextlib.asynccontextmanager
async def opened(settings: EngineSettings) -> AsyncIterator[BubblewrapEngine]:
    engine = BubblewrapEngine(settings)
    try:
        await engine.open()
    except EngineError as error:
        unavailable(f"bubblewrap: {error}")
    try:
        yield engine
    finally:
        await engine.aclose()


def recipe_on(kit) -> Recipe:
    return Recipe("alpine", "", (), str(kit.base))


def invocation(recipe: Recipe, script: str, *arguments: bytes, **changes) -> Invocation:
    body = f"#!/bin/sh\n{script}\n".encode()
    argv = (SCRIPT_PATH, *arguments)
    made = Invocation("test", recipe, argv, body, ENV, LIMITS, Network.NONE)
    return replace(made, **changes)


async def run(engine: BubblewrapEngine, what: Invocation) -> tuple[Outcome, bytes]:
    job = await engine.start(what)
    try:
        async with asyncio.timeout(60):
            await job.send_eof()
            out = b"".join([data async for _, data in job.output()])
            return await job.wait(), out
    finally:
        await job.aclose()


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def spawner_of(engine: BubblewrapEngine) -> int:
    return engine._machine._stubs._process.pid


async def until(condition) -> None:
    """For what the kernel tells nobody of."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
