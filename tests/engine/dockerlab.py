"""What the tests of the Docker engine share: an open engine, scripts run to their end."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import docker

from cmdsvc.engine import EngineSettings, Invocation, Sources
from cmdsvc.engine.docker import DockerEngine
from cmdsvc.model import SCRIPT_PATH, SEARCH_PATH, Limits, Network, Outcome, Terminal
from cmdsvc.recipe import Recipe
from cmdsvc.relay import Job
from tests import dockerd

if TYPE_CHECKING:
    from tests.kit import Kit, Server

MB = 1 << 20
PATIENCE = 60.0


@dataclass(frozen=True)
class Lab:
    """An engine, and a Docker client of the tests' own to look behind it."""

    engine: DockerEngine
    client: docker.DockerClient
    settings: EngineSettings
    recipe: Recipe

    def layer(self, *packages: str) -> Recipe:
        return replace(self.recipe, packages=packages)

    async def start(
        self,
        script: str | bytes,
        *arguments: bytes,
        network: Network = Network.NONE,
        terminal: Terminal | None = None,
        recipe: Recipe | None = None,
    ) -> Job:
        body = script if isinstance(script, bytes) else f"#!/bin/sh\n{script}\n".encode()
        return await self.engine.start(
            Invocation(
                run_id=secrets.token_hex(8),
                recipe=recipe or self.recipe,
                argv=(SCRIPT_PATH, *arguments),
                script=body,
                env={b"PATH": SEARCH_PATH},
                limits=self.settings.limits,
                network=network,
                terminal=terminal,
            )
        )

    async def run(
        self, script: str | bytes, *arguments: bytes, network: Network = Network.NONE
    ) -> tuple[bytes, Outcome]:
        job = await self.start(script, *arguments, network=network)
        try:
            async with asyncio.timeout(PATIENCE):
                await job.send_eof()
                return await end(job)
        finally:
            await job.aclose()

    def containers(self) -> list[str]:
        mine = {"label": f"cmdsvc.instance={self.settings.instance}"}
        return [found["Id"] for found in self.client.api.containers(all=True, filters=mine)]


async def end(job: Job) -> tuple[bytes, Outcome]:
    """Its stdout, and how it ended."""
    out = b"".join([data async for fd, data in job.output() if fd == 1])
    return out, await job.wait()


async def line(job: Job) -> bytes:
    """The first piece of output; the rest is not read."""
    async with asyncio.timeout(PATIENCE):
        return (await anext(job.output()))[1]


@contextlib.contextmanager
def client(host: str) -> Iterator[docker.DockerClient]:
    made = docker.DockerClient(base_url=host, version="auto")
    try:
        yield made
    finally:
        made.close()


@contextlib.asynccontextmanager
async def lab(
    host: str,
    folder: Path,
    kit: Kit,
    mirror: Server,
    *,
    warm: int = 0,
    through: str = "",
    runtime: str | None = None,
) -> AsyncIterator[Lab]:
    """An open engine with its bare base built; all that it made is removed afterwards.

    It reaches the Docker engine at `host` by another way where `through` says one. With a `runtime`
    runs are handed over through the engine.
    """
    settings = EngineSettings(
        data_dir=folder,
        instance=f"test-{secrets.token_hex(6)}",
        sources=Sources(
            {"alpine": str(kit.base)},
            tuple(f"{mirror.url}/{name}" for name in ("main", "community", "broken")),
            kit.keys,
        ),
        limits=Limits(timeout=60, memory=64 * MB, cpus=1, pids=64, disk=16 * MB),
        build_timeout=60,
        warm=warm,
        docker_runtime=runtime,
    )
    engine = DockerEngine(settings, through or host)
    with client(host) as looking:
        await engine.open()
        try:
            made = Lab(engine, looking, settings, Recipe("alpine", "", (), str(kit.base)))
            await engine.build(made.recipe, lambda _: None)
            yield made
        finally:
            await engine.aclose()
            dockerd.purge(host, settings.instance)
