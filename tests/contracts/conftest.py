"""The engines that the contract suite is run against, opened once each."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from cmdsvc.engine import Engine, EngineSettings
from cmdsvc.errors import EngineError
from cmdsvc.recipe import Recipe
from tests.availability import unavailable
from tests.contracts.engine_lab import CANARY, LIMITS, WARM, Lab, Progress, kit_sources, maker

if TYPE_CHECKING:
    from tests.kit import Kit, Server


@pytest.fixture(scope="session")
def canary() -> Iterator[str]:
    """A value in this process's environment, from before any engine is made."""
    os.environ[CANARY] = value = secrets.token_hex(16)
    yield value
    del os.environ[CANARY]


@pytest.fixture(scope="session")
def docker_host(request: pytest.FixtureRequest, engine_name: str) -> str:
    """Where a Docker engine is, "" where none is needed."""
    return request.getfixturevalue("dockerd_host") if engine_name.startswith("docker") else ""


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def lab(  # noqa: PLR0917 - fixtures are asked for by name
    engine_name: str,
    docker_host: str,
    canary: str,
    kit: Kit,
    mirror: Server,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Lab]:
    """The engine, open, in a folder that only this user can enter, with its bare base built."""
    name, _, handed = engine_name.partition("-")
    private = tmp_path_factory.mktemp(engine_name)
    private.chmod(0o700)
    settings = EngineSettings(
        data_dir=private / "engine",
        instance=f"test-{secrets.token_hex(6)}",
        sources=kit_sources(kit, mirror.url),
        limits=LIMITS,
        build_timeout=120.0,
        warm=WARM,
        docker_runtime="runc" if handed else None,  # its runs go through the engine then
    )
    make = maker(name, docker_host)
    lab = Lab(
        name,
        make(settings),
        settings,
        make,
        Recipe("alpine", "", (), str(kit.base)),
        docker_host,
    )
    lab.instances.append(settings.instance)
    try:
        try:
            await lab.engine.open()
        except EngineError as error:
            unavailable(f"{engine_name}: {error}")
        await lab.engine.build(lab.recipe, Progress())
        yield lab
    finally:
        await lab.engine.aclose()
        if docker_host:
            from tests import dockerd

            for instance in lab.instances:
                dockerd.purge(docker_host, instance)


@pytest.fixture
def engine(lab: Lab) -> Engine:
    return lab.engine


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A new folder for another engine, below one that only this user can enter."""
    tmp_path.chmod(0o700)
    return tmp_path / "engine"


@pytest.fixture(scope="session")
def probe(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The probe as a program that needs no library."""
    program = tmp_path_factory.mktemp("probe") / "probe"
    source = Path(__file__).with_name("probe.c")
    try:
        subprocess.run(
            ["gcc", "-std=gnu11", "-O1", "-static", "-o", program, source],
            check=True,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        unavailable("no C compiler (apt-get install gcc libc6-dev)")
    except subprocess.CalledProcessError as error:
        unavailable(f"the probe cannot be built: {error.stderr}")
    return program.read_bytes()


@pytest_asyncio.fixture(loop_scope="session")
async def own(lab: Lab, place: Path) -> AsyncIterator[Lab]:
    """An engine that has nothing yet."""
    async with lab.another(place) as another:
        yield another
