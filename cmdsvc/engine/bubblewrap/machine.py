"""What sandboxes are made with on this machine: control groups, the spawner, users, networks."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

from cmdsvc.engine import EngineSettings
from cmdsvc.engine.bubblewrap import cgroups
from cmdsvc.engine.bubblewrap.network import Namespace, NetworkPool
from cmdsvc.engine.bubblewrap.stubs import Place, Stubs
from cmdsvc.engine.firewall import Destination
from cmdsvc.errors import EngineError

log = logging.getLogger(__name__)


class Machine:
    """Made closed: `open` comes first, `aclose` last."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self.cgroups: cgroups.Cgroups | None = None
        self.run_users: int | None = None
        self.build_users: int | None = None
        """Descriptors of user namespaces that runs and builds share; None: each has one of its own."""
        self.no_network = ""
        """Why runs have no network, if so."""
        self._stubs: Stubs | None = None
        self._pool: NetworkPool | None = None
        self._mending = asyncio.Lock()

    @property
    def is_open(self) -> bool:
        return self._stubs is not None

    @property
    def has_network(self) -> bool:
        return self._pool is not None

    @property
    def memory_counted(self) -> bool:
        """Whether control groups bound memory; else each process's address space is bounded."""
        return self.cgroups is not None and "memory" in self.cgroups.folders

    async def open(self, place: Place, *, beside: bool) -> None:
        """Also what fails (EngineError, OSError) has to be closed."""
        if not beside:  # what has the instance's name is the server's
            await self._open_cgroups()
        self._stubs = Stubs(place, self.cgroups, self._settings.limits)
        await self._stubs.open()
        if place.uid is not None:
            self.build_users = await self._stubs.users()
            if self.cgroups is not None and "pids" in self.cgroups.folders:
                # Else each run is counted in a namespace of its own, with one user.
                self.run_users = await self._stubs.users()
        if not beside:
            self._pool, self.no_network = await _network(self._settings)

    async def aclose(self) -> None:
        stubs, self._stubs = self._stubs, None
        if stubs is not None:
            await stubs.aclose()
        groups, self.cgroups = self.cgroups, None
        if groups is not None:
            await groups.clear()
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.aclose()
        for users in (self.run_users, self.build_users):
            if users is not None:
                os.close(users)
        self.run_users = self.build_users = None

    async def stubs(self) -> Stubs:
        """The stubs, with a new spawner where the old one has died. EngineError where closed."""
        if self._stubs is None:
            raise EngineError("the engine is closed")
        if not self._stubs.alive:
            async with self._mending:
                if self._stubs is not None and not self._stubs.alive:
                    old, self._stubs = (
                        self._stubs,
                        Stubs(self._stubs.place, self.cgroups, self._settings.limits),
                    )
                    await old.aclose()
                    await self._stubs.open()
        if self._stubs is None:
            raise EngineError("the engine is closed")
        return self._stubs

    async def settled(self) -> None:
        """Waits for what goes on in the background now, of sandboxes that have ended."""
        if self._stubs is not None:
            await self._stubs.settled()

    async def namespace(self) -> Namespace:
        """A network for one run. EngineError where there is none."""
        if self._pool is None:
            raise EngineError("runs have no network here", self.no_network)
        return await self._pool.take()

    async def _open_cgroups(self) -> None:
        """Finds the control groups, and removes those of a dead server, wherever it had them."""
        record = self._settings.data_dir / "cgroups"
        if record.exists():
            for line in record.read_text().splitlines():
                await cgroups.clear(Path(line))
        try:
            self.cgroups = cgroups.find(self._settings.instance)
        except cgroups.NoCgroupsError as error:
            log.warning("no control groups: %s", error)
        else:
            record.write_text("".join(f"{parent}\n" for parent in self.cgroups.parents))


async def _network(settings: EngineSettings) -> tuple[NetworkPool | None, str]:
    """The pool of network namespaces, or why there is none."""
    if os.geteuid() != 0:
        return None, "run the server as root, or use the Docker engine"
    allowed = [Destination.parse(text) for text in settings.network_allow]
    pool = NetworkPool(settings.instance, allowed=allowed)
    try:
        await pool.open()
    except EngineError as error:
        return None, str(error)
    return pool, ""
