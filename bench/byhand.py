"""What a Docker engine can do by itself: containers like ours, and a way through it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError

from bench.measure import PATIENCE, BenchError
from cmdsvc.engine.docker.http import Api
from cmdsvc.engine.docker.sandbox import Shape, attach, description
from cmdsvc.model import Limits

NAME = "cmdsvc-bench"
"""Of the image and of the network."""
WORKERS = 3
"""At which an engine with two processors does the most."""
SECONDS = 15.0
ROUNDS = 200
PAUSE = 0.02
"""Seconds between two of them, as between runs: whoever takes part has gone to sleep."""
LIMITS = Limits(timeout=0, memory=256 << 20, cpus=1.0, pids=128, disk=64 << 20)


def rates(host: str, base: Path) -> dict[str, float]:
    """Containers a second, made, started, waited for and removed, by kind of network."""
    found = {}
    with _prepared(host, base):
        for kind, network in (("of its own", NAME), ("none", "none")):
            described = dict(description(Shape(NAME, LIMITS, network, False, None), {}, 2.0))
            described["Entrypoint"] = ["/bin/true"]
            found[kind] = _rate(host, lambda one, what=described: _once(one, what))
    return found


def round_trip(host: str, base: Path) -> list[float]:
    """Seconds that a byte takes to a container's `cat` and back, by an attached stream."""
    shape = Shape(NAME, LIMITS, "none", False, None)
    described = {**description(shape, {}, 2.0), "Entrypoint": ["/bin/cat"]}
    with _prepared(host, base) as client:
        container = client.create_container_from_config(described)["Id"]
        try:
            return asyncio.run(_to_and_fro(host, container, shape))
        finally:
            client.remove_container(container, force=True, v=True)


async def _to_and_fro(host: str, container: str, shape: Shape) -> list[float]:
    api = Api(host)
    try:
        attached = await attach(api, container, shape, None)
        taken = []
        for _ in range(ROUNDS):
            begun = time.perf_counter()
            await attached.write(b"x")
            if await attached.next() != (1, b"x"):
                raise BenchError("a container's cat says something else")
            taken.append(time.perf_counter() - begun)
            await asyncio.sleep(PAUSE)
        attached.close()
    finally:
        await api.aclose()
    return taken


@contextmanager
def _prepared(host: str, base: Path) -> Iterator[docker.APIClient]:
    client = docker.APIClient(base_url=host, timeout=PATIENCE)
    try:
        client.import_image(str(base), repository=NAME, tag="latest")
        client.create_network(NAME, driver="bridge")
        yield client
    except APIError as error:
        raise BenchError(f"by hand: {error}") from error
    finally:
        with suppress(APIError):
            client.remove_network(NAME)
        with suppress(APIError):
            client.remove_image(NAME)
        client.close()


def _rate(host: str, once: Callable[[docker.APIClient], None]) -> float:
    def work(_: int) -> int:
        client = docker.APIClient(base_url=host, timeout=PATIENCE)
        count = 0
        try:
            while time.monotonic() < until:
                once(client)
                count += 1
        finally:
            client.close()
        return count

    begun = time.monotonic()
    until = begun + SECONDS
    with ThreadPoolExecutor(WORKERS) as pool:
        count = sum(pool.map(work, range(WORKERS)))
    return count / (time.monotonic() - begun)


def _once(client: docker.APIClient, described: dict[str, Any]) -> None:
    container = client.create_container_from_config(described)["Id"]
    try:
        client.start(container)
        client.wait(container)
    finally:
        client.remove_container(container, force=True, v=True)
