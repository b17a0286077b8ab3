"""Schedules: what owners set and scripts say, and the moments that were dealt with."""

from __future__ import annotations

from datetime import datetime
from enum import Enum, auto
from typing import Protocol

from cmdsvc.model import Schedule
from cmdsvc.store.protocol.deliveries import Arrival


class Ticked(Enum):
    """What became of a schedule's moment."""

    BEGUN = auto()
    TAKEN = auto()
    """Another server has dealt with it, or it is not scheduled any more."""
    SKIPPED = auto()
    """The run before has not ended, or too many wait; noted."""
    MISSED = auto()
    """As it was asked for; noted."""


class Schedules(Protocol):
    async def schedules(self) -> list[Schedule]:
        """All that are in force: the owner's where there is one, else the script's own."""
        ...

    async def schedule(self, owner: str, name: str) -> Schedule | None: ...

    async def set_schedule(self, schedule: Schedule, *, by: str) -> None:
        """As the owner's. NotFoundError where the command is gone."""
        ...

    async def remove_schedule(self, owner: str, name: str, *, by: str) -> bool:
        """The owner's; then the script's own holds again, where it has one."""
        ...

    async def tick(
        self, schedule: Schedule, at: datetime, arrival: Arrival | None, *, most: int
    ) -> Ticked:
        """Deals with the planned moment `at`, once among all servers; None: it is noted as missed."""
        ...
