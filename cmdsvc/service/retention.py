"""How long runs and their outputs are kept."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

from cmdsvc.errors import CmdError
from cmdsvc.store import Store

log = logging.getLogger("cmdsvc")

PERIOD = 3600.0
"""Seconds between two times that what is too old is removed."""


class Retention:
    """`runs_keep`: seconds after its end that a run is kept; `outputs_keep`: bytes of output in all."""

    def __init__(self, store: Store, runs_keep: float, outputs_keep: int) -> None:
        self._store = store
        self._runs_keep = timedelta(seconds=runs_keep)
        self._outputs_keep = outputs_keep

    async def retire(self, *, dry_run: bool = False) -> tuple[int, int]:
        """Removes what is too old or too much: how many runs, and how many bytes of output.

        `dry_run`: tells what it would remove.
        """
        retire = self._store.would_retire if dry_run else self._store.retire_runs
        return await retire(
            before=datetime.now(UTC) - self._runs_keep, bytes_kept=self._outputs_keep
        )

    @contextlib.asynccontextmanager
    async def regularly(self) -> AsyncIterator[None]:
        """At once and every hour, behind what is inside."""
        task = asyncio.create_task(self._go_on())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _go_on(self) -> None:
        while True:
            try:
                runs, size = await self.retire()
            except CmdError:  # there is a next time
                log.exception("old runs were not removed")
            else:
                if runs or size:
                    log.info("removed %d old runs and %d bytes of output", runs, size)
            await asyncio.sleep(PERIOD)
