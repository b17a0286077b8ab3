"""Containers that are made ahead, one for each run that may come: taken once, never used again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from cmdsvc.engine import Invocation
from cmdsvc.engine.docker import sandbox
from cmdsvc.engine.docker.http import Api, ApiError
from cmdsvc.engine.docker.janitor import Janitor
from cmdsvc.engine.docker.sandbox import EndedError, Handed, Shape, Waiting
from cmdsvc.errors import EngineError

log = logging.getLogger(__name__)

BURST: Final = 5.0
"""Seconds: runs that begin within them are to find a container each."""

AGE: Final = 600.0
"""Seconds without a burst as large after which half as many are kept, in the end none."""

_CALM: Final = 0.05
"""Seconds after a run's start in which none is made: the run needs the processors."""

_PAUSES: Final = (0.5, 30.0)
"""Seconds between two attempts, the first and the longest, while the engine cannot be reached."""

_LOOK: Final = 1.0
"""Seconds that the engine has to say whether a container goes on."""


@dataclass(slots=True)
class _Use:
    """Of one shape: how many runs came together lately."""

    depth: int
    since: float
    """When as many last came together, or when it was last halved."""
    begun: float
    """When the burst that goes on began, and..."""
    count: int
    """...how many it has."""


class Demand:
    """How many containers of each shape the runs of late would have needed; at most `most`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._uses: dict[Shape, _Use] = {}
        """The latest used last."""

    def note(self, shape: Shape, now: float) -> None:
        """A run of that shape begins."""
        use = self._uses.pop(shape, None) or _Use(0, now, now, 0)
        if now - use.begun > BURST:
            use.begun, use.count = now, 0
        use.count += 1
        if use.count >= use.depth:
            use.depth, use.since = min(use.count, self._most), now
        self._uses[shape] = use
        if len(self._uses) > self._most:
            self.forget(next(iter(self._uses)))

    def forget(self, shape: Shape) -> None:
        self._uses.pop(shape, None)

    def of(self, image: str) -> list[Shape]:
        """The shapes that stand on an image."""
        return [shape for shape in self._uses if shape.image == image]

    def wanted(self, now: float) -> dict[Shape, int]:
        """How many of each: one of every shape, the latest used first, then a second one, ..."""
        for shape, use in list(self._uses.items()):
            while use.depth and now - use.since >= AGE:
                use.depth, use.since = use.depth // 2, use.since + AGE
            if not use.depth:
                self.forget(shape)
        wanted: dict[Shape, int] = {}
        left = self._most
        for level in range(1, self._most + 1):
            for shape in [one for one, use in reversed(self._uses.items()) if use.depth >= level]:
                if left:
                    wanted[shape] = level
                    left -= 1
        return wanted

    def next_change(self) -> float | None:
        """When less will be wanted if no run comes; None where nothing is."""
        return min((use.since + AGE for use in self._uses.values()), default=None)


class Pool:
    """Keeps what `Demand` says ready, made in the background while no run is about to begin."""

    def __init__(
        self,
        api: Api,
        janitor: Janitor,
        make: Callable[[Shape], Awaitable[Waiting]],
        most: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._janitor = janitor
        self._make = make
        self._demand = Demand(most)
        self._clock = clock
        self._ready: dict[Shape, deque[Waiting]] = {}
        self._cold = 0
        """Runs that wait for a container of their own."""
        self._last = 0.0
        """When a run last began."""
        self._moved = asyncio.Event()
        self._filling: asyncio.Task[None] | None = None
        self._making: Shape | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def ready(self) -> int:
        """How many wait."""
        return sum(map(len, self._ready.values()))

    async def give(self, shape: Shape, invocation: Invocation) -> Handed | None:
        """Hands a run over to one that waits; None where none does, nothing has begun then.

        EngineError where it cannot be told whether the run has begun.
        """
        self._last = self._clock()
        self._demand.note(shape, self._last)
        try:
            while waiting := self._take(shape):
                try:
                    return await sandbox.give(self._api, waiting, invocation)
                except BaseException as error:
                    await self._put_away(waiting)
                    if not isinstance(error, EndedError) or await self._goes_on(waiting):
                        raise
            return None
        finally:
            self.tend()

    @contextmanager
    def cold_start(self) -> Iterator[None]:
        """While it lasts none is made ahead."""
        self._cold += 1
        try:
            yield
        finally:
            self._cold -= 1
            self._moved.set()

    def tend(self) -> None:
        """Removes what is not wanted any more, and has made what is."""
        wanted = self._demand.wanted(self._clock())
        for shape, ready in list(self._ready.items()):
            while len(ready) > wanted.get(shape, 0):
                self._janitor.spawn(self._put_away(ready.popleft()))
            if not ready:
                del self._ready[shape]
        if self._filling is None and self._missing() is not None:
            self._filling = asyncio.ensure_future(self._fill())
            self._filling.add_done_callback(self._filled)
        if self._timer is not None:
            self._timer.cancel()
        change = self._demand.next_change()
        if change is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(change - self._clock(), 0) + 1, self.tend)

    async def drop(self, *images: str) -> None:
        """Removes those that stand on one of `images`, which can itself be removed then."""
        shapes = [shape for image in images for shape in self._demand.of(image)]
        for shape in shapes:
            self._demand.forget(shape)
        if self._filling is not None and self._making in shapes:
            self._filling.cancel()
            await asyncio.wait([self._filling])
        self.tend()
        if shapes:
            await self._janitor.settle()

    async def aclose(self) -> None:
        self._demand = Demand(0)
        if self._filling is not None:
            self._filling.cancel()
            await asyncio.wait([self._filling])
        self.tend()

    def _take(self, shape: Shape) -> Waiting | None:
        ready = self._ready.get(shape)
        return ready.pop() if ready else None

    async def _put_away(self, waiting: Waiting) -> None:
        waiting.close()
        await self._janitor.discard(waiting.attached.container)

    async def _goes_on(self, waiting: Waiting) -> bool:
        """Whether a container that seemed to have ended may run: what cannot be told, may be."""
        try:
            found = await self._api.call(
                "GET", f"/containers/{waiting.attached.container}/json", timeout=_LOOK
            )
        except ApiError as error:
            return error.status != 404
        except EngineError:
            return True
        return bool(found["State"]["Running"])

    def _missing(self) -> Shape | None:
        for shape, number in self._demand.wanted(self._clock()).items():
            if len(self._ready.get(shape, ())) < number:
                return shape
        return None

    async def _fill(self) -> None:
        pause, longest = _PAUSES
        while True:
            await self._calm()
            self._making = shape = self._missing()
            if shape is None:
                return
            try:
                waiting = await self._make(shape)
            except (ApiError, EndedError, LookupError) as error:
                log.info("none of %s can be made ahead: %s", shape.image, error)
                self._demand.forget(shape)
            except EngineError as error:
                log.warning("nothing can be made ahead: %s", error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, longest)
            else:
                pause = _PAUSES[0]
                self._add(shape, waiting)

    def _filled(self, filling: asyncio.Task[None]) -> None:
        self._filling = self._making = None
        if not filling.cancelled() and (error := filling.exception()) is not None:
            log.error("no more containers are made ahead until the next run", exc_info=error)

    async def _calm(self) -> None:
        while (rest := self._last + _CALM - self._clock()) > 0 or self._cold:
            if self._cold:
                self._moved.clear()
                await self._moved.wait()
            else:
                await asyncio.sleep(rest)

    def _add(self, shape: Shape, waiting: Waiting) -> None:
        ready = self._ready.setdefault(shape, deque())
        ready.append(waiting)

        def ended(_: object) -> None:
            if waiting in ready:  # else it was taken, or put away
                ready.remove(waiting)
                self._janitor.spawn(self._put_away(waiting))
                self.tend()

        waiting.go.add_done_callback(ended)
