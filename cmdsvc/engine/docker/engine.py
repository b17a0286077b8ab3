"""The Docker engine: layers are images, a run is a container of its own."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final
from weakref import WeakValueDictionary

from cmdsvc.engine import (
    AGENT_PATH,
    EngineSettings,
    Finding,
    Invocation,
    Layer,
    Progress,
    Usage,
    firewall,
)
from cmdsvc.engine.docker import findings, sandbox
from cmdsvc.engine.docker.agents import ELSEWHERE, UNSEEN, Door, Doors, is_unseen
from cmdsvc.engine.docker.bridge import Bridge
from cmdsvc.engine.docker.build import Build
from cmdsvc.engine.docker.hosts import check_host, find_host
from cmdsvc.engine.docker.http import Api, ApiError
from cmdsvc.engine.docker.images import DIGEST_LABEL, INSTANCE_LABEL, RUN_LABEL, Images
from cmdsvc.engine.docker.imported import Imported
from cmdsvc.engine.docker.janitor import Janitor, remove
from cmdsvc.engine.docker.job import DockerJob, HandedJob
from cmdsvc.engine.docker.prepared import Prepared
from cmdsvc.engine.docker.replaced import stale, sweep
from cmdsvc.engine.docker.sandbox import SCRIPT_ROOM, Attached, EndedError, Handed, Shape
from cmdsvc.engine.packages import plan
from cmdsvc.engine.warm import Warm
from cmdsvc.errors import BusyError, DataError, EngineError
from cmdsvc.model import Limits, Network
from cmdsvc.recipe import Recipe
from cmdsvc.relay import Job

log = logging.getLogger(__name__)

_STATS: Final = 8
"""Containers that the engine is asked about at once: runs need it too."""

_BUILDS: Final = 4
"""Builds at once; more wait."""


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
        self._labels = {**self._images.labels, RUN_LABEL: "true"}
        self._imported = Imported(self._images)
        self._cpus = 0.0
        self._here: dict[str, str] = {}
        """The images that are layers, by the digests of their recipes."""
        self._bridge = Bridge(self._api, settings.instance)
        self._warm: Warm[Shape, Prepared] = Warm(self._prepare, settings.warm)
        self._jobs: dict[DockerJob, str] = {}
        """With the ids of their runs."""
        self._doors = Doors(settings.data_dir / "agents", self.host)
        self._opened: dict[DockerJob, Door] = {}
        self._building: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._builds = asyncio.Semaphore(_BUILDS)

    @property
    def host(self) -> str:
        """Where the engine is, as DOCKER_HOST has it."""
        return self._api.host

    @property
    def networks(self) -> frozenset[Network]:
        return frozenset({Network.INTERNET, Network.NONE})

    @property
    def warm(self) -> int:
        return len(self._warm)

    async def open(self, *, beside: bool = False) -> None:
        check_host(self.host)
        await self._api.negotiate()
        self._cpus = float((await self._api.call("GET", "/info"))["NCPU"])
        if beside:
            return
        await self._sweep()
        await sweep(self._api, self._images, all_=True)
        try:
            self._doors.clear()
        except OSError as error:
            raise EngineError(
                f"the engine cannot use {self._settings.data_dir}: {error}",
                "check the folder and its rights",
            ) from error

    async def aclose(self) -> None:
        await self._warm.aclose()
        await asyncio.gather(*(job.aclose() for job in list(self._jobs)), return_exceptions=True)
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
        source = self._settings.sources.bases.get(base)
        if source is None:
            names = ", ".join(sorted(self._settings.sources.bases))
            raise DataError(f"no base is called {base!r}", f"use one of {names}")
        await self._images.base(base, tag, source, progress, again=True)
        await sweep(self._api, self._images)

    async def resolve(self, image: str, progress: Progress) -> str:
        return await self._imported.resolve(image, progress)

    async def has(self, recipe: Recipe) -> bool:
        try:
            await self._image(recipe)
        except LookupError:
            return False
        return True

    async def stale(self, recipe: Recipe) -> bool:
        return await stale(self._images, recipe)

    async def build(self, recipe: Recipe, progress: Progress, *, again: bool = False) -> None:
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
            self._here.pop(digest, None)
            new = await self._images.inspect(self._images.layer(digest))
            if new:
                self._here[digest] = new["Id"]
        if old and new and old["Id"] != new["Id"]:
            self._images.replaced.add(old["Id"])
            await self._put_away({old["Id"]})
        if self._images.replaced:
            with contextlib.suppress(EngineError):  # the layer is there; the rest has time
                await sweep(self._api, self._images)

    async def start(self, invocation: Invocation) -> Job:
        agent = invocation.agent
        if agent is None:
            return await self._start(invocation)
        if not self._doors.here:
            job = await self._start(invocation)
            agent.refuse(ELSEWHERE)
            return job
        try:
            door = self._doors.make(invocation.run_id)
        except OSError as error:
            raise EngineError(f"a socket cannot be made: {error}") from error
        try:
            job = await self._start(invocation, door)
        except BaseException as error:
            door.close()
            if not isinstance(error, ApiError) or not is_unseen(error):
                raise
            job = await self._start(invocation)
            agent.refuse(UNSEEN)
            return job
        self._opened[job] = door
        door.hand_over(agent)
        return job

    async def _start(self, invocation: Invocation, door: Door | None = None) -> DockerJob:
        digest = invocation.recipe.digest
        if door is not None:
            env = {**invocation.env, b"SSH_AUTH_SOCK": AGENT_PATH}
            invocation = dataclasses.replace(invocation, env=env)
        try:
            job = await self._begin(invocation, door)
        except LookupError:
            self._here.pop(digest, None)
            raise
        except ApiError as error:
            if error.status == 404 and "no such image" in error.message.lower():
                self._here.pop(digest, None)
                raise LookupError(f"there is no layer {digest[:24]}") from error
            raise
        self._jobs[job] = invocation.run_id
        return job

    async def expect(self, recipe: Recipe, limits: Limits, network: Network) -> None:
        if recipe.imported:
            return
        if await self._images.inspect(self._images.layer(recipe.digest)) is None:
            self._here.pop(recipe.digest, None)  # it was removed behind our back
        self._warm.want(await self._shape(recipe, limits, network))

    async def usage(self) -> Mapping[str, Usage]:
        room = asyncio.Semaphore(_STATS)

        async def of(job: DockerJob) -> Usage | None:
            async with room:
                return await job.usage()

        jobs = dict(self._jobs)
        found = await asyncio.gather(*map(of, jobs))
        return {
            run_id: usage
            for run_id, usage in zip(jobs.values(), found, strict=True)
            if usage is not None
        }

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
        """Removes all that this instance has in the engine: containers, images, volume, network."""
        await self._warm.drop()
        await self._janitor.settle()
        await self._sweep()
        self._here.clear()
        for name in (self._images.repository, f"{self._images.repository}-base"):
            for image in await self._api.call("GET", "/images/json", query=_where(reference=name)):
                for tag in image["RepoTags"] or ():
                    await self._delete(f"/images/{tag}?force=1")
        await self._delete(f"/volumes/{self._images.packages}")
        await self._bridge.remove()

    async def _begin(self, invocation: Invocation, door: Door | None) -> DockerJob:
        shape = await self._shape(
            invocation.recipe,
            invocation.limits,
            invocation.network,
            terminal=invocation.terminal is not None,
            script=invocation.script or b"",
        )
        mounts = [] if door is None else [door.mount]
        if invocation.recipe.imported:
            return await self._begin_as_it_is(invocation, shape, mounts)
        handed = None
        if door is None and shape.script_room == SCRIPT_ROOM:
            handed = await self._warm_start(shape, invocation)
        if handed is None:
            prepared = await self._prepare(shape, mounts)
            handed = await prepared.give(invocation)
        return HandedJob(self._api, self._janitor, handed, self._forget)

    async def _warm_start(self, shape: Shape, invocation: Invocation) -> Handed | None:
        """A run in a container that was ready for it, None where there is none."""
        while (prepared := self._warm.take(shape)) is not None:
            with contextlib.suppress(EndedError):
                return await prepared.give(invocation)
        return None

    async def _prepare(self, shape: Shape, mounts: Sequence[Mapping[str, Any]] = ()) -> Prepared:
        """A container that waits for its run."""
        described = sandbox.description(shape, self._labels, self._cpus, mounts)
        start = partial(sandbox.start, self._api, shape=shape)
        return Prepared(shape, await self._started(described, start), self._api, self._janitor)

    async def _begin_as_it_is(
        self, invocation: Invocation, shape: Shape, mounts: Sequence[Mapping[str, Any]]
    ) -> DockerJob:
        described = await self._imported.description(
            invocation, shape, self._labels, cpus=self._cpus, mounts=mounts
        )
        start = partial(sandbox.attach, self._api, shape=shape, terminal=invocation.terminal)
        attached = await self._started(described, start)
        return DockerJob(self._api, self._janitor, attached, self._forget)

    async def _started(
        self,
        described: Mapping[str, Any],
        start: Callable[[str], Awaitable[Attached]],
        *,
        again: bool = True,
    ) -> Attached:
        """A container made and started; what fails leaves none."""
        container = await self._janitor.create(described)
        try:
            return await start(container)
        except BaseException as error:
            await self._janitor.discard(container)
            has_network = described["HostConfig"]["NetworkMode"] == self._bridge.name
            lost = has_network and isinstance(error, ApiError) and error.status == 404
            if not (again and lost):
                raise
        # The network was removed behind our back: it is made anew, once.
        self._bridge.lost()
        await self._bridge.make()
        return await self._started(described, start, again=False)

    async def _put_away(self, images: set[str]) -> None:
        """Ends the containers that wait on `images`, which can be removed then."""
        await self._warm.drop(lambda shape: shape.image in images)
        await self._janitor.settle()

    def _forget(self, job: DockerJob) -> None:
        self._jobs.pop(job, None)
        if (door := self._opened.pop(job, None)) is not None:
            door.close()

    async def _shape(
        self,
        recipe: Recipe,
        limits: Limits,
        network: Network,
        *,
        terminal: bool = False,
        script: bytes = b"",
    ) -> Shape:
        if network is Network.INTERNET:
            await self._bridge.make()
        name = self._images.layer(recipe.digest)
        return Shape(
            image=name if recipe.imported else await self._image(recipe),
            limits=dataclasses.replace(_least(limits, self._settings.limits), timeout=0),
            network=self._bridge.name if network is Network.INTERNET else "none",
            terminal=terminal,
            runtime=self._settings.docker_runtime,
            script_room=max(SCRIPT_ROOM, len(script) + 2**16),
        )

    async def _image(self, recipe: Recipe) -> str:
        """The layer's image. LookupError where it is not here."""
        here = self._here.get(recipe.digest)
        if here is None:
            name = self._images.layer(recipe.digest)
            found = await self._images.inspect(name)
            if found is None:
                raise LookupError(f"there is no layer {name}")
            # A build that ended meanwhile knows better.
            here = self._here.setdefault(recipe.digest, found["Id"])
        return here

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

    async def _sweep(self) -> None:
        """Removes the containers that a dead server of this instance left behind."""
        query = {"all": "1", **_where(label=f"{INSTANCE_LABEL}={self._settings.instance}")}
        found: list[Mapping[str, Any]] = await self._api.call(
            "GET", "/containers/json", query=query
        )
        if found:
            log.info("removing %d containers that were left behind", len(found))
        for container in found:
            await remove(self._api, container["Id"])

    async def _delete(self, path: str) -> None:
        try:
            await self._api.call("DELETE", path)
        except ApiError as error:
            if error.status != 404:
                raise


def _blocked(instance: str) -> bool | None:
    """Whether the firewall holds runs to the Internet; None where that cannot be told."""
    try:
        return firewall.is_applied(firewall.bridge_table(instance))
    except EngineError:
        return None


def _least(one: Limits, other: Limits) -> Limits:
    names = [field.name for field in dataclasses.fields(Limits)]
    return Limits(**{name: min(getattr(one, name), getattr(other, name)) for name in names})


def _where(**filters: str) -> dict[str, str]:
    return {"filters": json.dumps({name: [value] for name, value in filters.items()})}
