"""Runs in containers, and the containers that wait for them."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from cmdsvc.engine import AGENT_PATH, EngineSettings, Invocation, Usage
from cmdsvc.engine.docker.bridge import Bridge
from cmdsvc.engine.docker.direct import Direct, DirectJob, Launched
from cmdsvc.engine.docker.doors import ELSEWHERE, UNSEEN, Door, Doors, is_unseen
from cmdsvc.engine.docker.http import Api, ApiError
from cmdsvc.engine.docker.images import Images
from cmdsvc.engine.docker.janitor import Janitor
from cmdsvc.engine.docker.job import DockerJob
from cmdsvc.engine.docker.layers import Layers
from cmdsvc.engine.docker.making import Making
from cmdsvc.engine.docker.prepared import Prepared
from cmdsvc.engine.docker.sandbox import SCRIPT_ROOM, EndedError, Shape
from cmdsvc.engine.warm import Warm
from cmdsvc.errors import EngineError
from cmdsvc.model import Limits, Network
from cmdsvc.recipe import Recipe

_STATS: Final = 8
"""Containers that the engine is asked about at once: runs need it too."""

Started = DockerJob | DirectJob


class Runs:
    """See `engine.Engine` for what has the same name there."""

    def __init__(  # noqa: PLR0917 - each is one of a kind
        self,
        settings: EngineSettings,
        api: Api,
        janitor: Janitor,
        images: Images,
        bridge: Bridge,
        layers: Layers,
    ) -> None:
        self._settings = settings
        self._api = api
        self._janitor = janitor
        self._images = images
        self._bridge = bridge
        self._layers = layers
        self._direct = Direct(settings.data_dir / "waiting", api.host, api, janitor)
        self._making = Making(api, janitor, images, bridge, self._direct)
        self._warm: Warm[Shape, Prepared | Launched] = Warm(self._making.prepare, settings.warm)
        self._jobs: dict[Started, str] = {}
        """With the ids of their runs."""
        self._doors = Doors(
            settings.data_dir / "agents", api.host, AGENT_PATH.decode(), socket.SOCK_STREAM
        )
        self._opened: dict[Started, Door] = {}

    @property
    def warm(self) -> int:
        return len(self._warm)

    def open(self, cpus: float) -> None:
        """`cpus` is how many the engine has."""
        self._making.cpus = cpus

    def clear(self) -> None:
        """Removes the files that a dead server left. OSError."""
        self._doors.clear()
        self._direct.open()

    async def aclose(self) -> None:
        await self._warm.aclose()
        await asyncio.gather(*(job.aclose() for job in list(self._jobs)), return_exceptions=True)

    async def drop(self, images: set[str] | None = None) -> None:
        """Ends the containers that wait, those on images of these ids or all."""
        await self._warm.drop(lambda shape: images is None or shape.image in images)
        await self._janitor.settle()

    async def start(self, invocation: Invocation) -> Started:
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
        agent.listen(door.listener.dup())
        door.listener.close()
        return job

    async def expect(self, recipe: Recipe, limits: Limits, network: Network) -> None:
        if recipe.imported:
            return
        await self._layers.look(recipe)
        self._warm.want(await self._shape(recipe, limits, network))

    async def usage(self) -> Mapping[str, Usage]:
        room = asyncio.Semaphore(_STATS)

        async def of(job: Started) -> Usage | None:
            async with room:
                return await job.usage()

        jobs = dict(self._jobs)
        found = await asyncio.gather(*map(of, jobs))
        return {
            run_id: usage
            for run_id, usage in zip(jobs.values(), found, strict=True)
            if usage is not None
        }

    async def _start(self, invocation: Invocation, door: Door | None = None) -> Started:
        if door is not None:
            env = {**invocation.env, b"SSH_AUTH_SOCK": AGENT_PATH}
            invocation = dataclasses.replace(invocation, env=env)
        try:
            job = await self._begin(invocation, door)
        except LookupError:
            self._layers.lost(invocation.recipe)
            raise
        except ApiError as error:
            if error.status == 404 and "no such image" in error.message.lower():
                self._layers.lost(invocation.recipe)
                raise LookupError(f"there is no layer {invocation.recipe.digest[:24]}") from error
            raise
        self._jobs[job] = invocation.run_id
        return job

    async def _begin(self, invocation: Invocation, door: Door | None) -> Started:
        shape = await self._shape(
            invocation.recipe,
            invocation.limits,
            invocation.network,
            terminal=invocation.terminal is not None,
            script=invocation.script or b"",
        )
        mounts: Sequence[Mapping[str, Any]] = [] if door is None else [door.mount]
        if invocation.recipe.imported:
            attached = await self._making.begin(invocation, shape, mounts)
            return DockerJob(self._api, self._janitor, attached, self._forget)
        if door is None and shape.script_room == SCRIPT_ROOM:
            job = await self._warm_start(shape, invocation)
            if job is not None:
                return job
        prepared = await self._making.prepare(shape, mounts)
        return await prepared.begin(invocation, self._forget)

    async def _warm_start(self, shape: Shape, invocation: Invocation) -> Started | None:
        """A run in a container that was ready for it, None where there is none."""
        while (prepared := self._warm.take(shape)) is not None:
            with suppress(EndedError):
                return await prepared.begin(invocation, self._forget)
        return None

    def _forget(self, job: Started) -> None:
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
        if recipe.imported:
            image = self._images.layer(recipe.digest)
        else:
            image = await self._layers.image(recipe)
        return Shape(
            image=image,
            limits=dataclasses.replace(_least(limits, self._settings.limits), timeout=0),
            network=self._bridge.name if network is Network.INTERNET else "none",
            terminal=terminal,
            runtime=self._settings.docker_runtime,
            script_room=max(SCRIPT_ROOM, len(script) + 2**16),
        )


def _least(one: Limits, other: Limits) -> Limits:
    names = [field.name for field in dataclasses.fields(Limits)]
    return Limits(**{name: min(getattr(one, name), getattr(other, name)) for name in names})
