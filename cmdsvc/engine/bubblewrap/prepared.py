"""A sandbox that is complete but for its task."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cmdsvc.engine.bubblewrap.stub import Stub
from cmdsvc.engine.bubblewrap.stubs import Stubs
from cmdsvc.engine.launch import READY
from cmdsvc.errors import EngineError
from cmdsvc.model import Network

START_TIMEOUT = 20.0


@dataclass(frozen=True, slots=True)
class Kind:
    """What a sandbox is made for; all else is said when a run begins."""

    layer: str
    """The name that it has in the store: a layer that is made again has another one."""
    network: Network
    disk: int
    memory: int
    """Bytes of address space, where no control group bounds memory; else 0."""


class Prepared:
    """A sandbox that waits for its task, and all that it holds."""

    def __init__(
        self,
        kind: Kind | None,
        stub: Stub,
        stubs: Stubs,
        said: int,
        release: Callable[[], Awaitable[None]],
    ) -> None:
        self.kind = kind
        self.stub = stub
        self.stubs = stubs
        self.said = said
        """What bwrap may complain to."""
        self._release = release

    @property
    def alive(self) -> bool:
        return self.stub.alive

    def out_of_memory(self) -> bool:
        groups = self.stubs.cgroups
        return groups is not None and groups.out_of_memory(self.stub.group)

    async def ready(self) -> None:
        """Until it waits for its task. EngineError where it never will."""
        try:
            async with asyncio.timeout(START_TIMEOUT):
                data = await self.stub.hear()
        except TimeoutError:
            data = b"it takes too long"
        if data != READY:
            raise EngineError("a sandbox could not be prepared", data.decode("utf-8", "replace"))

    async def put_away(self) -> None:
        """Ends it, and lets go of what it holds; but for `said`."""
        try:
            await self.stubs.put_away(self.stub)
        finally:
            await self._release()

    async def aclose(self) -> None:
        os.close(self.said)
        await self.put_away()
