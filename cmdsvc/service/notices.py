"""What the operator at the machine tells a server that runs, by way of the store."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

from cmdsvc.errors import CmdError
from cmdsvc.model import Entry
from cmdsvc.service.runs import Runs
from cmdsvc.store import Notice, Store

log = logging.getLogger("cmdsvc")

PERIOD = 2.0
"""Seconds between two looks."""
NEWEST = 100
"""Entries of the record that are read in one look; more where it has that many new ones."""
MOST = 1000

OUST = "user-oust"
"""The entry of the record that has a user's runs and connections ended."""


class Notices:
    """The notice in force, and users who are to leave at once."""

    def __init__(self, store: Store, runs: Runs) -> None:
        self._store = store
        self._runs = runs
        self._newest: Entry | None = None
        self._failing = False
        self.current: Notice | None = None
        self.ousting: list[Callable[[str], None]] = []
        """What ends a user's connections."""

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Looks every few seconds, behind what is inside. What there is at first is known before."""
        self._newest = next(iter(await self._store.entries(limit=1)), None)
        self._set(await self._store.notice())
        task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(PERIOD)
            try:
                self._set(await self._store.notice())
                for entry in await self._fresh():
                    if entry.action == OUST and not entry.user:
                        await self._oust(entry.subject)
            except CmdError as error:
                if not self._failing:
                    log.warning("the operator's notices cannot be read: %s", error)
                self._failing = True
            else:
                self._failing = False

    def _set(self, notice: Notice | None) -> None:
        if notice != self.current:
            log.info("notice: %s", notice.text if notice else "none any more")
        self.current = notice
        self._runs.closed = notice.text if notice and notice.closed else ""

    async def _fresh(self) -> list[Entry]:
        """The entries since the last look, the oldest first."""
        for limit in (NEWEST, MOST):
            entries = await self._store.entries(limit=limit)
            if self._newest in entries or len(entries) < limit:
                break
        fresh = []
        for entry in entries:
            if entry == self._newest:
                break
            fresh.append(entry)
        if entries:
            self._newest = entries[0]
        return fresh[::-1]

    async def _oust(self, user: str) -> None:
        log.info("ending what goes on for a user who was removed", extra={"fields": {"user": user}})
        try:
            await self._runs.stop(user, by="the operator")
        finally:
            for end in self.ousting:
                end(user)
