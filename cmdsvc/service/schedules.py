"""Schedules: when commands run by themselves, and the clock that has them do it."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from cmdsvc import cron
from cmdsvc.access import Action
from cmdsvc.cron import Cron
from cmdsvc.errors import CmdError, UsageError
from cmdsvc.model import Delivery, Identity, Schedule
from cmdsvc.service.commands import Commands
from cmdsvc.service.invocation import run_id
from cmdsvc.store import Arrival, Store, Ticked

log = logging.getLogger("cmdsvc.schedule")

PERIOD = 30.0
"""Seconds after which the store is asked anyway: another server may have changed something."""
SOON = 5.0
"""Seconds until it is asked again where it could not answer."""
SET_BACK = timedelta(hours=3)
"""From so far in the future the moment that was dealt with last is no clock's that was right: what
is less is a correction, after which nothing is to run twice (cron(8))."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A schedule as a caller sees it."""

    schedule: Schedule
    next_at: datetime


@dataclass(frozen=True, slots=True)
class _Entry:
    schedule: Schedule
    cron: Cron
    base: datetime
    """The moment after which the next one is to be dealt with."""
    due: datetime


class Schedules:
    """`wake` is called when something was put into the queue of deliveries.

    `catch_up`: seconds that a moment may be late and runs nevertheless (a few always). `most`: deliveries of a
    command that may wait. `now` is the clock on the wall.
    """

    def __init__(
        self,
        store: Store,
        commands: Commands,
        wake: Callable[[], None],
        *,
        catch_up: float,
        most: int,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._commands = commands
        self._wake = wake
        self._catch_up = timedelta(seconds=catch_up)
        self._most = most
        self._now = now
        self._entries: dict[str, _Entry] = {}
        self._heap: list[tuple[datetime, str]] = []
        """Moments and commands; what does not agree with `_entries` is of the past."""
        self._changed = asyncio.Event()

    async def planned(self, identity: Identity, name: str) -> Planned | None:
        """What is in force for a command, the owner's or the script's own."""
        command = await self._commands.find(identity, name, Action.SCHEDULE)
        schedule = await self._store.schedule(command.owner, command.name)
        if schedule is None:
            return None
        return Planned(schedule, _read(schedule).after(max(self._base(schedule), self._now())))

    async def set(
        self, identity: Identity, name: str, expression: str, zone: str, *, overlap: bool
    ) -> Planned:
        """Instead of what was in force. UsageError (64) says what is wrong with the words."""
        command = await self._commands.find(identity, name, Action.SCHEDULE)
        try:
            read = cron.parse(expression, zone)
        except ValueError as error:
            raise UsageError(
                str(error), 'write "MINUTE HOUR DAY MONTH WEEKDAY", as in crontab(5)'
            ) from None
        now = self._now()
        schedule = Schedule(
            command.full_name, read.expression, zone, own=True, since=now, overlap=overlap
        )
        await self._store.set_schedule(schedule, by=identity.user)
        self._changed.set()
        return Planned(schedule, read.after(now))

    async def remove(self, identity: Identity, name: str) -> bool:
        """Whether one was set; the script's own, if it has one, holds from now on."""
        command = await self._commands.find(identity, name, Action.SCHEDULE)
        removed = await self._store.remove_schedule(command.owner, command.name, by=identity.user)
        self._changed.set()
        return removed

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """The clock goes, behind what is inside."""
        task = asyncio.create_task(self._go_on())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def check(self) -> None:
        """Loads what is in force, and deals with every moment that has come."""
        await self._load()
        await self._deal()

    async def _go_on(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            try:
                await self.check()
            except Exception:
                log.exception("schedules could not be read")
                await self._wait(SOON)
                continue
            until = loop.time() + PERIOD
            while not self._changed.is_set() and (left := until - loop.time()) > 0:
                await self._wait(min(left, self._until_due()))
                await self._deal()

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    def _until_due(self) -> float:
        if not self._heap:
            return PERIOD
        return max(0.0, (self._heap[0][0] - self._now()).total_seconds())

    async def _load(self) -> None:
        """What the store says is in force; what has not changed keeps its moment."""
        entries: dict[str, _Entry] = {}
        for schedule in await self._store.schedules():
            known = self._entries.get(schedule.command)
            base = self._base(schedule)
            if known is None or known.schedule != schedule or base < known.base:
                try:
                    known = self._entry(schedule)
                except ValueError:
                    log.warning("%s: its schedule cannot be read", schedule.command)
                    continue
                await asyncio.sleep(0)  # a moment may take long to find
            entries[schedule.command] = known
        self._entries = entries
        self._heap = [(entry.due, command) for command, entry in entries.items()]
        heapq.heapify(self._heap)

    async def _deal(self) -> None:
        while self._heap and self._heap[0][0] <= self._now():
            due, command = heapq.heappop(self._heap)
            entry = self._entries.get(command)
            if entry is None or entry.due != due:
                continue
            del self._entries[command]
            try:
                await self._tick(entry)
            except CmdError:  # it is loaded again, and not too late
                log.exception("a schedule's moment was not dealt with")

    async def _tick(self, entry: _Entry) -> None:
        """Has the last of the moments that have come run, if it is not too late."""
        now = self._now()
        at = entry.cron.last(entry.base, now) or entry.due
        late = now - at > max(self._catch_up, timedelta(seconds=SOON))
        arrival = None if late else _arrival(entry.schedule, at, now)
        ticked = await self._store.tick(entry.schedule, at, arrival, most=self._most)
        if ticked is Ticked.TAKEN:  # by another server, or changed: it is loaded again
            self._changed.set()
            return
        following = self._entry(replace(entry.schedule, last_at=at, last=ticked.name.lower()))
        self._entries[entry.schedule.command] = following
        heapq.heappush(self._heap, (following.due, entry.schedule.command))
        if ticked is Ticked.BEGUN:
            self._wake()
        log.info(
            "schedule",
            extra={
                "fields": {
                    "command": entry.schedule.command,
                    "at": at.isoformat(),
                    "became": ticked.name.lower(),
                    "delivery": arrival.delivery.id if ticked is Ticked.BEGUN and arrival else "",
                }
            },
        )

    def _entry(self, schedule: Schedule) -> _Entry:
        read, base = _read(schedule), self._base(schedule)
        return _Entry(schedule, read, base, read.after(base))

    def _base(self, schedule: Schedule) -> datetime:
        last = max(schedule.since, schedule.last_at or schedule.since)
        return last if last - self._now() < SET_BACK else self._now()


def _read(schedule: Schedule) -> Cron:
    return cron.parse(schedule.expression, schedule.zone)


def _arrival(schedule: Schedule, at: datetime, now: datetime) -> Arrival:
    moment = f"{at:%Y-%m-%dT%H:%M:%SZ}"
    delivery = Delivery(
        id=run_id(),
        command=schedule.command,
        hook="",
        event=moment,
        received_at=now,
        due_at=now,
    )
    return Arrival(delivery, None, moment, None)
