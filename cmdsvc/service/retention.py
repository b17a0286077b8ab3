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
ANSWERS_KEPT = timedelta(days=1)
"""How long an Idempotency-Key counts."""


class Retention:
    """`runs_keep`: seconds after its end that a run is kept; `outputs_keep`: bytes of output in all.

    `deliveries_keep`: seconds after its end that a delivery is.
    """

    def __init__(
        self, store: Store, runs_keep: float, outputs_keep: int, deliveries_keep: float
    ) -> None:
        self._store = store
        self._deliveries_keep = timedelta(seconds=deliveries_keep)
        self._runs_keep = timedelta(seconds=runs_keep)
        self._outputs_keep = outputs_keep

    async def retire(self, *, dry_run: bool = False) -> tuple[int, int]:
        """Removes what is too old or too much: how many runs, and how many bytes of output.

        `dry_run`: tells what it would remove.
        """
        now = datetime.now(UTC)
        before = now - self._runs_keep
        if dry_run:
            return await self._store.would_retire(before=before, bytes_kept=self._outputs_keep)
        await self._store.retire_deliveries(before=now - self._deliveries_keep)
        await self._store.retire_answers(before=now - ANSWERS_KEPT)
        return await self._store.retire_runs(before=before, bytes_kept=self._outputs_keep)

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
