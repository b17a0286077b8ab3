"""What is kept of the output of runs, and how long that and they are kept."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from cmdsvc.model import Output


class Outputs(Protocol):
    async def keep_output(self, run_id: str, output: Output) -> None:
        """Replaces what is kept of the run's output."""
        ...

    async def output(self, run_id: str) -> Output | None: ...

    async def retire_runs(self, *, before: datetime, bytes_kept: int) -> tuple[int, int]:
        """How many runs, and how many bytes of output, were removed.

        Those are runs that ended before `before`, with their outputs; then the outputs kept
        longest, until all together are at most `bytes_kept`. It goes in small steps, each of them
        whole, and no run waits for more than one.
        """
        ...

    async def would_retire(self, *, before: datetime, bytes_kept: int) -> tuple[int, int]:
        """What `retire_runs` would remove now, in bytes of output at least."""
        ...
