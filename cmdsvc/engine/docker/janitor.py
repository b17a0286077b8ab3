"""What goes on behind the callers' backs: containers removed, tasks finished before the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Final, TypeVar

from cmdsvc.engine.docker.http import Api, ApiError
from cmdsvc.errors import EngineError

log = logging.getLogger(__name__)

T = TypeVar("T")

_AT_ONCE: Final = 2
"""Removals at once: more only slow down the engine's starts."""

_CALM: Final = 0.05
"""Seconds before a removal: who is told of the run's end has the processor first."""

_BACKLOG: Final = 64
"""Removals outstanding at which whoever asks for another container has to wait..."""

_PATIENCE: Final = 10.0
"""...for at most this many seconds: a dead engine must not hold up callers."""

_END: Final = 20.0
"""Seconds that `aclose` waits for what is under way."""

_PAUSE: Final = 30.0
"""Seconds between two attempts at most, while the engine cannot be reached."""


class Janitor:
    """Removes containers in the background, again and again while the engine does not answer."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._tasks: set[asyncio.Task[Any]] = set()
        self._removals: set[asyncio.Task[Any]] = set()
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._closing = asyncio.Event()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that `aclose` waits for."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def create(self, description: Mapping[str, Any]) -> str:
        """Makes a container, which whoever asked discards in the end; here if cancelled meanwhile.

        It is not begun while too many wait to be removed.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                while len(self._removals) >= _BACKLOG:
                    await asyncio.wait(self._removals, return_when=asyncio.FIRST_COMPLETED)
        making = self.spawn(self._api.call("POST", "/containers/create", body=description))
        try:
            made = await asyncio.shield(making)
        except asyncio.CancelledError:
            self.spawn(self._discard_made(making))
            raise
        return str(made["Id"])

    def discard(self, container: str, after: Callable[[], None] = lambda: None) -> None:
        """Has it killed and removed in the background.

        `after` is called when that was tried once, whatever became of it.
        """
        removal = self.spawn(self._remove(container, after))
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)

    async def settle(self) -> None:
        """Waits, not for long, until what is under way is finished."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_PATIENCE)

    async def aclose(self) -> None:
        """Finishes what is under way; a container that cannot be removed now is at the next start."""
        self._closing.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(_END):
                while self._tasks:
                    await asyncio.wait(self._tasks)
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)

    async def _discard_made(self, making: asyncio.Task[Any]) -> None:
        with suppress(EngineError):
            self.discard((await making)["Id"])

    async def _remove(self, container: str, after: Callable[[], None]) -> None:
        try:
            await self._rest(_CALM)
            over = await self._try_to_remove(container)
        finally:
            after()
        pause = 0.5
        while not over:
            await self._rest(pause)
            pause = min(2 * pause, _PAUSE)
            over = await self._try_to_remove(container)

    async def _try_to_remove(self, container: str) -> bool:
        """Whether it need not be tried again."""
        last = self._closing.is_set()
        try:
            async with self._turn:
                await remove(self._api, container)
        except EngineError as error:
            log.warning("container %s could not be removed: %s", container[:12], error)
            return last
        return True

    async def _rest(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)


async def remove(api: Api, container: str) -> None:
    """Kills and removes it with its volumes; nothing where it is gone or going already."""
    try:
        await api.call("DELETE", f"/containers/{container}", query={"force": "1", "v": "1"})
    except ApiError as error:
        if error.status not in (404, 409):
            raise
