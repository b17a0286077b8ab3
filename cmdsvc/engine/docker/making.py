"""Containers, made and started: those that wait for a run, and those that are one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from cmdsvc.engine import Invocation
from cmdsvc.engine.docker import sandbox
from cmdsvc.engine.docker.attached import Attached
from cmdsvc.engine.docker.bridge import Bridge
from cmdsvc.engine.docker.direct import Direct, Launched, NoDoorError
from cmdsvc.engine.docker.http import Api, ApiError
from cmdsvc.engine.docker.images import RUN_LABEL, Images
from cmdsvc.engine.docker.imported import Imported
from cmdsvc.engine.docker.janitor import Janitor
from cmdsvc.engine.docker.prepared import Prepared
from cmdsvc.engine.docker.sandbox import EndedError, Shape

T = TypeVar("T")


class Making:
    def __init__(
        self, api: Api, janitor: Janitor, images: Images, bridge: Bridge, direct: Direct
    ) -> None:
        self._api = api
        self._janitor = janitor
        self._bridge = bridge
        self._direct = direct
        self._imported = Imported(images)
        self._labels = {**images.labels, RUN_LABEL: "true"}
        self.cpus = 0.0
        """How many the engine has."""

    async def prepare(
        self, shape: Shape, mounts: Sequence[Mapping[str, Any]] = ()
    ) -> Prepared | Launched:
        """A container that waits for its run. ApiError 404 where its image is not there."""
        if not self._direct.suits(shape):
            return await self._attached(shape, mounts)
        try:
            return await self._launched(shape, mounts)
        except (ApiError, EndedError, NoDoorError) as error:
            if isinstance(error, ApiError) and error.status == 404:
                raise
            prepared = await self._attached(shape, mounts)
            self._direct.give_up(error)
            return prepared

    async def _attached(self, shape: Shape, mounts: Sequence[Mapping[str, Any]]) -> Prepared:
        described = sandbox.description(shape, self._labels, self.cpus, mounts)
        start = partial(sandbox.start, self._api, shape=shape)
        return Prepared(shape, await self._started(described, start), self._api, self._janitor)

    async def _launched(self, shape: Shape, mounts: Sequence[Mapping[str, Any]]) -> Launched:
        with self._direct.door() as door:
            described = self._direct.description(shape, self._labels, self.cpus, door, mounts)
            start = partial(self._direct.start, door=door, shape=shape)
            return await self._started(described, start)

    async def begin(
        self, invocation: Invocation, shape: Shape, mounts: Sequence[Mapping[str, Any]]
    ) -> Attached:
        """A run of what an image of somebody else's says itself."""
        described = await self._imported.description(
            invocation, shape, self._labels, cpus=self.cpus, mounts=mounts
        )
        attach = partial(sandbox.attach, self._api, shape=shape, terminal=invocation.terminal)
        return await self._started(described, attach)

    async def _started(
        self,
        described: Mapping[str, Any],
        start: Callable[[str], Awaitable[T]],
        *,
        again: bool = True,
    ) -> T:
        """A container made and started; what fails leaves none."""
        container = await self._janitor.create(described)
        try:
            return await start(container)
        except BaseException as error:
            self._janitor.discard(container)
            has_network = described["HostConfig"]["NetworkMode"] == self._bridge.name
            lost = has_network and isinstance(error, ApiError) and error.status == 404
            if not (again and lost):
                raise
        # The network was removed behind our back: it is made anew, once.
        self._bridge.lost()
        await self._bridge.make()
        return await self._started(described, start, again=False)
