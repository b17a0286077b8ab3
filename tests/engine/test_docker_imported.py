"""Runs of imported images on the Docker engine, from the engine's side."""

from __future__ import annotations

import asyncio
import io
import secrets
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from cmdsvc.engine import Invocation
from cmdsvc.engine.docker.images import repository
from cmdsvc.errors import DataError, UsageError
from cmdsvc.model import Network, Outcome, Reason, Terminal
from cmdsvc.recipe import Recipe
from cmdsvc.relay import Job
from tests.engine import dockerlab
from tests.engine.dockerlab import PATIENCE, Lab, end

if TYPE_CHECKING:
    from tests.kit import Kit, Server

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(
    host: str, kit: Kit, mirror: Server, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Lab]:
    async with dockerlab.lab(host, tmp_path_factory.mktemp("imported"), kit, mirror) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def image(lab: Lab) -> AsyncIterator[str]:
    """The name of an image that runs shell text."""
    name = f"t{secrets.token_hex(6)}"
    layer = f"{repository(lab.settings.instance)}:{lab.recipe.digest[:24]}"
    dockerfile = f'FROM {layer}\nENTRYPOINT ["/bin/sh", "-c"]\n'.encode()
    lab.client.images.build(fileobj=io.BytesIO(dockerfile), tag=name, rm=True)
    try:
        yield name
    finally:
        lab.client.images.remove(name, force=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def recipe(lab: Lab, image: str) -> Recipe:
    pinned = await lab.engine.resolve(image, lambda _: None)
    made = Recipe(pinned, "", (), pinned)
    await lab.engine.build(made, lambda _: None)
    return made


async def begin(
    lab: Lab, recipe: Recipe, script: str, *,
    terminal: Terminal | None = None, env: dict[bytes, bytes] | None = None,
) -> Job:  # fmt: skip
    return await lab.engine.start(
        Invocation(
            run_id=secrets.token_hex(8),
            recipe=recipe,
            argv=(script.encode("utf-8", "surrogateescape"),),
            script=None,
            env=env or {},
            limits=lab.settings.limits,
            network=Network.NONE,
            terminal=terminal,
        )
    )


async def finish(job: Job) -> tuple[bytes, Outcome]:
    try:
        async with asyncio.timeout(PATIENCE):
            return await end(job)
    finally:
        await job.aclose()


@pytest.mark.parametrize("name", ["INT", "TERM", "USR1", "HUP", "ABRT", "SEGV"])
async def test_a_signal_reaches_the_program_or_ends_it(lab: Lab, recipe: Recipe, name: str):
    for script, expected in (
        (f"trap 'echo got; exit 9' {name}; echo begun; while :; do sleep 0.1; done", 9),
        ("echo begun; exec sleep 1000", None),
    ):
        job = await begin(lab, recipe, script)
        output = job.output()
        async with asyncio.timeout(PATIENCE):
            assert (await anext(output))[1] == b"begun\n"
            await job.signal("NONSENSE")
            await job.signal(name)
            rest = b"".join([data async for fd, data in output if fd == 1])
            outcome = await job.wait()
        await job.aclose()
        if expected is None:
            assert outcome.reason is Reason.SIGNAL
        else:
            assert (rest, outcome.exit_status) == (b"got\n", expected)


async def test_a_signal_reaches_the_whole_group(lab: Lab, recipe: Recipe):
    job = await begin(lab, recipe, "echo begun; sleep 1000; echo no")
    output = job.output()
    async with asyncio.timeout(PATIENCE):
        assert (await anext(output))[1] == b"begun\n"
        await job.signal("TERM")
        assert [data async for _, data in output if data == b"no\n"] == []
        assert (await job.wait()).exit_status == 128 + 15
    await job.aclose()


async def test_what_was_asked_for_and_killed(lab: Lab, recipe: Recipe):
    job = await begin(lab, recipe, "exec sleep 1000")
    await job.signal("KILL")
    assert (await finish(job))[1] == Outcome(137, Reason.SIGNAL)
    await job.signal("TERM")
    await job.send(b"x")
    await job.send_eof()
    await job.resize(1, 1)
    closed = await begin(lab, recipe, "exec sleep 1000")
    await closed.aclose()
    await closed.aclose()
    assert (await closed.wait()).reason is Reason.SIGNAL
    await lab.engine.usage()
    await lab.engine._janitor.settle()
    assert lab.containers() == []


async def test_it_is_used_while_it_runs(lab: Lab, recipe: Recipe):
    job = await begin(lab, recipe, "echo begun; exec sleep 1000")
    assert (await anext(job.output()))[1] == b"begun\n"
    used = await lab.engine.usage()
    assert len(used) == 1
    await job.aclose()


async def test_much_output_comes_whole(lab: Lab, recipe: Recipe):
    job = await begin(lab, recipe, "dd if=/dev/zero bs=1M count=200 2>/dev/null; echo done >&2")
    seen = 0
    async with asyncio.timeout(PATIENCE):
        async for fd, data in job.output():
            seen += len(data) if fd == 1 else 0
    assert seen == 200 << 20
    assert (await job.wait()).exit_status == 0
    await job.aclose()


async def test_the_end_of_input_on_a_terminal(lab: Lab, recipe: Recipe):
    job = await begin(lab, recipe, "cat; stty size", terminal=Terminal("xterm", 91, 31))
    await job.send(b"line\n")
    await job.send_eof()
    out, outcome = await finish(job)
    assert b"line" in out
    assert b"31 91" in out
    assert outcome == Outcome(0)


@pytest.mark.parametrize(
    ("script", "env"), [("echo \udcff", {}), ("true", {b"LC_X": b"\xff"})], ids=["words", "env"]
)
async def test_what_json_cannot_carry(
    lab: Lab, recipe: Recipe, script: str, env: dict[bytes, bytes]
):
    with pytest.raises(UsageError, match="UTF-8"):
        await begin(lab, recipe, script, env=env)
    assert not await lab.engine.usage()


async def test_one_whose_layer_is_gone(lab: Lab, image: str):
    pinned = await lab.engine.resolve(f"docker.io/library/{image}", lambda _: None)
    other = Recipe(pinned, "", (), pinned)
    await lab.engine.build(other, lambda _: None)
    assert await lab.engine.has(other)
    lab.client.images.remove(f"{repository(lab.settings.instance)}:{other.digest[:24]}")
    with pytest.raises(LookupError):
        await begin(lab, other, "true")
    assert not await lab.engine.has(other)
    await lab.engine.build(other, lambda _: None, again=True)
    assert (await finish(await begin(lab, other, "exit 3")))[1].exit_status == 3
    layer = next(
        found for found in await lab.engine.layers() if other.digest.startswith(found.name)
    )
    assert (layer.base, layer.size) == (False, 0)  # the image is not ours alone
    assert await lab.engine.remove(layer)
    assert lab.client.images.get(image)


async def test_it_is_no_other_instances_or_this_ones_layer(lab: Lab):
    for name in (f"cmdsvc-x@sha256:{'a' * 64}", f"docker.io/library/cmdsvc-x@sha256:{'a' * 64}"):
        with pytest.raises(DataError, match="layer"):
            await lab.engine.build(Recipe(name, "", (), name), lambda _: None)
