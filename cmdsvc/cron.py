"""When something is due: expressions of crontab(5) in a time zone; pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

MAX_EXPRESSION = 200
"""Characters."""

NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_FIELD = re.compile(r"[0-9A-Za-z*,/-]+")
_ZONE = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,2}")
_START = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Cron:
    """An expression that comes again and again, in a zone."""

    expression: str
    zone: str
    _fields: str

    def after(self, moment: datetime) -> datetime:
        """The first time after `moment`, in UTC.

        As cron(8) does it: what has fixed hours runs at the jump where daylight saving skips its
        time, and once where its time comes twice; what runs every hour goes on with the clock.
        """
        for found in CronSim(self._fields, moment.astimezone(_zone(self.zone))):
            if (due := found.astimezone(UTC)) > moment:
                return due
        raise AssertionError("it comes again, as was tried when it was read")

    def last(self, after: datetime, until: datetime) -> datetime | None:
        """The last time after one moment and not after the other, in UTC."""
        reach = timedelta(minutes=1)
        while (found := self.after(max(after, until - reach))) > until:
            if until - reach <= after:
                return None
            reach *= 2
        while (later := self.after(found)) <= until:
            found = later
        return found


def parse(expression: str, zone: str = "UTC") -> Cron:
    """Raises ValueError, with what is wrong in words."""
    words = expression.split()
    if len(expression) > MAX_EXPRESSION:
        raise ValueError(f"longer than {MAX_EXPRESSION} characters")
    if len(words) == 1 and words[0].startswith("@"):
        try:
            words = NICKNAMES[words[0].lower()].split()
        except KeyError:
            raise ValueError(f"there are {', '.join(sorted(NICKNAMES))}") from None
    if len(words) != 5:
        raise ValueError("five fields are expected: minute, hour, day, month, day of the week")
    if not all(map(_FIELD.fullmatch, words)):
        raise ValueError("a field has digits, names, and * , - /")
    _zone(zone)
    fields = " ".join(words)
    try:
        sim = CronSim(fields, _START)
        next(sim)
    except StopIteration:
        raise ValueError("it never comes") from None
    except CronSimError as error:
        if _possible(words):
            raise ValueError("it never comes") from None
        raise ValueError(f"it cannot be read: {error}".lower()) from None
    if not words[1].startswith("*"):
        # Of fixed hours, so that its minutes are taken one by one: as "*/30" they would be of what
        # runs every hour.
        fields = " ".join([",".join(map(str, sorted(sim.minutes))), *words[1:]])
    return Cron(" ".join(expression.split()), zone, fields)


def _possible(words: list[str]) -> bool:
    """Whether each field by itself can be read: together they do not come."""
    try:
        CronSim(" ".join([*words[:3], "*", words[4]]), _START)
        CronSim(" ".join(["*", "*", "*", *words[3:]]), _START)
    except CronSimError:
        return False
    return True


@cache
def _zone(name: str) -> ZoneInfo:
    if name != "UTC" and not _ZONE.fullmatch(name):
        raise ValueError("a zone is written like Europe/Vienna")
    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError):
        raise ValueError(f"there is no time zone {name}") from None
