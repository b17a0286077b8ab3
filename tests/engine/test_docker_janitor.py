"""Containers that wait to be removed are bounded by those that are made."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cmdsvc.engine.docker.http import Api
from cmdsvc.engine.docker.janitor import _BACKLOG, Janitor
from tests.fakes import turns

pytestmark = pytest.mark.asyncio


class Slow(Api):
    """An engine that removes nothing before it is let."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.go = asyncio.Semaphore(0)
        self.made = 0

    async def call(self, method: str, path: str, **_: Any) -> Any:
        if method == "DELETE":
            self.asked.set()
            await self.go.acquire()
            return None
        self.made += 1
        return {"Id": "another"}


async def test_none_is_made_while_too_many_wait_to_be_removed():
    api = Slow()
    janitor = Janitor(api)
    for number in range(_BACKLOG - 1):
        janitor.discard(f"{number}")
    assert await janitor.create({}) == "another"
    for number in range(3):
        janitor.discard(f"another {number}")
    await api.asked.wait()
    making = asyncio.create_task(janitor.create({}))
    for left in (_BACKLOG + 1, _BACKLOG):
        api.go.release()
        await turns()
        assert len(janitor._removals) == left
        assert api.made == 1
    for _ in range(_BACKLOG):
        api.go.release()
    assert await making == "another"
    assert api.made == 2
    await janitor.aclose()
