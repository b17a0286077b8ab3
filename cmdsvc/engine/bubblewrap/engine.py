"""The embedded engine: sandboxes by bubblewrap, layers by overlayfs, no daemon."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cmdsvc.engine import EngineSettings, Finding, Invocation, Layer, Progress, Usage
from cmdsvc.engine.bubblewrap import arguments
from cmdsvc.engine.bubblewrap.findings import findings
from cmdsvc.engine.bubblewrap.job import BubblewrapJob
from cmdsvc.engine.bubblewrap.layers import Layers
from cmdsvc.engine.bubblewrap.machine import Machine
from cmdsvc.engine.bubblewrap.place import FIRST_USER, place_for
from cmdsvc.engine.bubblewrap.runs import Runs
from cmdsvc.engine.bubblewrap.store import Store, remove
from cmdsvc.errors import DataError, EngineError
from cmdsvc.model import Limits, Network, Outcome
from cmdsvc.recipe import Recipe


class BubblewrapEngine:
    """See `engine.Engine`. As root, sandboxes run as `uid` and the users after it."""

    name = "bubblewrap"

    def __init__(self, settings: EngineSettings, *, uid: int = FIRST_USER) -> None:
        self._settings = settings
        self._uid = uid if os.geteuid() == 0 else None
        self._store = Store(settings.data_dir.absolute(), self._uid)
        self._machine = Machine(settings)
        self._runs = Runs(settings, self._store, self._machine, self._left)
        self._layers = Layers(settings, self._store, self._machine, self._runs)

    @property
    def networks(self) -> frozenset[Network]:
        both = {Network.NONE} | ({Network.INTERNET} if self._machine.has_network else set())
        return frozenset(both)

    @property
    def warm(self) -> int:
        return self._runs.warm

    async def open(self, *, beside: bool = False) -> None:
        try:
            place = place_for(self._store)
            await asyncio.to_thread(self._store.open, beside=beside)
            await self._machine.open(place, beside=beside)
            self._layers.open()
        except OSError as error:
            await self.aclose()
            raise EngineError(
                f"the engine cannot use {self._settings.data_dir}: {error}",
                "check the folder and its rights",
            ) from error
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        await self._runs.aclose()
        await self._machine.aclose()
        self._layers.close()

    async def check(self) -> list[Finding]:
        """Of itself where it is open; else it tries it all on the side, in a folder of its own."""
        if self._machine.is_open:
            return self._findings()
        folder = await asyncio.to_thread(tempfile.mkdtemp, prefix="cmdsvc-check-")
        settings = replace(
            self._settings, data_dir=Path(folder), instance=f"check-{Path(folder).name}"
        )
        probe = BubblewrapEngine(settings, uid=self._uid or FIRST_USER)
        try:
            await probe.open()
            await probe._probe()
            return probe._findings()
        except EngineError as error:
            return [Finding("error", f"bubblewrap: {error.what}", error.hint)]
        finally:
            await probe.aclose()
            await asyncio.to_thread(remove, Path(folder))

    def _findings(self) -> list[Finding]:
        return findings(
            self._uid,
            self._machine.cgroups,
            network=self._machine.has_network,
            why_not=self._machine.no_network,
        )

    async def pull(self, base: str, tag: str, progress: Progress) -> None:
        await self._layers.pull(base, tag, progress)

    async def layers(self) -> list[Layer]:
        return await self._layers.layers()

    async def remove(self, layer: Layer) -> bool:
        return await self._layers.remove(layer)

    async def purge(self) -> None:
        await self._layers.purge()

    async def resolve(self, image: str, progress: Progress) -> str:
        del progress
        raise _no_images(image)

    async def has(self, recipe: Recipe) -> bool:
        return self._store.has(recipe)

    async def stale(self, recipe: Recipe) -> bool:
        return self._store.stale(recipe)

    async def build(self, recipe: Recipe, progress: Progress, *, again: bool = False) -> None:
        if recipe.imported:
            raise _no_images(recipe.base)
        await self._layers.build(recipe, progress, again=again)

    async def start(self, invocation: Invocation) -> BubblewrapJob:
        return await self._runs.start(invocation)

    async def expect(self, recipe: Recipe, limits: Limits, network: Network) -> None:
        await self._runs.expect(recipe, limits, network)

    async def usage(self) -> Mapping[str, Usage]:
        return await self._runs.usage()

    async def _left(self, layer: str) -> None:
        """A run has let go of `layer`, which may have been made again meanwhile."""
        await self._layers.retire(layer)

    async def _probe(self) -> None:
        """Runs the launcher, on a root file system of nothing: it ends by itself with 126."""
        recipe = Recipe("none", "", (), "")
        with self._store.temporary() as folder:
            for root in (self._store.root / "bases/none/root", folder / "root"):
                root.mkdir(parents=True, mode=0o755)
                self._store.own(root)
            (folder / "base").write_text("none")
            self._store.keep_layer(folder, recipe.digest)
        program = (arguments.LAUNCH_PATH,)
        limits = self._settings.limits
        job = await self.start(Invocation("check", recipe, program, None, {}, limits, Network.NONE))
        try:
            async for _fd, _data in job.output():
                pass
            outcome = await job.wait()
        finally:
            await job.aclose()
        if outcome != Outcome(126):
            raise EngineError(f"a sandbox ended with {outcome}", "see the server's log")


def _no_images(name: str) -> DataError:
    return DataError(
        f"{name} is an image, which this instance cannot run: its engine is bubblewrap",
        "name a base and packages, as in '#!cmd alpine jq', or ask for the docker engine",
    )
