"""Deliveries: stored, taken, ended, looked at, replayed, removed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from typing import Protocol

from cmdsvc.model import Delivery, State


class Taken(Enum):
    """What became of a delivery that is to be stored."""

    NEW = auto()
    REPEATED = auto()
    """It is here already: the sender sent it again."""
    FULL = auto()
    """Too many wait for this command; it is not stored."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A delivery to be stored. `hook_id` None: it is a schedule's."""

    delivery: Delivery
    hook_id: int | None
    same: str
    """What a repetition has too: the sender's id of it, or a digest."""
    window: float | None
    """Seconds for which an equal `same` is a repetition; None: as long as the first is kept."""


@dataclass(frozen=True, slots=True)
class Backlog:
    waiting: int
    running: int
    failed: int
    oldest: datetime | None
    """When the oldest that waits was received."""


class Deliveries(Protocol):
    async def accept(self, arrival: Arrival, *, most: int) -> tuple[Taken, str]:
        """Stores a delivery unless `most` of its command wait already; its id, or the first's.

        On return it survives a power failure. Several at once are one commit. NotFoundError where
        the command or the hook is gone.
        """
        ...

    async def claim(
        self, now: datetime, until: datetime, limit: int, *, apart: Collection[str] = ()
    ) -> list[Delivery]:
        """Takes what is due and nobody's, the earliest first, for this server until `until`.

        Nothing of the owners `apart`, who have enough for now.
        Each has its `attempt` counted up. What another server's lease on has run out is nobody's.
        Of an ordered hook only the first that is not ended is due. Two servers never get the same.
        """
        ...

    async def renew(self, ids: Collection[str], until: datetime) -> None:
        """Holds what was claimed for longer."""
        ...

    async def begin_attempt(self, delivery_id: str, attempt: int, run_id: str) -> bool:
        """Notes the run; False where the delivery is not (any more) this server's and attempt's."""
        ...

    async def end_attempt(
        self,
        delivery_id: str,
        attempt: int,
        state: State,
        *,
        due_at: datetime | None = None,
        exit_status: int | None = None,
        message: str = "",
        uncounted: bool = False,
    ) -> bool:
        """DONE, FAILED, or WAITING until `due_at`. False as `begin_attempt`; then nothing changed.

        `uncounted`: the attempt did not really begin, and does not count.
        """
        ...

    async def reclaim(self, now: datetime) -> int:
        """Makes what this server held when it died due at once. At start-up."""
        ...

    async def next_due(self) -> datetime | None:
        """When there is something to claim next, leases that run out included."""
        ...

    async def deliveries(
        self, owner: str, name: str, *, hook: str | None = None, limit: int = 20
    ) -> list[Delivery]:
        """Newest first, at most 1000, without body and environment."""
        ...

    async def replay(
        self, owner: str, name: str, *, delivery: str | None, now: datetime, by: str
    ) -> int:
        """Makes an ended delivery, or (None) all failed ones, due again; how many that are.

        Attempts are counted anew.
        """
        ...

    async def backlog(self) -> Backlog: ...

    async def retire_deliveries(self, *, before: datetime) -> int:
        """Removes what ended before `before`, in small steps."""
        ...
