from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cmdsvc.store import Store, open_store
from tests.store.lab import BACKENDS


@pytest.fixture(params=BACKENDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database, gone after the test."""
    return BACKENDS[request.param](tmp_path)


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    opened = await open_store(url, server="one")
    await opened.ensure_user("ann")
    yield opened
    await opened.aclose()
