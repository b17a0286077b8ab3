"""What runs use, for people who look on."""

from __future__ import annotations

import asyncio

import pytest

from tests.contracts.engine_lab import MB, PATIENCE, Lab, Transcript

pytestmark = pytest.mark.asyncio(loop_scope="session")

BUSY = """\
x=$(head -c 16777216 /dev/zero | tr '\\0' x)
i=0; while [ $i -lt 300000 ]; do i=$((i + 1)); done
echo ready
sleep 300
"""


async def test_of_a_run_that_goes_on(lab: Lab) -> None:
    invocation = lab.invocation(BUSY)
    before = await lab.engine.usage()
    assert invocation.run_id not in before
    job = await lab.engine.start(invocation)
    try:
        assert await Transcript(job).line() == "ready"
        async with asyncio.timeout(PATIENCE):
            usage = (await lab.engine.usage())[invocation.run_id]
        if not await lab.shortcoming("memory"):
            assert usage.memory is not None
            assert 16 * MB <= usage.memory <= lab.limits.memory
            assert usage.cpu_seconds is not None
            assert 0.01 < usage.cpu_seconds < PATIENCE
    finally:
        await job.aclose()
    assert invocation.run_id not in await lab.engine.usage()


async def test_of_several_at_once(lab: Lab) -> None:
    invocations = [lab.invocation("echo ready; sleep 300") for _ in range(3)]
    jobs = await asyncio.gather(*map(lab.engine.start, invocations))
    try:
        for job in jobs:
            assert await Transcript(job).line() == "ready"
        async with asyncio.timeout(PATIENCE):
            usage = await lab.engine.usage()
        if not await lab.shortcoming("memory"):
            assert {invocation.run_id for invocation in invocations} <= usage.keys()
    finally:
        await asyncio.gather(*(job.aclose() for job in jobs))
