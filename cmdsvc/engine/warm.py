"""Sandboxes that are complete but for their task: each is for one run, and made ahead of it."""

from __future__ import annotations

import asyncio
import collections
import logging
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, Protocol, TypeVar

from cmdsvc.errors import CmdError

log = logging.getLogger(__name__)

IDLE = 300.0
"""Seconds after which there are no more of a kind than were taken within them."""
DELAY = 0.05
"""Seconds before more are made: the run that took one has the processor first."""


class Member(Protocol):
    """A sandbox that waits for its task."""

    @property
    def kind(self) -> Hashable:
        """What it was made for: all that is not said when a run begins."""
        ...

    @property
    def alive(self) -> bool:
        """False where it is known to have ended."""
        ...

    async def aclose(self) -> None:
        """Ends it, and lets go of what it holds."""
        ...


K = TypeVar("K", bound=Hashable)
M = TypeVar("M", bound=Member)


class Warm(Generic[K, M]):
    """Sandboxes that wait, at most `most`; `make` makes one more, slowly.

    As many wait of a kind as were wanted and not there: each time that there is none one more is
    made from then on. Kinds that were not used for the longest time give way, but for one of each
    kind that `want` asks for.
    """

    def __init__(self, make: Callable[[K], Awaitable[M]], most: int) -> None:
        self._make = make
        self._most = most
        self._waiting: list[M] = []
        self._wanted: dict[K, int] = {}
        """The kind that was taken last is the last."""
        self._taken: collections.Counter[K] = collections.Counter()
        """Since the last `_age`."""
        self._named: set[K] = set()
        """What `want` asked for since then."""
        self._named_before: set[K] = set()
        """The same, of the time before: with the others `most` at most, so that somebody can give way."""
        self._failed: set[K] = set()
        """What could not be made, and was told."""
        self._filling: asyncio.Task[None] | None = None
        self._ageing: asyncio.TimerHandle | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    def __len__(self) -> int:
        return sum(one.alive for one in self._waiting)

    def take(self, kind: K) -> M | None:
        """One of that kind, which is the caller's then."""
        if self._closed or not self._most:
            return None
        found = next((one for one in self._waiting if one.kind == kind and one.alive), None)
        if found is not None:
            self._waiting.remove(found)
        self._taken[kind] += 1
        self._demand(kind, self._wanted.get(kind, 0) + (found is None))
        return found

    def want(self, kind: K) -> None:
        """Has one of that kind wait at least, for IDLE or longer.

        Nothing where there are `most` of other kinds that are so wanted, or none are to wait.
        """
        named = self._all_named
        if self._closed or (kind not in named and len(named) >= self._most):
            return
        self._named.add(kind)
        self._taken[kind] = max(self._taken[kind], 1)
        self._demand(kind, max(self._wanted.get(kind, 0), 1))

    async def drop(self, which: Callable[[K], bool] = lambda _: True) -> None:
        """Ends those of some kinds, or all; what is being made of them as well."""
        for kind in list(filter(which, self._wanted)):
            del self._wanted[kind]
        for named in (self._named, self._named_before):
            named -= {kind for kind in named if which(kind)}
        if (filling := self._filling) is not None:
            filling.cancel()
            await asyncio.wait([filling])
            if self._filling is filling:  # it had not begun, and could not say so
                self._filling = None
        self._trim()
        while self._closing:
            await asyncio.wait(self._closing)
        if self._wanted and not self._closed and self._filling is None:
            self._filling = asyncio.ensure_future(self._fill())

    async def aclose(self) -> None:
        self._closed = True
        if self._ageing is not None:
            self._ageing.cancel()
            self._ageing = None
        await self.drop()

    @property
    def _all_named(self) -> set[K]:
        return self._named | self._named_before

    def _demand(self, kind: K, count: int) -> None:
        self._wanted.pop(kind, None)
        self._wanted[kind] = min(count, self._most)
        while sum(self._wanted.values()) > self._most:
            self._want_less()
        if self._filling is None:
            self._filling = asyncio.ensure_future(self._fill())
        if self._ageing is None:
            self._ageing = asyncio.get_running_loop().call_later(IDLE, self._age)

    def _want_less(self) -> None:
        named = self._all_named
        kind = next(kind for kind, count in self._wanted.items() if count > int(kind in named))
        self._wanted[kind] -= 1
        if not self._wanted[kind]:
            del self._wanted[kind]

    def _age(self) -> None:
        self._ageing = None
        for kind in list(self._wanted):
            self._wanted[kind] = min(self._wanted[kind], self._taken[kind])
            if not self._wanted[kind]:
                del self._wanted[kind]
        self._taken.clear()
        self._named_before, self._named = self._named, set()
        self._failed &= self._named_before
        self._trim()
        if self._wanted:
            self._ageing = asyncio.get_running_loop().call_later(IDLE, self._age)

    def _trim(self) -> None:
        """Ends those that are dead, and those more than are wanted."""
        left: collections.Counter[Hashable] = collections.Counter(self._wanted)
        keep = []
        for one in self._waiting:
            if one.alive and left[one.kind]:
                left[one.kind] -= 1
                keep.append(one)
            else:
                task = asyncio.ensure_future(one.aclose())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
        self._waiting = keep

    def _missing(self) -> K | None:
        have = collections.Counter(one.kind for one in self._waiting)
        return next((k for k, n in reversed(self._wanted.items()) if have[k] < n), None)

    async def _fill(self) -> None:
        try:
            await asyncio.sleep(DELAY)
            self._trim()
            while (kind := self._missing()) is not None:
                if len(self._waiting) >= self._most:  # another kind was wanted more meanwhile
                    self._trim()
                try:
                    made = await self._make(kind)
                except (CmdError, LookupError) as error:
                    if kind not in self._failed:
                        log.warning("no sandbox could be prepared: %s", error)
                    self._failed.add(kind)
                    self._wanted.pop(kind, None)
                    continue
                self._failed.discard(kind)
                self._waiting.append(made)
        finally:
            self._filling = None
