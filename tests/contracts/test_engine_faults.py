"""Servers that die, and several on one machine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contracts import engine_host as host
from tests.contracts.engine_lab import PATIENCE, Lab, Progress, Transcript, marker
from tests.contracts.test_engine_ends import STUBBORN

pytestmark = pytest.mark.asyncio(loop_scope="session")


@contextlib.asynccontextmanager
async def server(
    lab: Lab, place: Path, instance: str, marks: list[str]
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Another process with an engine of its own and a run for each mark; killed in the end."""
    lab.instances.append(instance)
    given = {
        "engine": lab.name,
        "docker_host": lab.docker_host,
        "data_dir": str(place),
        "instance": instance,
        "base": lab.settings.sources.bases["alpine"],
        "script": STUBBORN,
        "lines": 4,
        "marks": marks,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.contracts.engine_child",
        json.dumps(given),
        cwd=Path(__file__).parents[2],
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        await says(process, "ready")
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        async with asyncio.timeout(PATIENCE):
            await process.communicate()


async def says(process: asyncio.subprocess.Process, word: str) -> None:
    assert process.stdout
    async with asyncio.timeout(PATIENCE):
        assert (await process.stdout.readline()).decode().strip() == word


def running(marks: list[str], besides: int) -> list[int]:
    """The marked processes, but for the server, whose own argument has all marks in it."""
    return [pid for mark in marks for pid in host.with_argument(mark) if pid != besides]


async def test_what_a_killed_server_left_is_removed(lab: Lab, place: Path) -> None:
    instance, marks = f"test-{secrets.token_hex(6)}", [marker() for _ in range(3)]
    async with server(lab, place, instance, marks) as process:
        sandboxed = running(marks, process.pid)
        assert len(sandboxed) >= 12
        family = host.descendants(process.pid)
        cgroups = {c for pid in [*sandboxed, *family] for c in host.cgroups_of(pid)}
        process.kill()
        await process.wait()
        async with lab.another(place, instance=instance) as own:
            assert running(marks, process.pid) == []
            left = {p: line for p, line in host.processes() if family.get(p) == line}
            assert left == {}
            assert not [folder for folder in cgroups if folder.exists()]
            assert await own.engine.has(own.recipe), "the layer was built, and stays"
            assert (await own.run("echo alive")).ok() == b"alive\n"
        assert own.traces() == {}


async def test_a_closed_engine_leaves_no_process(lab: Lab, place: Path) -> None:
    instance, marks = f"test-{secrets.token_hex(6)}", [marker() for _ in range(2)]
    async with server(lab, place, instance, marks) as process:
        assert process.stdin
        process.stdin.write(b"close\n")
        await says(process, "closed")
        assert running(marks, process.pid) == []
        assert host.descendants(process.pid) == {}


async def test_a_server_that_opens_leaves_the_others_alone(lab: Lab, place: Path) -> None:
    async with lab.job("echo ready; read -r x; echo $x; exit 3") as job:
        talk = Transcript(job)
        await talk.line()
        async with lab.another(place):
            await job.send(b"still here\n")
            assert await talk.line() == "still here"
        assert (await talk.end()).status == 3


async def test_an_engine_opens_again_with_what_it_built(lab: Lab, place: Path) -> None:
    instance = f"test-{secrets.token_hex(6)}"
    async with lab.another(place, instance=instance) as own:
        assert not await own.engine.has(own.recipe)
        await own.engine.build(own.recipe, Progress())
    for _ in range(2):
        async with lab.another(place, instance=instance) as own:
            assert await own.engine.has(own.recipe)
            assert (await own.run("echo here")).ok() == b"here\n"


async def test_check_works_while_closed(lab: Lab, place: Path) -> None:
    async with lab.another(place) as own:
        pass
    findings = await own.engine.check()
    assert findings
    assert not [f for f in findings if f.level == "error"]
