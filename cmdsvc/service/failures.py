"""Addresses from which too many logins failed lately."""

from __future__ import annotations

import time
from collections import OrderedDict, deque

MOST = 30
"""Failed logins from one address within WINDOW, after which it is not listened to."""
WINDOW = 60.0
"""Seconds."""
ADDRESSES_MAX = 10_000
"""Addresses remembered; those that failed longest ago are forgotten first."""


class Failures:
    def __init__(self) -> None:
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def note(self, address: str) -> None:
        """A client from there ended without having logged in, though it tried."""
        times = self._times.setdefault(address, deque(maxlen=MOST))
        times.append(time.monotonic())
        self._times.move_to_end(address)
        if len(self._times) > ADDRESSES_MAX:
            self._times.popitem(last=False)

    def too_many(self, address: str) -> bool:
        times = self._times.get(address)
        return times is not None and len(times) == MOST and time.monotonic() - times[0] < WINDOW
