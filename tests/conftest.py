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
