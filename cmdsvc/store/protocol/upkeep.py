"""The record, the notice, how much is kept, and backups."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cmdsvc.model import Entry


@dataclass(frozen=True, slots=True)
class Notice:
    """What the operator says to everyone; `closed`: no new runs meanwhile (75)."""

    text: str
    closed: bool = False


class Upkeep(Protocol):
    async def record(self, entry: Entry) -> None:
        """Adds a line to the record, for what is not kept here (a key file, a prune)."""
        ...

    async def entries(self, *, limit: int = 100) -> list[Entry]:
        """The record, newest first, at most 1000."""
        ...

    async def usage(self) -> dict[str, int]:
        """How much is kept.

        Rows as users, commands, versions, runs, tokens, entries, outputs, deliveries; bytes as
        source_bytes, output_bytes.
        """
        ...

    async def notice(self) -> Notice | None: ...

    async def set_notice(self, notice: Notice | None, *, by: str) -> None: ...

    async def backup(self, path: Path) -> None:
        """A whole copy of the store as a SQLite file at `path`, while everything goes on."""
        ...
