"""The Docker engine of the tests."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def host(dockerd_host: str) -> str:
    """Where it is, as DOCKER_HOST has it."""
    return dockerd_host
