"""The network of runs: a bridge of the service's own, in which containers do not reach each other."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Final

from cmdsvc.engine.docker.http import Api, ApiError
from cmdsvc.engine.docker.images import INSTANCE_LABEL, repository
from cmdsvc.errors import EngineError

_ATTEMPTS: Final = 3
_PAUSE: Final = 0.2
"""Seconds between them: the engine's rules are not there while somebody loads the firewall anew."""


class Bridge:
    """Made when it is needed first, and again where it is said to be `lost`."""

    def __init__(self, api: Api, instance: str) -> None:
        self._api = api
        self._instance = instance
        self.name = f"{repository(instance)}-net"
        self._options = {
            "com.docker.network.bridge.enable_icc": "false",
            "com.docker.network.bridge.name": bridge_name(instance),
        }
        self._made = False
        self._lock = asyncio.Lock()

    def lost(self) -> None:
        """It was removed."""
        self._made = False

    async def make(self) -> None:
        async with self._lock:
            if self._made:
                return
            try:
                await self._create()
            except ApiError as error:
                if error.status != 409:
                    raise
                if not await self._is_here():
                    await self.remove()
                    await self._create()
            self._made = True

    async def remove(self) -> None:
        self._made = False
        try:
            await self._api.call("DELETE", f"/networks/{self.name}")
        except ApiError as error:
            if error.status != 404:
                raise

    async def _create(self) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                await self._ask_for_it()
            except ApiError as error:
                if attempt == _ATTEMPTS or "iptables failed" not in error.message:
                    raise
                await asyncio.sleep(_PAUSE)
            else:
                return

    async def _ask_for_it(self) -> None:
        body = {
            "Name": self.name,
            "CheckDuplicate": True,
            "Driver": "bridge",
            "Options": self._options,
            "Labels": {INSTANCE_LABEL: self._instance},
        }
        try:
            await self._api.call("POST", "/networks/create", body=body)
        except ApiError as error:
            if "address pool" in error.message:
                raise EngineError(
                    f"the Docker engine has no addresses left for the network of runs: {error.message}",
                    "remove networks that nobody uses: docker network prune",
                ) from error
            raise

    async def _is_here(self) -> bool:
        """Whether the network of our name is as we make it. EngineError where it is not ours."""
        there = await self._api.call("GET", f"/networks/{self.name}")
        if there["Labels"].get(INSTANCE_LABEL) != self._instance:
            raise EngineError(
                f"the Docker network {self.name!r} was not made by this service",
                f"remove it: docker network rm {self.name}",
            )
        return bool(there["Options"] == self._options)


def bridge_name(instance: str) -> str:
    """The interface of the network that runs of `instance` have, for the host's firewall."""
    return f"cs{hashlib.sha256(instance.encode()).hexdigest()[:6]}d"
