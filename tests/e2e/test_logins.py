"""Good logins, many at a time: what an address, a team behind one or a CI system, may well need."""

from __future__ import annotations

import asyncio
import time

import asyncssh
import pytest

from tests.e2e.raw_client import options, whoami
from tests.e2e.service_lab import Service

pytestmark = pytest.mark.any_engine

A_SECOND = 20


async def login(service: Service) -> str:
    async with asyncssh.connect(**options(service)) as conn:
        return await whoami(conn)


async def test_at_once(service: Service):
    """Twice as many as in a second: a slow moment drives them together."""
    assert await asyncio.gather(*(login(service) for _ in range(2 * A_SECOND))) == [
        "alice" for _ in range(2 * A_SECOND)
    ]


@pytest.mark.slow
async def test_for_longer_than_failed_ones_are_counted(service: Service):
    begun = time.monotonic()

    async def when_due(number: int) -> str:
        await asyncio.sleep(begun + number / A_SECOND - time.monotonic())
        return await login(service)

    said = await asyncio.gather(*(when_due(number) for number in range(10 * A_SECOND)))
    assert set(said) == {"alice"}
