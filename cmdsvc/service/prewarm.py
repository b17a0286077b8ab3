"""Commands that the operator names: each always has a sandbox that waits for its next run."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterable

from cmdsvc.engine import Engine
from cmdsvc.errors import CmdError, NotFoundError
from cmdsvc.service.builds import Builds
from cmdsvc.service.commands import Commands
from cmdsvc.service.invocation import Invocations

log = logging.getLogger("cmdsvc")

PERIOD = 60.0
"""Seconds between two times that the engine is told of one: it forgets after five minutes."""
AGAIN = 180.0
"""Seconds after a time that failed: a build is not tried all the time."""


class Prewarm:
    def __init__(
        self, engine: Engine, builds: Builds, commands: Commands, invocations: Invocations
    ) -> None:
        self._engine = engine
        self._builds = builds
        self._commands = commands
        self._invocations = invocations
        self._building = asyncio.Lock()
        """One build at a time: those that somebody waits for have room beside it."""

    @contextlib.asynccontextmanager
    async def working(self, names: Iterable[str]) -> AsyncIterator[None]:
        """Has a sandbox wait for each of the commands (OWNER/NAME), behind what is inside."""
        tasks = [asyncio.create_task(self._keep(name)) for name in dict.fromkeys(names)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self, name: str) -> None:
        well = True
        while True:
            try:
                await self._expect(name)
            except (CmdError, LookupError) as error:
                if well:
                    log.warning("no sandbox waits for %s: %s", name, error)
                well = False
            except Exception:
                log.exception("no sandbox waits for %s", name)
                well = False
            else:
                well = True
            await asyncio.sleep(PERIOD if well else AGAIN)

    async def _expect(self, name: str) -> None:
        command = await self._commands.named(name)
        if command is None:
            raise NotFoundError(
                "there is no such command", "create it, or take it out of CMDSVC_WARM_COMMANDS"
            )
        recipe, limits, network = self._invocations.needs(command)
        try:
            await self._engine.expect(recipe, limits, network)
        except LookupError:
            async with self._building:
                await self._builds.ensure(recipe, lambda _: None)
            await self._engine.expect(recipe, limits, network)
