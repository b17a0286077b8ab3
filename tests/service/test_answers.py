"""Who asks twice under one Idempotency-Key is answered the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cmdsvc.errors import DataError, ExistsError
from cmdsvc.service.answers import Answers, Ticket
from cmdsvc.store import Store, open_store

ONE = Ticket(caller="cmd_a", key="k", digest=b"d", run="r1")
HEADERS = (("content-type", "text/plain"),)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await open_store(f"sqlite+aiosqlite:///{tmp_path}/store.db", server="one")
    yield opened
    await opened.aclose()


async def test_the_first_and_those_after_it(store: Store):
    answers = Answers(store)
    assert await answers.first(ONE) is None
    with pytest.raises(ExistsError, match="r1"):
        await answers.first(replace(ONE, run="r2"))
    await answers.keep(ONE, 500, HEADERS, b"body")
    found = await answers.first(replace(ONE, run="r3"))
    assert found is not None
    assert (found.run, found.status, found.headers, found.body) == ("r1", 500, HEADERS, b"body")
    with pytest.raises(DataError):
        await answers.first(replace(ONE, digest=b"other"))
    assert await answers.first(replace(ONE, caller="cmd_b")) is None


async def test_what_did_not_run(store: Store):
    answers = Answers(store)
    assert await answers.first(ONE) is None
    await answers.drop(ONE)
    assert await answers.first(replace(ONE, digest=b"other")) is None


async def test_for_a_day(store: Store):
    now = datetime.now(UTC)
    answers = Answers(store, lambda: now)
    assert await answers.first(ONE) is None
    await answers.keep(ONE, 200, (), b"")
    now += timedelta(hours=23, minutes=59)
    assert await answers.first(ONE) is not None
    now += timedelta(minutes=2)
    assert await answers.first(replace(ONE, digest=b"other")) is None
