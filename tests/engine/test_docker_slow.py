"""A Docker engine that answers late, each time: runs are as right as ever, and none is left."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from cmdsvc.model import Outcome, Reason
from tests.availability import unavailable
from tests.engine import dockerlab
from tests.engine.dockerlab import PATIENCE, Lab, end

if TYPE_CHECKING:
    from tests.kit import Kit, Server

pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
]

LATE = (0.1, 1.0)
"""Seconds that each piece of an answer takes longer, at least and at most."""
MOST = 3


@contextlib.asynccontextmanager
async def late(host: str, place: Path) -> AsyncIterator[str]:
    """Where the engine at `host` answers late."""
    seconds = random.Random(1)
    serving: set[asyncio.Task[None]] = set()
    opened: list[asyncio.StreamWriter] = []

    async def ask(here: asyncio.StreamReader, there: asyncio.StreamWriter) -> None:
        while data := await here.read(1 << 16):
            there.write(data)
            await there.drain()
        there.write_eof()

    async def answer(there: asyncio.StreamReader, here: asyncio.StreamWriter) -> None:
        while data := await there.read(1 << 16):
            await asyncio.sleep(seconds.uniform(*LATE))  # which is the fault
            here.write(data)
            await here.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, asking = await asyncio.open_unix_connection(host.removeprefix("unix://"))
        opened.append(asking)
        questions = asyncio.ensure_future(ask(reader, asking))
        try:
            with contextlib.suppress(OSError):
                await answer(there, writer)
        finally:
            questions.cancel()
            await asyncio.gather(questions, return_exceptions=True)
            asking.close()
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(writer)
        task = asyncio.ensure_future(serve(reader, writer))
        serving.add(task)
        task.add_done_callback(serving.discard)

    server = await asyncio.start_unix_server(accept, place)
    try:
        yield f"unix://{place}"
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        for writer in opened:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(
    host: str, kit: Kit, mirror: Server, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Lab]:
    if not host.startswith("unix://"):
        unavailable("the Docker engine is not behind a socket of this machine")
    folder = tmp_path_factory.mktemp("slow")
    async with (
        late(host, folder / "docker.sock") as through,
        dockerlab.lab(host, folder, kit, mirror, warm=MOST, through=through) as made,
    ):
        yield made
        await made.engine.aclose()
        assert made.containers() == []


async def settled(lab: Lab) -> None:
    """Until there are as many containers as wait, and none is being made or removed."""
    async with asyncio.timeout(PATIENCE):
        while (  # noqa: ASYNC110 - nobody tells
            lab.engine._runs._warm._filling is not None or len(lab.containers()) != lab.engine.warm
        ):
            await asyncio.sleep(0.05)
    assert lab.engine.warm <= MOST


async def conversation(lab: Lab, number: int) -> tuple[bytes, Outcome]:
    job = await lab.start('read -r x; echo "$x $1"; cat; exit $1', b"%d" % number)
    try:
        async with asyncio.timeout(PATIENCE):
            await job.send(b"got\nrest of %d" % number)
            await job.send_eof()
            return await end(job)
    finally:
        await job.aclose()


async def test_a_burst(lab: Lab) -> None:
    most = 0
    for burst in (8, 4):
        results = await asyncio.gather(*(conversation(lab, n) for n in range(burst)))
        assert results == [(b"got %d\nrest of %d" % (n, n), Outcome(n)) for n in range(burst)]
        most = max(most, lab.engine.warm)
        await settled(lab)
        most = max(most, lab.engine.warm)
    assert most == MOST


async def test_ends_that_need_the_engines_word(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    hog = "exec sh -c 'head -c 200000000 /dev/zero | tail -c 200000000 >/dev/null; exit $?'"
    out, outcome = await lab.run(hog)
    assert (out, outcome.exit_status, outcome.reason) == (b"", 137, Reason.MEMORY)
    monkeypatch.setattr(lab.engine._runs._direct, "_possible", False)
    await lab.engine._runs._warm.drop()
    assert await lab.run("kill -KILL $PPID; sleep 60") == (b"", Outcome(137, Reason.SIGNAL))
    job = await lab.start("trap 'echo told; exit 4' TERM; echo ready; while :; do sleep 1; done")
    try:
        async with asyncio.timeout(PATIENCE):
            output = job.output()
            assert await anext(output) == (1, b"ready\n")
            await job.signal("TERM")
            assert [data async for fd, data in output if fd == 1] == [b"told\n"]
            assert await job.wait() == Outcome(4)
    finally:
        await job.aclose()
    await settled(lab)


async def test_leaving_at_any_moment_leaves_nothing(lab: Lab) -> None:
    """Before its start, in the middle of it, and right after it."""
    for step in range(8):
        starting = asyncio.create_task(lab.start("sleep 300"))
        await asyncio.sleep(step * 0.3)  # the moment is the case; nothing is waited for
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            job = await starting
            async with asyncio.timeout(PATIENCE):
                await job.aclose()
    await settled(lab)
    assert await lab.run("echo alive") == (b"alive\n", Outcome(0))
