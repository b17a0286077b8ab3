"""The Docker engine: layers are images, a run is a container of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from cmdsvc.engine import EngineSettings, Finding, Invocation, Layer, Progress, Usage, firewall
from cmdsvc.engine.docker import findings
from cmdsvc.engine.docker.bridge import Bridge
from cmdsvc.engine.docker.hosts import check_host, find_host
from cmdsvc.engine.docker.http import Api, where
from cmdsvc.engine.docker.images import INSTANCE_LABEL, Images
from cmdsvc.engine.docker.janitor import Janitor, remove
from cmdsvc.engine.docker.layers import Layers
from cmdsvc.engine.docker.replaced import sweep
from cmdsvc.engine.docker.runs import Runs
from cmdsvc.errors import EngineError
from cmdsvc.model import Limits, Network
from cmdsvc.recipe import Recipe
from cmdsvc.relay import Job

log = logging.getLogger(__name__)


class DockerEngine:
    """Implements `cmdsvc.engine.Engine`.

    `host` is where the engine is, as DOCKER_HOST has it; None: where the Docker command line would
    look.
    """

    name = "docker"

    def __init__(self, settings: EngineSettings, host: str | None = None) -> None:
        self._settings = settings
        self._api = Api(find_host(host))
        self._janitor = Janitor(self._api)
        self._images = Images(self._api, self._janitor, settings)
        self._bridge = Bridge(self._api, settings.instance)
        self._layers = Layers(settings, self._api, self._janitor, self._images, self._put_away)
        self._runs = Runs(
            settings, self._api, self._janitor, self._images, self._bridge, self._layers
        )

    @property
    def host(self) -> str:
        """Where the engine is, as DOCKER_HOST has it."""
        return self._api.host

    @property
    def networks(self) -> frozenset[Network]:
        return frozenset({Network.INTERNET, Network.NONE})

    @property
    def warm(self) -> int:
        return self._runs.warm

    async def open(self, *, beside: bool = False) -> None:
        check_host(self.host)
        await self._api.negotiate()
        self._runs.open(float((await self._api.call("GET", "/info"))["NCPU"]))
        if beside:
            return
        await self._sweep()
        await sweep(self._api, self._images, all_=True)
        try:
            self._runs.clear()
        except OSError as error:
            raise EngineError(
                f"the engine cannot use {self._settings.data_dir}: {error}",
                "check the folder and its rights",
            ) from error

    async def aclose(self) -> None:
        await self._runs.aclose()
        await self._janitor.aclose()
        self._images.close()
        await self._api.aclose()

    async def check(self) -> list[Finding]:
        api = Api(self.host)
        try:
            check_host(self.host)
            version = await api.negotiate()
            info = await api.call("GET", "/info")
        except EngineError as error:
            return [Finding("error", error.what, error.hint)]
        finally:
            await api.aclose()
        blocked = await asyncio.to_thread(_blocked, self._settings.instance)
        return findings.of(self.host, version, info, self._settings.docker_runtime, blocked)

    async def pull(self, base: str, tag: str, progress: Progress) -> None:
        await self._layers.pull(base, tag, progress)

    async def resolve(self, image: str, progress: Progress) -> str:
        return await self._layers.resolve(image, progress)

    async def has(self, recipe: Recipe) -> bool:
        return await self._layers.has(recipe)

    async def stale(self, recipe: Recipe) -> bool:
        return await self._layers.stale(recipe)

    async def build(self, recipe: Recipe, progress: Progress, *, again: bool = False) -> None:
        await self._layers.build(recipe, progress, again=again)

    async def start(self, invocation: Invocation) -> Job:
        return await self._runs.start(invocation)

    async def expect(self, recipe: Recipe, limits: Limits, network: Network) -> None:
        await self._runs.expect(recipe, limits, network)

    async def usage(self) -> Mapping[str, Usage]:
        return await self._runs.usage()

    async def layers(self) -> list[Layer]:
        return await self._layers.layers()

    async def remove(self, layer: Layer) -> bool:
        return await self._layers.remove(layer)

    async def purge(self) -> None:
        """Removes all that this instance has in the engine: containers, images, volume, network."""
        await self._runs.drop()
        await self._sweep()
        await self._layers.purge()
        await self._bridge.remove()

    async def _put_away(self, images: set[str]) -> None:
        """Ends the containers that wait on `images`, which can be removed then."""
        await self._runs.drop(images)

    async def _sweep(self) -> None:
        """Removes the containers that a dead server of this instance left behind."""
        query = {"all": "1", **where(label=f"{INSTANCE_LABEL}={self._settings.instance}")}
        found: list[Mapping[str, Any]] = await self._api.call(
            "GET", "/containers/json", query=query
        )
        if found:
            log.info("removing %d containers that were left behind", len(found))
        for container in found:
            await remove(self._api, container["Id"])


def _blocked(instance: str) -> bool | None:
    """Whether the firewall holds runs to the Internet; None where that cannot be told."""
    try:
        return firewall.is_applied(firewall.bridge_table(instance))
    except EngineError:
        return None
