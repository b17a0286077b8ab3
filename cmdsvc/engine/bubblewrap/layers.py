"""The layers that the engine keeps: made by builds, removed when nothing runs on them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from cmdsvc.engine import EngineSettings, Layer, Progress
from cmdsvc.engine.bubblewrap import making
from cmdsvc.engine.bubblewrap.build import Builder
from cmdsvc.engine.bubblewrap.job import BubblewrapJob
from cmdsvc.engine.bubblewrap.machine import Machine
from cmdsvc.engine.bubblewrap.runs import Runs
from cmdsvc.engine.bubblewrap.store import Store, remove
from cmdsvc.engine.launch import Task
from cmdsvc.errors import BusyError, DataError, EngineError
from cmdsvc.model import Limits
from cmdsvc.recipe import Recipe

log = logging.getLogger(__name__)

BUILD_FLOOR = Limits(timeout=0, memory=1 << 30, cpus=1.0, pids=512, disk=1 << 30)
"""What a build may use where runs may use less."""

SETTLING = (0.05, 0.2)
"""Seconds between looks whether a layer is in use: a run that ended lets go of it a moment later."""


class Layers:
    """See `engine.Engine` for what has the same name there. To pull and build, `open` comes first."""

    def __init__(
        self, settings: EngineSettings, store: Store, machine: Machine, runs: Runs
    ) -> None:
        self._settings = settings
        self._store = store
        self._machine = machine
        self._runs = runs
        self._builder: Builder | None = None

    def open(self) -> None:
        """After the machine."""
        users = self._machine.build_users
        self._builder = Builder(self._settings, self._store, self._step, users)

    def close(self) -> None:
        self._builder = None

    async def pull(self, base: str, tag: str, progress: Progress) -> None:
        source = self._settings.sources.bases.get(base)
        if source is None:
            raise DataError(
                f"no base is called {base!r}",
                f"use one of {', '.join(sorted(self._settings.sources.bases))}",
            )
        await self._opened_builder().pull(base, tag, source, progress)

    async def layers(self) -> list[Layer]:
        sources = set(self._settings.sources.bases.values())
        try:
            return await asyncio.to_thread(self._store.layers, sources)
        except OSError as error:
            raise EngineError(f"the layers cannot be counted: {error}") from error

    async def remove(self, layer: Layer) -> bool:
        if layer.base and self._opened_builder().busy:
            return False
        try:
            if not layer.base:
                await self._runs.drop(self._store.made(layer))
            gone = self._store.detach(layer)
            for pause in SETTLING:
                if gone is not None:
                    break
                await asyncio.sleep(pause)
                gone = self._store.detach(layer)
            if gone is None:
                return False
            await asyncio.to_thread(remove, gone)
        except OSError as error:
            raise EngineError(f"the layer cannot be removed: {error}") from error
        return True

    async def purge(self) -> None:
        await self._runs.drop()
        await self._machine.settled()  # what has ended lets go of its layer behind its back
        try:
            await asyncio.to_thread(self._store.purge)
        except BlockingIOError:
            raise BusyError("a layer is in use", "wait until nothing runs") from None
        except OSError as error:
            raise EngineError(f"the layers cannot be removed: {error}") from error

    async def build(self, recipe: Recipe, progress: Progress, *, again: bool) -> None:
        await self._opened_builder().build(recipe, progress, again=again)
        for name in list(self._store.replaced):
            await self.retire(name)

    async def retire(self, name: str) -> None:
        """Removes the layer of that name in the store if it was made again and nothing runs on it."""
        if name not in self._store.replaced:
            return
        try:
            await self.remove(Layer(name, base=False, size=0))
        except EngineError as error:
            log.warning("%s", error)

    async def _step(
        self,
        layer: str,
        folder: Path,
        program: Sequence[str],
        env: Mapping[str, str],
        files: Mapping[str, bytes],
    ) -> BubblewrapJob:
        """A step of a build (build.Step)."""
        given = self._settings.limits
        limits = Limits(
            timeout=given.timeout,
            memory=max(given.memory, BUILD_FLOOR.memory),
            cpus=max(given.cpus, BUILD_FLOOR.cpus),
            pids=max(given.pids, BUILD_FLOOR.pids),
            disk=max(given.disk, BUILD_FLOOR.disk),
        )
        inside = str(folder.relative_to(self._store.root))
        prepared = await making.for_step(self._machine, layer, inside, limits, files)
        task = Task(
            program=[word.encode() for word in program],
            env={name.encode(): value.encode() for name, value in env.items()},
            together=True,
        )
        return await self._runs.begin(prepared, task, limits)

    def _opened_builder(self) -> Builder:
        if self._builder is None:
            raise EngineError("the engine is closed")
        return self._builder
