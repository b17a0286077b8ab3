"""The Docker engine that the tests of one module share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests import dockerd
from tests.availability import unavailable


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    """Where it is, as DOCKER_HOST has it."""
    with contextlib.ExitStack() as stack:
        try:
            found = stack.enter_context(dockerd.docker_host())
        except dockerd.NoDockerError as error:
            unavailable(str(error))
        yield found
