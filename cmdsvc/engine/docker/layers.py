"""The layers that the engine keeps, which are images."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final
from weakref import WeakValueDictionary

from cmdsvc.engine import EngineSettings, Layer, Progress
from cmdsvc.engine.docker.build import Build
from cmdsvc.engine.docker.http import Api, ApiError, where
from cmdsvc.engine.docker.images import DIGEST_LABEL, Images
from cmdsvc.engine.docker.imported import Imported
from cmdsvc.engine.docker.janitor import Janitor
from cmdsvc.engine.docker.replaced import stale, sweep
from cmdsvc.engine.packages import plan
from cmdsvc.errors import BusyError, DataError, EngineError
from cmdsvc.recipe import Recipe

_BUILDS: Final = 4
"""Builds at once; more wait."""


class Layers:
    """See `engine.Engine` for what has the same name there.

    `put_away` ends the containers that wait on images of some ids or names.
    """

    def __init__(
        self,
        settings: EngineSettings,
        api: Api,
        janitor: Janitor,
        images: Images,
        put_away: Callable[[set[str]], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._api = api
        self._janitor = janitor
        self._images = images
        self._imported = Imported(images)
        self._put_away = put_away
        self._here: dict[str, str] = {}
        """The images that are layers, by the digests of their recipes."""
        self._building: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._builds = asyncio.Semaphore(_BUILDS)

    async def pull(self, base: str, tag: str, progress: Progress) -> None:
        source = self._settings.sources.bases.get(base)
        if source is None:
            names = ", ".join(sorted(self._settings.sources.bases))
            raise DataError(f"no base is called {base!r}", f"use one of {names}")
        await self._images.base(base, tag, source, progress, again=True)
        await sweep(self._api, self._images)

    async def resolve(self, image: str, progress: Progress) -> str:
        return await self._imported.resolve(image, progress)

    async def image(self, recipe: Recipe) -> str:
        """Its id. LookupError where it is not here."""
        name = self._images.layer(recipe.digest)
        here = self._here.get(recipe.digest)
        if here is None:
            found = await self._images.inspect(name)
            if found is None:
                raise LookupError(f"there is no layer {name}")
            # A build that ended meanwhile knows better.
            here = self._here.setdefault(recipe.digest, found["Id"])
        return here

    async def look(self, recipe: Recipe) -> None:
        """Notices where it was removed behind our back."""
        if await self._images.inspect(self._images.layer(recipe.digest)) is None:
            self.lost(recipe)

    def lost(self, recipe: Recipe) -> None:
        """It is not here any more."""
        self._here.pop(recipe.digest, None)

    async def has(self, recipe: Recipe) -> bool:
        try:
            await self.image(recipe)
        except LookupError:
            return False
        return True

    async def stale(self, recipe: Recipe) -> bool:
        return await stale(self._images, recipe)

    async def build(self, recipe: Recipe, progress: Progress, *, again: bool) -> None:
        digest = recipe.digest
        async with self._building.setdefault(digest, asyncio.Lock()):
            old = await self._images.inspect(self._images.layer(digest))
            if old and (recipe.imported or not (again or await stale(self._images, recipe))):
                return
            seconds = self._settings.build_timeout
            async with self._builds:
                try:
                    async with asyncio.timeout(seconds):
                        await self._build(recipe, progress, again=again)
                except TimeoutError as error:
                    raise BusyError(
                        f"the build took longer than {seconds:g} s", "try again later"
                    ) from error
            self.lost(recipe)
            new = await self._images.inspect(self._images.layer(digest))
            if new:
                self._here[digest] = new["Id"]
        if old and new and old["Id"] != new["Id"]:
            self._images.replaced.add(old["Id"])
            await self._put_away({old["Id"]})
        if self._images.replaced:
            with contextlib.suppress(EngineError):  # the layer is there; the rest has time
                await sweep(self._api, self._images)

    async def layers(self) -> list[Layer]:
        return await self._images.kept()

    async def remove(self, layer: Layer) -> bool:
        if not layer.base:
            here = {digest for digest in self._here if digest.startswith(layer.name)}
            await self._put_away({layer.name, *map(self._here.pop, here)})
        if await self._images.remove(layer):
            return True
        await self._janitor.settle()  # what used it may have ended just now
        return await self._images.remove(layer)

    async def purge(self) -> None:
        self._here.clear()
        for name in (self._images.repository, f"{self._images.repository}-base"):
            query = where(reference=name)
            for image in await self._api.call("GET", "/images/json", query=query):
                for tag in image["RepoTags"] or ():
                    await self._delete(f"/images/{tag}?force=1")
        await self._delete(f"/volumes/{self._images.packages}")

    async def _build(self, recipe: Recipe, progress: Progress, *, again: bool) -> None:
        if recipe.imported:
            await self._imported.keep(recipe.base, recipe.digest, progress)
            return
        what = plan(recipe, self._settings.sources)
        base = await self._images.base(
            recipe.base, recipe.tag, recipe.source, progress, again=again
        )
        if not what.steps:
            await self._images.tag(base, recipe.digest)
            return
        labels = {**self._images.labels, DIGEST_LABEL: recipe.digest}
        build = Build(self._api, self._janitor, recipe, labels, progress)
        await build.run(
            what,
            base,
            self._images.repository,
            recipe.digest[:24],
            packages=self._images.packages,
            seconds=self._settings.build_timeout,
        )

    async def _delete(self, path: str) -> None:
        try:
            await self._api.call("DELETE", path)
        except ApiError as error:
            if error.status != 404:
                raise
