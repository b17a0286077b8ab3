"""What every test can ask for: which engines to try, and the offline kit."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.availability import ENGINES, unavailable

if TYPE_CHECKING:
    from tests.kit import Kit, Server

# What is compiled is kept, whatever the environment says: a server starts hundreds of times here.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

ROADS = {"docker": ["docker", "docker-handed"]}
"""Names of an engine that hands runs over in several ways; the first is the one that it prefers."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--engine",
        action="append",
        choices=ENGINES,
        help="try this engine only (repeatable); both by default",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Whoever asks for `engine_name` is run once for each of the engines, or for the first one."""
    if "engine_name" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--engine") or ENGINES
        if metafunc.definition.get_closest_marker("any_engine"):
            chosen = chosen[:1]
        roads = ROADS if metafunc.definition.get_closest_marker("every_road") else {}
        marks = {"docker": [pytest.mark.docker]}
        metafunc.parametrize(
            "engine_name",
            [
                pytest.param(road, marks=marks.get(name, []))
                for name in ENGINES
                if name in chosen
                for road in roads.get(name, [name])
            ],
            scope="session",
        )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """Files in which all is fast come first, then those with most that is slow; in each, what is fast.

    What is short is left for the end, when workers have no other file to go on with.
    """
    yield
    slow = Counter(item.path for item in items if _is_slow(item))
    # Behind pytest's own order, which is by what parameters share.
    items.sort(key=lambda item: (item.path in slow, -slow[item.path], _is_slow(item)))


def _is_slow(item: pytest.Item) -> bool:
    return item.get_closest_marker("slow") is not None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Nothing of what is collected is garbage: it is not looked through again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def kit() -> Kit:
    """An Alpine base and signed repositories that need no Internet."""
    from tests import kit

    try:
        return kit.build()
    except kit.KitError as error:
        unavailable(f"no offline kit: {error}")


@pytest.fixture(scope="session")
def dockerd_host() -> Iterator[str]:
    """Where a Docker engine is, as DOCKER_HOST has it: one for all tests of this process."""
    from tests import dockerd

    with contextlib.ExitStack() as stack:
        try:
            host = stack.enter_context(dockerd.docker_host())
        except dockerd.NoDockerError as error:
            unavailable(str(error))
        yield host


@pytest.fixture(scope="session")
def mirror(kit: Kit) -> Iterator[Server]:
    """The kit's repositories over HTTP, on this machine's loopback."""
    from tests.kit import Server

    with Server(kit) as server:
        yield server
