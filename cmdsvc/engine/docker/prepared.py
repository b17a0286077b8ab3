"""A container that is complete but for its run, which is handed to it through the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cmdsvc.engine import Invocation
from cmdsvc.engine.docker import sandbox
from cmdsvc.engine.docker.attached import Attached
from cmdsvc.engine.docker.container import Container
from cmdsvc.engine.docker.http import Api, ApiError
from cmdsvc.engine.docker.janitor import Janitor
from cmdsvc.engine.docker.job import DockerJob, HandedJob
from cmdsvc.engine.docker.sandbox import EndedError, Handed, Shape
from cmdsvc.errors import EngineError

_LOOK: Final = 0.3
"""Seconds that the engine has to say whether a container has ended: one that died meanwhile is not
back so soon."""


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    kind: Shape
    attached: Attached
    api: Api
    janitor: Janitor

    @property
    def alive(self) -> bool:
        return self.attached.usable

    @property
    def container(self) -> str:
        return self.attached.container

    async def begin(self, invocation: Invocation, closed: Callable[[DockerJob], None]) -> HandedJob:
        """Hands the run over; what fails is put away.

        EndedError where nothing has begun, EngineError where that cannot be told.
        """
        try:
            handed = await self._give(invocation)
        except BaseException:
            await self.aclose()
            raise
        return HandedJob(self.api, self.janitor, handed, closed)

    async def aclose(self) -> None:
        """It is removed in the background."""
        self.attached.close()
        self.janitor.discard(self.container)

    async def _give(self, invocation: Invocation) -> Handed:
        try:
            return await sandbox.give(self.api, self.attached, invocation)
        except EndedError as error:
            if await self._has_ended():
                raise
            raise EngineError(
                "the Docker engine went away as the run began", "see whether it ran, and try again"
            ) from error

    async def _has_ended(self) -> bool:
        """Whether an engine that was there all the time says so: it passes on what was written."""
        try:
            state = await Container(self.api, self.container).state(timeout=_LOOK)
        except ApiError as error:
            return error.status == 404
        except EngineError:
            return False
        return not state["Running"]
