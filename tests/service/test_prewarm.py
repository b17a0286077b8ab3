"""Commands that the operator names: what the engine is told of them, how often, and what is said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from cmdsvc.engine import Progress
from cmdsvc.engine.warm import IDLE
from cmdsvc.errors import DataError
from cmdsvc.model import Door, Limits, Network
from cmdsvc.recipe import Recipe
from cmdsvc.service import prewarm
from cmdsvc.service.invocation import Request
from cmdsvc.service.prewarm import AGAIN, PERIOD, Prewarm
from tests.fakes import SlowEngine, soon
from tests.service.queue_lab import ANN, SOURCE, Lab, ScriptedEngine, a_lab

JQ = SOURCE.replace(b"alpine", b"alpine jq")
SMALL = SOURCE + b"# /// cmd\n# memory = '64M'\n# timeout = '5s'\n# network = 'none'\n# ///\n"


class TellingEngine(ScriptedEngine):
    """Has what was built, but can build nothing with jq while it is `broken`."""

    def __init__(self) -> None:
        super().__init__()
        self.told: asyncio.Queue[Recipe] = asyncio.Queue()
        self.broken = False
        self.fault: Exception | None = None
        """What the next `expect` fails with."""

    async def has(self, recipe: Recipe) -> bool:
        return recipe.digest in self.here

    async def build(self, recipe: Recipe, progress: Progress, *, again: bool = False) -> None:
        if self.broken and "jq" in recipe.packages:
            self.built.append(recipe)
            raise DataError("no such package")
        await super().build(recipe, progress, again=again)

    async def expect(self, recipe: Recipe, limits: Limits, network: Network) -> None:
        fault, self.fault = self.fault, None
        if fault is not None:
            raise fault
        await super().expect(recipe, limits, network)
        self.told.put_nowait(recipe)


@pytest.fixture
async def engine() -> TellingEngine:
    return TellingEngine()


@pytest.fixture
async def lab(tmp_path: Path, engine: TellingEngine) -> AsyncIterator[Lab]:
    async with a_lab(f"sqlite+aiosqlite:///{tmp_path}/store.db", tmp_path, engine) as lab:
        yield lab


@pytest.fixture
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for between two times."""
    monkeypatch.setattr(prewarm, "PERIOD", 0)
    monkeypatch.setattr(prewarm, "AGAIN", 0)


@pytest.fixture
def asked(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> asyncio.Queue[str]:
    """The commands that were looked for."""
    queue: asyncio.Queue[str] = asyncio.Queue()
    named = lab.commands.named

    async def noted(name: str):
        queue.put_nowait(name)
        return await named(name)

    monkeypatch.setattr(lab.commands, "named", noted)
    return queue


def working(lab: Lab, *names: str) -> AbstractAsyncContextManager[None]:
    runs = lab.runs
    return Prewarm(lab.engine, runs._builds, lab.commands, runs._invocations).working(names)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "cmdsvc"]


async def until_told(engine: TellingEngine, package: str) -> None:
    while package not in (await engine.told.get()).packages:
        pass


async def until_tried(engine: TellingEngine, package: str, times: int) -> None:
    """Others are told of meanwhile."""
    while sum(package in recipe.packages for recipe in engine.built) < times:
        assert package not in (await engine.told.get()).packages


async def until_said(
    number: int, asked: asyncio.Queue[str], caplog: pytest.LogCaptureFixture
) -> None:
    while len(warnings(caplog)) < number:
        await asked.get()


def test_it_is_told_before_it_is_forgotten():
    assert PERIOD < PERIOD + AGAIN < IDLE


async def test_what_is_expected_is_what_a_run_has(lab: Lab, engine: TellingEngine):
    await lab.commands.create(ANN, "small", SMALL, lambda _: None)
    async with working(lab, "ann/small"):
        await soon(engine.told.get())
    await lab.runs.detach(Request(ANN, Door.SSH, "small", [], {}, ""))
    (run,) = engine.runs
    assert engine.expected == [(run.recipe, run.limits, run.network)]
    assert (run.limits.memory, run.limits.timeout, run.network) == (64 << 20, 5, Network.NONE)


async def test_again_and_again(lab: Lab, engine: TellingEngine, restless: None):
    async with working(lab, "ann/job", "ann/job"):
        first = await soon(engine.told.get())
        for _ in range(3):
            assert await soon(engine.told.get()) == first
        await lab.commands.edit(ANN, "job", JQ, lambda _: None)
        await soon(until_told(engine, "jq"))


async def test_each_is_told_once_in_its_time(lab: Lab, engine: TellingEngine):
    async with working(lab, "ann/job", "ann/job", "ann/other"):
        await soon(engine.told.get())
        await soon(engine.told.get())
    assert len(engine.expected) == 2


async def test_a_layer_that_is_missing_is_built(lab: Lab, engine: TellingEngine):
    engine.here.clear()
    engine.built.clear()
    async with working(lab, "ann/job", "ann/other"):
        recipe = await soon(engine.told.get())
        assert await soon(engine.told.get()) == recipe
    assert engine.built == [recipe]


async def test_what_is_not_there_is_said_once(
    lab: Lab,
    engine: TellingEngine,
    asked: asyncio.Queue[str],
    restless: None,
    caplog: pytest.LogCaptureFixture,
):
    async with working(lab, "ann/late"):
        for _ in range(4):
            await soon(asked.get())
        (said,) = warnings(caplog)
        assert said.startswith("no sandbox waits for ann/late: there is no such command; create it")
        await lab.commands.create(ANN, "late", SOURCE, lambda _: None)
        await soon(engine.told.get())
        await lab.commands.delete(ANN, "late")
        await soon(until_said(2, asked, caplog))
        for _ in range(asked.qsize() + 4):
            await soon(asked.get())
    assert len(warnings(caplog)) == 2


async def test_what_cannot_be_built_is_said_once_and_stops_nothing(
    lab: Lab, engine: TellingEngine, restless: None, caplog: pytest.LogCaptureFixture
):
    await lab.commands.create(ANN, "broken", JQ, lambda _: None)
    engine.here.clear()
    engine.built.clear()
    engine.broken = True
    async with working(lab, "ann/broken", "ann/job"):
        await soon(until_tried(engine, "jq", 3))
        assert warnings(caplog) == ["no sandbox waits for ann/broken: no such package"]
        engine.broken = False
        await soon(until_told(engine, "jq"))
    assert len(warnings(caplog)) == 1


async def test_a_fault_does_not_end_it(
    lab: Lab, engine: TellingEngine, restless: None, caplog: pytest.LogCaptureFixture
):
    engine.fault = OSError("broken")
    async with working(lab, "ann/job"):
        await soon(engine.told.get())
    (record,) = (record for record in caplog.records if record.name == "cmdsvc")
    assert record.exc_info


async def test_a_build_does_not_hold_up_the_end(tmp_path: Path):
    engine = SlowEngine()
    engine.go.set()
    async with a_lab(f"sqlite+aiosqlite:///{tmp_path}/store.db", tmp_path, engine) as lab:
        engine.here.clear()
        engine.begun.clear()
        engine.go.clear()
        async with working(lab, "ann/job"):
            await soon(engine.begun.wait())
        assert engine.cancelled == 1
