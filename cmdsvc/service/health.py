"""Whether the service can do its work: for who sends it requests, or sends them elsewhere."""

from __future__ import annotations

import asyncio
import time

from cmdsvc.engine import Engine
from cmdsvc.errors import CmdError
from cmdsvc.service.runs import Runs
from cmdsvc.store import Store

FRESH = 5.0
"""Seconds that an answer holds: anybody may ask, and store and engine have other work."""
PATIENCE = 5.0
"""Seconds that each of them has."""


class Health:
    def __init__(self, store: Store, engine: Engine, runs: Runs) -> None:
        self._store = store
        self._engine = engine
        self._runs = runs
        self._found: list[str] = []
        self._looked = -FRESH
        self._looking = asyncio.Lock()

    async def faults(self) -> list[str]:
        """Why it cannot; none where it can."""
        if self._runs.draining:
            return ["it is shutting down"]
        async with self._looking:
            if time.monotonic() - self._looked >= FRESH:
                self._found = [*await self._of_store(), *await self._of_engine()]
                self._looked = time.monotonic()
        return self._found

    async def _of_store(self) -> list[str]:
        try:
            async with asyncio.timeout(PATIENCE):
                await self._store.notice()
        except (CmdError, TimeoutError):
            return ["the store does not answer"]
        return []

    async def _of_engine(self) -> list[str]:
        try:
            async with asyncio.timeout(PATIENCE):
                findings = await self._engine.check()
        except (CmdError, TimeoutError):
            return ["the engine does not answer"]
        return ["the engine does not work"] if any(f.level == "error" for f in findings) else []
