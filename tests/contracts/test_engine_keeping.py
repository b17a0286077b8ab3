"""What an engine keeps, and how it goes: never from under a run, a build, or another layer."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cmdsvc.engine import DIGITS, Layer
from cmdsvc.recipe import Recipe
from tests.contracts.engine_lab import Lab, Progress, Transcript

if TYPE_CHECKING:
    from tests.kit import Kit

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def kept(lab: Lab, recipe: Recipe) -> Layer:
    (layer,) = [
        layer
        for layer in await lab.engine.layers()
        if not layer.base and recipe.digest.startswith(layer.name)
    ]
    assert len(layer.name) >= DIGITS
    return layer


async def test_own_and_shared_bytes(own: Lab) -> None:
    assert await own.engine.layers() == []
    jq = own.layer("jq")
    for recipe in (own.recipe, jq):
        await own.engine.build(recipe, Progress())
    (base,) = [layer for layer in await own.engine.layers() if layer.base]
    assert base.wanted
    assert base.size > 1 << 20
    plain, more = await kept(own, own.recipe), await kept(own, jq)
    assert plain.below == more.below == base.name
    assert plain.size < 1 << 17
    assert more.size > 1 << 18
    assert min(plain.shared, more.shared) > 1 << 20


async def test_a_layer_is_gone_and_made_again(own: Lab) -> None:
    recipe = own.layer("jq")
    await own.engine.build(own.recipe, Progress())
    await own.engine.build(recipe, Progress())
    assert await own.engine.remove(await kept(own, recipe))
    assert not await own.engine.has(recipe)
    with pytest.raises(LookupError):
        await own.engine.start(own.invocation("echo", recipe=recipe))
    assert (await own.run("echo alive")).ok() == b"alive\n"
    await own.engine.build(recipe, Progress())
    assert (await own.run("jq --version", recipe=recipe)).ok().startswith(b"jq-")


async def test_what_is_gone_already_is_gone(own: Lab) -> None:
    await own.engine.build(own.recipe, Progress())
    layer = await kept(own, own.recipe)
    assert await own.engine.remove(layer)
    assert await own.engine.remove(layer)


async def test_a_run_keeps_its_layer(own: Lab) -> None:
    recipe = own.layer("jq")
    await own.engine.build(recipe, Progress())
    layer = await kept(own, recipe)
    async with own.job("echo here; read word; jq --version", recipe=recipe) as job:
        transcript = Transcript(job)
        await transcript.until(b"here\n")
        assert not await own.engine.remove(layer)
        assert await own.engine.has(recipe)
        await transcript.say(b"go\n")
        assert b"\njq-" in (await transcript.end()).ok()
    for _ in range(100):
        if await own.engine.remove(layer):
            break
        await asyncio.sleep(0.1)
    else:
        pytest.fail("it is in use by nothing")


async def test_a_base_stays_below_a_layer(own: Lab) -> None:
    await own.engine.build(own.recipe, Progress())
    (base,) = [layer for layer in await own.engine.layers() if layer.base]
    if own.name == "bubblewrap":  # in Docker the layer without packages has the base's own image
        assert not await own.engine.remove(base)
        assert (await own.run("echo alive")).ok() == b"alive\n"
    assert await own.engine.remove(await kept(own, own.recipe))
    assert await own.engine.remove(base)
    assert await own.engine.layers() == []
    await own.engine.build(own.recipe, Progress())
    assert (await own.run("echo alive")).ok() == b"alive\n"


async def test_a_base_that_moved_on(lab: Lab, place: Path, kit: Kit, tmp_path: Path) -> None:
    """The operator names another tarball: what stood on the old one keeps it, then nobody wants it."""
    first = shutil.copy(kit.base, tmp_path / f"first-{kit.base.name}")
    sources = replace(lab.settings.sources, bases={"alpine": str(first)})
    instance = "test-moved-on"
    old = Recipe("alpine", "", ("jq",), str(first))
    async with lab.another(place, instance=instance, sources=sources) as own:
        await own.engine.build(old, Progress())
    async with lab.another(place, instance=instance) as own:
        (base,) = [layer for layer in await own.engine.layers() if layer.base]
        assert not base.wanted
        assert not await own.engine.remove(base)
        layer = await kept(own, old)
        assert layer.below == base.name
        assert await own.engine.remove(layer)
        left = await own.engine.layers()
        for one in left:
            assert await own.engine.remove(one)
        assert await own.engine.layers() == []
