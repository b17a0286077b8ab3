"""The engines that the contract suite is run against, opened once each."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from cmdsvc.engine import Engine, EngineSettings, Sources
from cmdsvc.errors import EngineError
from cmdsvc.recipe import Recipe
from tests.availability import ENGINES, unavailable
from tests.contracts.engine_lab import CANARY, LIMITS, Lab, Progress

if TYPE_CHECKING:
    from tests.kit import Kit, Server

Maker = Callable[[EngineSettings], Engine]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine_name" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--engine") or ENGINES
        marks = {"docker": [pytest.mark.docker]}
        metafunc.parametrize(
            "engine_name",
            [pytest.param(name, marks=marks.get(name, [])) for name in ENGINES if name in chosen],
            scope="session",
        )


@pytest.fixture(scope="session")
def canary() -> Iterator[str]:
    """A value in this process's environment, from before any engine is made."""
    os.environ[CANARY] = value = secrets.token_hex(16)
    yield value
    del os.environ[CANARY]


@pytest.fixture(scope="session")
def make(engine_name: str) -> Iterator[Maker]:
    """Makes a closed engine of the kind."""
    if engine_name == "bubblewrap":
        from cmdsvc.engine.bubblewrap import BubblewrapEngine

        yield BubblewrapEngine
        return
    from cmdsvc.engine.docker import DockerEngine
    from tests import dockerd

    with dockerd.running() as host:
        yield lambda settings: DockerEngine(settings, host)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def lab(
    engine_name: str,
    make: Maker,
    canary: str,
    kit: Kit,
    mirror: Server,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Lab]:
    """The engine, open, in a folder that only this user can enter, with its bare base built."""
    private = tmp_path_factory.mktemp(engine_name)
    private.chmod(0o700)
    settings = EngineSettings(
        data_dir=private / "engine",
        instance=f"test-{secrets.token_hex(6)}",
        sources=Sources(
            bases={"alpine": str(kit.base)},
            alpine_mirrors=tuple(
                f"{mirror.url}/{name}" for name in ("main", "community", "broken")
            ),
            apk_keys=kit.keys,
        ),
        limits=LIMITS,
        build_timeout=120.0,
    )
    recipe = Recipe("alpine", "", (), str(kit.base))
    engine = make(settings)
    try:
        await engine.open()
    except EngineError as error:
        await engine.aclose()
        unavailable(f"{engine_name}: {error}")
    try:
        await engine.build(recipe, Progress())
        yield Lab(engine_name, engine, settings, make, recipe)
    finally:
        await engine.aclose()


@pytest.fixture
def engine(lab: Lab) -> Engine:
    return lab.engine


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A new folder for another engine, below one that only this user can enter."""
    tmp_path.chmod(0o700)
    return tmp_path / "engine"
