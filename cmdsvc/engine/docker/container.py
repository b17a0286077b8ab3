"""One container, and what the engine knows of its end."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

from cmdsvc.engine import Usage
from cmdsvc.engine.docker.http import Api, ApiError
from cmdsvc.engine.launch.job import KILLED
from cmdsvc.errors import EngineError

log = logging.getLogger(__name__)

_KILL_TIMEOUT: Final = 10.0
"""Seconds: an engine that hangs must not hold up its callers."""

_NOTED: Final = 6.0
"""Seconds in all to wait for the container's end after the program's: until then the engine may not
have noted yet that memory ran out (it took 10 to 40 ms)."""

_STATS_TIMEOUT: Final = 2.0
"""Seconds."""


class Container:
    def __init__(self, api: Api, id_: str) -> None:
        self.id = id_
        self.gone = False
        """Whether the engine has told its end."""
        self._api = api

    async def call(self, what: str, *, timeout: float = 30.0, **query: str) -> Any:  # noqa: ASYNC109
        return await self._api.call(
            "POST", f"/containers/{self.id}/{what}", query=query, timeout=timeout
        )

    async def kill(self) -> None:
        """What hinders it is told in the log."""
        try:
            await self.call("kill", timeout=_KILL_TIMEOUT, signal="KILL")
        except ApiError as error:
            log.debug("run in %s ended by itself: %s", self.id[:12], error)
        except EngineError as error:
            log.warning("run in %s could not be killed: %s", self.id[:12], error)

    async def state(self, *, timeout: float = 30.0) -> dict[str, Any]:  # noqa: ASYNC109
        path = f"/containers/{self.id}/json"
        found: dict[str, Any] = await self._api.call("GET", path, timeout=timeout)
        return dict(found["State"])

    async def status(self, *, killed: bool) -> int:
        """Its own, at its end. EngineError where the engine ended it; `killed`: whether we did."""
        try:
            status = int((await self.call("wait"))["StatusCode"])
        except ApiError as error:
            raise _lost() from error
        self.gone = True
        if status == KILLED and not killed and await self._killed_by_engine():
            raise _lost()
        return status

    async def out_of_memory(self) -> bool:
        """Whether the kernel killed for want of memory.

        Only meaningful where the program was killed: it is also said where only a process died that
        the program did not care for.
        """
        with suppress(EngineError, TimeoutError):
            async with asyncio.timeout(_NOTED):
                with suppress(EngineError):
                    if not self.gone:  # what is left behind is not waited for
                        await self.call("kill", signal="KILL")
                    await self.call("wait")
                return bool((await self.state())["OOMKilled"])
        return False

    async def usage(self) -> Usage | None:
        """None where the engine does not tell."""
        try:
            stats: dict[str, Any] = await self._api.call(
                "GET",
                f"/containers/{self.id}/stats",
                query={"stream": "false", "one-shot": "true"},
                timeout=_STATS_TIMEOUT,
            )
            nanoseconds = stats["cpu_stats"]["cpu_usage"]["total_usage"]
            return Usage(nanoseconds / 1e9, stats["memory_stats"].get("usage"))
        except (EngineError, KeyError):
            return None

    async def _killed_by_engine(self) -> bool:
        """Whether it was killed through the engine, as when that is stopped, and not from inside."""
        try:
            state = await self.state()
            if state["OOMKilled"]:
                return False
            # The engine's clock; the event may be noted just after the end.
            until = datetime.fromisoformat(state["FinishedAt"][:19] + "+00:00").timestamp() + 1
            events = await self._api.call(
                "GET",
                "/events",
                query={
                    "since": "0",
                    "until": str(math.ceil(until)),
                    "filters": json.dumps({"container": [self.id], "event": ["kill"]}),
                },
            )
        except ApiError:
            return True
        return bool(events)


def _lost() -> EngineError:
    return EngineError("the Docker engine ended the run", "try again when it is back")


def untold() -> EngineError:
    """It ended, and nobody told how its program did."""
    return EngineError(
        "the sandbox ended without telling how its run did",
        "its output may be incomplete, run it again",
    )
