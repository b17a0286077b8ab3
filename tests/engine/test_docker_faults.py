"""A Docker engine that stops, dies, hangs and comes back, under runs and builds."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cmdsvc.engine.docker import sandbox
from cmdsvc.errors import EngineError
from cmdsvc.model import Outcome
from cmdsvc.relay import Job
from tests import dockerd
from tests.availability import unavailable
from tests.engine import dockerlab
from tests.engine.dockerlab import PATIENCE, Lab

if TYPE_CHECKING:
    from tests.kit import Kit, Server

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.slow]


@pytest.fixture(scope="module")
def daemon() -> Iterator[dockerd.Dockerd]:
    try:
        with dockerd.dockerd() as started:
            yield started
    except dockerd.NoDockerError as error:
        unavailable(str(error))


@pytest.fixture
async def lab(
    daemon: dockerd.Dockerd, kit: Kit, mirror: Server, tmp_path: Path
) -> AsyncIterator[Lab]:
    async with dockerlab.lab(daemon.host, tmp_path, kit, mirror) as made:
        yield made


@pytest.fixture
async def warm(
    daemon: dockerd.Dockerd, kit: Kit, mirror: Server, tmp_path: Path
) -> AsyncIterator[Lab]:
    """With a container that waits for a run."""
    async with dockerlab.lab(daemon.host, tmp_path, kit, mirror, warm=2) as made:
        assert await made.run("echo first") == (b"first\n", Outcome(0))
        await until(lambda: made.engine.warm == 1)
        yield made


async def until(condition: Callable[[], object]) -> None:
    """For what nobody tells of."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def running(lab: Lab) -> AsyncIterator[Job]:
    """A run that has begun and does not end."""
    job = await lab.start("echo ready; sleep 300")
    try:
        yield job
    finally:
        async with asyncio.timeout(PATIENCE):
            await job.aclose()


@pytest.mark.parametrize("how", ["stop", "crash"])
async def test_the_engine_ends_in_mid_run(daemon: dockerd.Dockerd, lab: Lab, how: str) -> None:
    async with running(lab) as job, asyncio.timeout(PATIENCE):
        output = job.output()
        assert await anext(output) == (1, b"ready\n")
        await asyncio.to_thread(daemon.stop if how == "stop" else daemon.crash)
        try:
            assert [piece async for piece in output] == []
            with pytest.raises(EngineError) as caught:
                await job.wait()
            assert "\n" not in str(caught.value)
            with pytest.raises(EngineError, match="cannot be reached"):
                await lab.start("true")
        finally:
            await asyncio.to_thread(daemon.start)
    assert await lab.run("echo again") == (b"again\n", Outcome(0))


async def test_the_engine_ends_in_mid_build(daemon: dockerd.Dockerd, lab: Lab) -> None:
    begun = asyncio.Event()
    recipe = lab.layer("slow-postinst")
    building = asyncio.create_task(
        lab.engine.build(recipe, lambda text: begun.set() if "slow-postinst" in text else None)
    )
    async with asyncio.timeout(PATIENCE):
        await begun.wait()
        await asyncio.to_thread(daemon.stop)
        try:
            with pytest.raises(EngineError):
                await building
        finally:
            await asyncio.to_thread(daemon.start)
    assert not await lab.engine.has(recipe)
    assert (await lab.run("echo again"))[0] == b"again\n"


async def test_an_engine_that_hangs(daemon: dockerd.Dockerd, lab: Lab) -> None:
    async with running(lab) as job:
        assert await anext(job.output()) == (1, b"ready\n")
        daemon.pause()
        try:
            begun = time.monotonic()
            await job.aclose()
            assert time.monotonic() - begun < 20, "who closes a run is not held up"
            async with asyncio.timeout(2 * PATIENCE):
                told = await asyncio.gather(
                    lab.engine.open(), lab.start("true"), return_exceptions=True
                )
            for error in told:
                assert isinstance(error, EngineError)
                assert "did not answer within" in str(error)
        finally:
            daemon.resume()
    assert (await lab.run("echo again"))[0] == b"again\n"


async def test_what_was_left_while_the_engine_was_away_is_removed(
    daemon: dockerd.Dockerd, lab: Lab
) -> None:
    async with running(lab) as job:
        assert await anext(job.output()) == (1, b"ready\n")
        await asyncio.to_thread(daemon.crash)
        await job.aclose()
        await asyncio.to_thread(daemon.start)
    await until(lambda: not lab.containers())


@pytest.mark.parametrize("how", ["stop", "crash"])
async def test_those_that_wait_end_with_the_engine(
    daemon: dockerd.Dockerd, warm: Lab, how: str
) -> None:
    await asyncio.to_thread(daemon.stop if how == "stop" else daemon.crash)
    try:
        await until(lambda: warm.engine.warm == 0)
        with pytest.raises(EngineError, match="cannot be reached"):
            await warm.start("true")
    finally:
        await asyncio.to_thread(daemon.start)
    assert await warm.run("echo again") == (b"again\n", Outcome(0))
    await until(lambda: warm.engine.warm == len(warm.containers()) > 0)


async def test_one_that_waits_needs_no_engine_that_answers(
    daemon: dockerd.Dockerd, warm: Lab
) -> None:
    daemon.pause()
    try:
        assert await warm.run("cat; echo out; exit 3") == (b"out\n", Outcome(3))
    finally:
        daemon.resume()
    await until(lambda: warm.engine.warm == len(warm.containers()) > 0)


async def test_one_that_waits_behind_an_engine_that_hangs(
    daemon: dockerd.Dockerd, warm: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is handed over through it cannot begin."""
    monkeypatch.setattr(warm.engine._runs._direct, "_possible", False)
    await warm.engine._runs._warm.drop()
    assert await warm.run("echo first") == (b"first\n", Outcome(0))
    await until(lambda: warm.engine.warm == len(warm.containers()) > 0)
    monkeypatch.setattr(sandbox, "GIVE_TIMEOUT", 0.5)
    daemon.pause()
    try:
        with pytest.raises(EngineError, match="did not answer within"):
            await warm.start("true")
    finally:
        daemon.resume()
    monkeypatch.undo()
    assert await warm.run("echo again") == (b"again\n", Outcome(0))
