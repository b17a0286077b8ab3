"""What was answered under an Idempotency-Key; on every store."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from cmdsvc.model import Answer
from cmdsvc.store import Store
from cmdsvc.store.sql import answers
from tests.store.lab import LATER, NOW, a_run

pytest_plugins = ("tests.store.backends",)

DAY = timedelta(days=1)
FIRST = Answer(b"\0digest", "r1")


async def begin(store: Store, run: str = "r2", key: str = "key", **which: str) -> Answer | None:
    caller = which.get("caller", "cmd_1")
    return await store.begin_answer(caller, key, Answer(b"\0digest", run), NOW, NOW - DAY)


async def test_the_first_one_goes_on(store: Store) -> None:
    assert await begin(store, "r1") is None
    assert await begin(store) == FIRST
    headers = (
        ("Content-Type", "text/plain"),
        ("X-\N{SNOWMAN}", ""),
        ("X-Two", "1"),
        ("X-Two", "2"),
    )
    answered = replace(FIRST, status=201, headers=headers, body=b"\0\xff")
    await store.end_answer("cmd_1", "key", answered)
    assert await begin(store) == answered
    assert await begin(store, caller="") is None
    assert await begin(store, key="other") is None


@pytest.mark.parametrize("key", ["", "' OR '1'='1", "\0", "\ud800", "x" * 100_000])
async def test_any_text_is_a_key(store: Store, key: str) -> None:
    assert await begin(store, "r1", key) is None
    assert await begin(store, "r2", key) == FIRST


async def test_of_many_at_once_one_goes_on(store: Store, other: Store) -> None:
    found = await asyncio.gather(
        *(
            begin(server, f"r{n}{name}")
            for n in range(20)
            for name, server in (("a", store), ("b", other))
        )
    )
    assert found.count(None) == 1
    assert len({one.run for one in found if one is not None}) == 1


async def test_after_its_time_another_is_the_first(store: Store) -> None:
    await begin(store, "r1")
    await store.end_answer("cmd_1", "key", replace(FIRST, status=200, body=b"x"))
    second = Answer(b"other", "r2")
    late = NOW + DAY
    assert await store.begin_answer("cmd_1", "key", second, late, NOW) is None
    assert await store.begin_answer("cmd_1", "key", FIRST, late, NOW) == second
    # The end of the first comes too late.
    await store.end_answer("cmd_1", "key", replace(FIRST, status=200))
    assert await store.begin_answer("cmd_1", "key", FIRST, late, NOW) == second


async def test_dropped(store: Store) -> None:
    await begin(store, "r1")
    await store.drop_answer("cmd_1", "key")
    assert await begin(store, "r2") is None
    answered = Answer(b"\0digest", "r2", 200)
    await store.end_answer("cmd_1", "key", answered)
    await store.drop_answer("cmd_1", "key")  # it was answered, and stays so
    assert await begin(store) == answered


async def test_under_way_when_its_server_died(store: Store, other: Store) -> None:
    await begin(store, "r1", "mine")
    await begin(store, "r2", "answered")
    done = Answer(b"\0digest", "r2", 200, (), b"x")
    await store.end_answer("cmd_1", "answered", done)
    await begin(other, "r3", "theirs")
    await store.begin_run(a_run("r1"))
    assert await store.mark_lost(LATER) == 1
    assert await begin(store, key="mine") == replace(FIRST, status=500)
    assert await begin(store, key="answered") == done
    assert await begin(store, key="theirs") == Answer(b"\0digest", "r3")


async def test_the_old_ones_go(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "BATCH", 3)
    monkeypatch.setattr(answers, "OLD", answers.OLD.limit(3))
    for number in range(7):
        await begin(store, key=f"k{number}")
    await store.begin_answer("", "new", FIRST, LATER, NOW)
    assert await store.retire_answers(before=NOW) == 0
    assert await store.retire_answers(before=LATER) == 7
    assert await store.begin_answer("", "new", FIRST, LATER, NOW) == FIRST
