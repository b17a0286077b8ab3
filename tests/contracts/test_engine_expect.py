"""Runs that are expected: a sandbox waits for the first one of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from cmdsvc.engine import warm
from cmdsvc.model import Network
from tests.contracts.engine_lab import PATIENCE, Lab, Progress, Transcript

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(loop_scope="session")
async def own(lab: Lab, place: Path) -> AsyncIterator[Lab]:
    """An engine that has nothing but its bare base."""
    async with lab.another(place) as another:
        await another.engine.build(another.recipe, Progress())
        yield another


async def until(condition: Callable[[], bool]) -> None:
    """For what nobody tells of."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_one_waits_and_the_run_takes_it(own: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        await own.engine.expect(own.recipe, own.limits, Network.NONE)
    await until(lambda: own.engine.warm == 1)
    monkeypatch.setattr(warm, "DELAY", PATIENCE)  # no other is made while it is looked at
    async with own.job("echo begun; read x") as job:
        transcript = Transcript(job)
        assert await transcript.line() == "begun"
        assert own.engine.warm == 0
        await job.send_eof()
        await transcript.end()


async def test_a_run_of_another_kind_does_not(own: Lab) -> None:
    await own.engine.expect(
        own.recipe, replace(own.limits, disk=own.limits.disk // 2), Network.NONE
    )
    await until(lambda: own.engine.warm == 1)
    (await own.run("true")).ok()
    await until(lambda: own.engine.warm == 2)


async def test_the_layer_has_to_be_here(own: Lab) -> None:
    recipe = own.layer("hello-noarch")
    with pytest.raises(LookupError):
        await own.engine.expect(recipe, own.limits, Network.NONE)
    assert own.engine.warm == 0
    await own.engine.build(recipe, Progress())
    await own.engine.expect(recipe, own.limits, Network.NONE)
    await until(lambda: own.engine.warm == 1)


async def test_nothing_where_none_are_to_wait(lab: Lab, place: Path) -> None:
    none = replace(lab, settings=replace(lab.settings, warm=0))
    async with none.another(place) as own:
        await own.engine.build(own.recipe, Progress())
        await own.engine.expect(own.recipe, own.limits, Network.NONE)
        (await own.run("true")).ok()
        assert own.engine.warm == 0
