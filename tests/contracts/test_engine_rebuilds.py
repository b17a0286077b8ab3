"""A base that moves on: what stands on it goes on as it is, and is made again for who asks."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from cmdsvc.engine import DIGITS, Layer
from cmdsvc.errors import DataError
from cmdsvc.recipe import Recipe
from tests.contracts import engine_host as host
from tests.contracts.engine_lab import PATIENCE, Lab, Progress, Transcript
from tests.moving_base import Base

if TYPE_CHECKING:
    from tests.kit import Kit

pytestmark = pytest.mark.asyncio(loop_scope="session")

BROKEN = b"#!/bin/sh\necho no package today >&2\nexit 1\n"


@pytest.fixture
def base(kit: Kit, place: Path) -> Base:
    base = Base(place.with_name("base.tar"), kit)
    base.becomes("one")
    return base


@pytest_asyncio.fixture(loop_scope="session")
async def own(lab: Lab, place: Path, base: Base) -> AsyncIterator[Lab]:
    """An engine that has nothing yet, and whose base can change."""
    sources = replace(lab.settings.sources, bases={"alpine": str(base.path)})
    async with lab.another(place, sources=sources) as another:
        yield replace(another, recipe=Recipe("alpine", "", (), str(base.path)))
    assert another.traces() == {}


async def word(lab: Lab, recipe: Recipe) -> str:
    return (await lab.run("cat /etc/word", recipe=recipe)).ok().decode()


async def kept(lab: Lab) -> tuple[list[Layer], list[Layer]]:
    """The layers, and the bases."""
    layers = await lab.engine.layers()
    return [one for one in layers if not one.base], [one for one in layers if one.base]


@pytest.mark.parametrize("packages", [(), ("jq",)])
async def test_what_was_pulled_is_built_upon_for_who_asks(
    own: Lab, base: Base, packages: tuple[str, ...]
) -> None:
    recipe = own.layer(*packages)
    assert not await own.engine.stale(recipe), "it is not here"
    await own.engine.build(recipe, Progress())
    base.becomes("two")
    assert not await own.engine.stale(recipe), "nobody has fetched it"
    progress = Progress()
    await own.engine.build(recipe, progress)
    assert progress.lines == []
    await own.engine.pull("alpine", "", Progress())
    assert await own.engine.stale(recipe)
    assert await own.engine.has(recipe)
    assert await word(own, recipe) == "one"
    await own.engine.build(recipe, Progress())
    assert not await own.engine.stale(recipe)
    assert await word(own, recipe) == "two"
    if packages:
        assert (await own.run("jq --version", recipe=recipe)).ok().startswith(b"jq-")


async def test_the_same_base_again_is_nothing_new(own: Lab) -> None:
    recipe = own.layer("jq")
    await own.engine.build(recipe, Progress())
    await own.engine.pull("alpine", "", Progress())
    assert not await own.engine.stale(recipe)
    progress = Progress()
    await own.engine.build(recipe, progress)
    assert progress.lines == []


async def test_a_tag_is_of_the_same_base(own: Lab, base: Base) -> None:
    recipe = own.layer(tag="3.23")
    await own.engine.build(recipe, Progress())
    base.becomes("two")
    await own.engine.pull("alpine", "", Progress())
    assert await own.engine.stale(recipe)


async def test_again_fetches_and_builds(own: Lab, base: Base) -> None:
    recipe, other = own.layer("jq"), own.layer()
    for one in (recipe, other):
        await own.engine.build(one, Progress())
    base.becomes("two")
    progress = Progress()
    await own.engine.build(recipe, progress, again=True)
    assert "Installing jq" in progress
    assert await word(own, recipe) == "two"
    assert await word(own, other) == "one", "it was not asked for"
    assert await own.engine.stale(other)
    await own.engine.build(recipe, progress := Progress(), again=True)
    assert "Installing jq" in progress, "always"


async def test_what_runs_goes_on_with_what_it_has(own: Lab, base: Base) -> None:
    recipe = own.layer("jq")
    await own.engine.build(recipe, Progress())
    script = "cat /etc/word; read x; cat /etc/word; jq --version"
    async with own.job(script, recipe=recipe) as job:
        transcript = Transcript(job)
        await transcript.until(b"one")
        base.becomes("two")
        await own.engine.build(recipe, Progress(), again=True)
        assert await word(own, recipe) == "two"
        for layer in await own.engine.layers():  # as a prune would
            if not recipe.digest.startswith(layer.name) and not layer.wanted:
                assert not await own.engine.remove(layer), layer
        await transcript.say(b"go\n")
        assert b"oneone" in (await transcript.end()).ok().replace(b"jq-", b"")
    assert await word(own, recipe) == "two"


async def test_what_was_replaced_goes(own: Lab, base: Base) -> None:
    recipe = own.layer("jq")
    await own.engine.build(recipe, Progress())
    for number in range(3):
        base.becomes(f"base {number}")
        await own.engine.build(recipe, Progress(), again=True)
    (layer,), _ = await kept(own)
    assert recipe.digest.startswith(layer.name)
    assert len(layer.name) >= DIGITS


async def test_what_was_replaced_goes_with_its_last_run(own: Lab, base: Base) -> None:
    recipe = own.layer("jq")
    await own.engine.build(recipe, Progress())
    async with own.job("echo here; read x", recipe=recipe) as job:
        await Transcript(job).until(b"here")
        base.becomes("two")
        await own.engine.build(recipe, Progress(), again=True)
        layers, _ = await kept(own)
        assert len(layers) == 2
    if own.name == "docker":  # with the next build
        async with asyncio.timeout(PATIENCE):
            while len(layers) == 2:
                await own.engine.build(recipe, Progress(), again=True)
                layers, _ = await kept(own)
    else:
        async with asyncio.timeout(PATIENCE):
            while len(layers) == 2:  # the kernel tells nobody when it is done
                await asyncio.sleep(0.02)
                layers, _ = await kept(own)
    assert recipe.digest.startswith(layers[0].name)


async def test_what_a_dead_server_replaced_goes_at_the_next_start(
    own: Lab, base: Base, place: Path
) -> None:
    recipe = own.layer("jq")
    await own.engine.build(recipe, Progress())
    async with own.job("echo here; read x", recipe=recipe) as job:
        await Transcript(job).until(b"here")
        base.becomes("two")
        await own.engine.build(recipe, Progress(), again=True)
        assert len((await kept(own))[0]) == 2
        settings = own.settings
        async with own.another(
            place, instance=settings.instance, sources=settings.sources
        ) as next_:
            (layer,), _ = await kept(next_)
            assert recipe.digest.startswith(layer.name)
            assert await word(replace(next_, recipe=recipe), recipe) == "two"


async def test_sizes_are_of_what_is_there_now(own: Lab, base: Base) -> None:
    recipe = own.layer("jq")
    await own.engine.build(recipe, Progress())
    (before,), (old,) = await kept(own)
    assert before.below == old.name
    base.becomes("x" * (3 << 20))
    await own.engine.build(recipe, Progress(), again=True)
    (after,), bases = await kept(own)
    (new,) = [one for one in bases if one.wanted]
    assert after.below == new.name != old.name
    assert new.size > old.size + (2 << 20)
    assert after.shared > before.shared + (2 << 20)
    for one in bases:
        assert one.wanted or await own.engine.remove(one)
    assert (await kept(own))[1] == [new]
    assert (await own.run("jq --version", recipe=recipe)).ok()


async def test_what_fails_leaves_what_was(own: Lab, base: Base) -> None:
    recipe = own.layer("jq")
    await own.engine.build(recipe, Progress())
    base.becomes("two", apk=BROKEN)
    for _ in range(2):
        with pytest.raises(DataError, match="no package today"):
            await own.engine.build(recipe, Progress(), again=True)
        assert await word(own, recipe) == "one"
    assert await own.engine.stale(recipe)
    base.path.write_bytes(b"no tarball")
    with pytest.raises(DataError):
        await own.engine.build(recipe, Progress(), again=True)
    base.path.unlink()
    with pytest.raises(DataError):
        await own.engine.build(recipe, Progress(), again=True)
    assert (await own.run("cat /etc/word; jq --version", recipe=recipe)).ok().startswith(b"onejq-")
    await host.gone(lambda: [n for n in host.tree(own.settings.data_dir) if "/tmp/" in n])
    base.becomes("three")
    await own.engine.build(recipe, Progress(), again=True)
    assert await word(own, recipe) == "three"


async def test_what_is_cancelled_leaves_what_was(own: Lab, base: Base) -> None:
    recipe, progress = own.layer("jq"), Progress()
    await own.engine.build(recipe, Progress())
    base.becomes("two")
    building = asyncio.create_task(own.engine.build(recipe, progress, again=True))
    await progress.saw("Installing jq")
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    assert await word(own, recipe) == "one"
    await own.engine.build(recipe, Progress())
    assert await word(own, recipe) == "two"


@pytest.mark.slow
async def test_several_at_once(own: Lab, base: Base) -> None:
    recipes = [own.layer("jq"), own.layer("uuidgen")]
    for recipe in recipes:
        await own.engine.build(recipe, Progress())
    base.becomes("two")
    builds = [
        own.engine.build(recipe, Progress(), again=again)
        for recipe in recipes
        for again in (True, True, False)
    ]
    runs = [own.run("cat /etc/word; ls /usr/bin/", recipe=recipes[0]) for _ in range(8)]
    done = asyncio.gather(*builds)
    for result in await asyncio.gather(*runs):
        assert result.ok()[:3] in {b"one", b"two"}
        assert "jq" in result.lines
    await done
    for recipe in recipes:
        assert await word(own, recipe) == "two"
    layers, _ = await kept(own)
    current = [one for one in layers if any(r.digest.startswith(one.name) for r in recipes)]
    assert len(current) == len(recipes)


async def test_a_pull_beside_a_server_disturbs_nothing(own: Lab, base: Base) -> None:
    recipe = own.layer("jq")
    await own.engine.build(recipe, Progress())
    script = f": {secrets.token_hex(8)}; cat /etc/word; read x; jq --version"
    building, progress = own.layer("uuidgen"), Progress()
    async with own.job(script, recipe=recipe) as job:
        transcript = Transcript(job)
        await transcript.until(b"one")
        task = asyncio.create_task(own.engine.build(building, progress))
        await progress.saw("Installing uuidgen")
        base.becomes("two")
        beside = own.make(own.settings)
        await beside.open(beside=True)
        try:
            await beside.pull("alpine", "", Progress())
        finally:
            await beside.aclose()
        await task
        await transcript.say(b"go\n")
        assert b"jq-" in (await transcript.end()).ok()
    assert await own.engine.stale(recipe)
    assert await own.engine.stale(building)
    await own.engine.build(recipe, Progress())
    assert await word(own, recipe) == "two"
