"""What every test can ask for: which engines to try, and the offline kit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.availability import ENGINES, unavailable

if TYPE_CHECKING:
    from tests.kit import Kit, Server


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
        marks = {"docker": [pytest.mark.docker]}
        metafunc.parametrize(
            "engine_name",
            [pytest.param(name, marks=marks.get(name, [])) for name in ENGINES if name in chosen],
            scope="session",
        )


@pytest.fixture(scope="session")
def kit() -> Kit:
    """An Alpine base and signed repositories that need no Internet."""
    from tests import kit

    try:
        return kit.build()
    except kit.KitError as error:
        unavailable(f"no offline kit: {error}")


@pytest.fixture(scope="session")
def mirror(kit: Kit) -> Iterator[Server]:
    """The kit's repositories over HTTP, on this machine's loopback."""
    from tests.kit import Server

    with Server(kit) as server:
        yield server
