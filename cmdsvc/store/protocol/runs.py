"""Runs: begun, ended, looked at."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from cmdsvc.model import Outcome, Run


class Runs(Protocol):
    async def begin_run(self, run: Run) -> None:
        """Records a run, not ended, as this server's. Call it before the sandbox starts.

        Once it returned, the record outlives the server's own death, kill -9 included. A power
        failure may take the newest records, and with them the runs that they tell of.
        """
        ...

    async def end_run(self, run_id: str, ended_at: datetime, outcome: Outcome) -> None:
        """Kept as `begin_run` is. The first end of a run stays; that of an unknown run is nothing.

        So it may follow a `begin_run` that was cancelled.
        """
        ...

    async def mark_lost(self, now: datetime) -> int:
        """Ends, as lost, the runs of this server that have no end; returns how many they were.

        Its requests under way (`begin_answer`) are then answered: 500, with nothing.
        To be called at start-up, before any run.
        """
        ...

    async def run(self, run_id: str) -> Run | None: ...

    async def runs(
        self, *, user: str | None = None, command: str | None = None, limit: int = 20
    ) -> list[Run]:
        """The newest first, at most 1000: of a user, of a command (OWNER/NAME), of both, or all."""
        ...

    async def runs_seen_by(
        self, user: str, *, command: str | None = None, limit: int = 20
    ) -> list[Run]:
        """The newest first: the user's own, and all of commands that he owns or administers."""
        ...
