"""Deliveries are stored: once, and within bounds; on every store."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from cmdsvc.errors import BusyError, InternalError, NotFoundError
from cmdsvc.model import Hook, State
from cmdsvc.store import Store, Taken
from cmdsvc.store.sql import arrivals
from tests.contracts.deliveries_lab import MINUTE, MOST, check_counted, put, take
from tests.store.lab import LATER, NOW, a_command, a_hook, an_arrival

pytest_plugins = ("tests.store.backends",)


async def test_it_comes_back(store: Store, hook: Hook) -> None:
    arrival = an_arrival("d1", hook, retries=3, retry_any=True, event="push \N{SNOWMAN}")
    assert await store.accept(arrival, most=1) == (Taken.NEW, "d1")
    size = len(arrival.delivery.body)
    listed = replace(arrival.delivery, size=size, body=b"", env={}, due_at=NOW)
    assert await store.deliveries("ann", "hello") == [listed]
    (taken,) = await store.claim(NOW, LATER, 5)
    assert taken == replace(arrival.delivery, size=size, state=State.RUNNING, attempt=1)
    assert await store.deliveries("ann", "hello") == [replace(taken, env={}, body=b"")]


async def test_once_as_long_as_the_first_is_kept(store: Store, hook: Hook) -> None:
    pull = await store.add_hook(a_hook("pull"), by="ann")
    await put(store, hook, "d1")
    again = an_arrival("d2", hook, same="d1", received_at=NOW + timedelta(days=9))
    assert await store.accept(again, most=1) == (Taken.REPEATED, "d1")  # though it is full
    assert await store.accept(replace(again, hook_id=pull.id), most=9) == (Taken.NEW, "d2")
    await take(store)
    await store.end_attempt("d1", 1, State.DONE)
    assert await store.accept(replace(again), most=9) == (Taken.REPEATED, "d1")
    assert await store.retire_deliveries(before=datetime.now(UTC) + MINUTE) == 1
    last = an_arrival("d3", hook, same="d1")
    assert await store.accept(last, most=9) == (Taken.NEW, "d3")


async def test_once_within_a_window(store: Store, hook: Hook) -> None:
    def arrival(id_: str, seconds: float):
        received_at = NOW + timedelta(seconds=seconds)
        return an_arrival(id_, hook, same="digest", window=60.0, received_at=received_at)

    assert await store.accept(arrival("d1", 0), most=9) == (Taken.NEW, "d1")
    assert await store.accept(arrival("d2", 59), most=9) == (Taken.REPEATED, "d1")
    assert await store.accept(arrival("d3", 60), most=9) == (Taken.NEW, "d3")
    assert await store.accept(arrival("d4", 61), most=9) == (Taken.REPEATED, "d3")
    # A clock that was set back makes nothing new of it.
    assert await store.accept(arrival("d5", -3600), most=9) == (Taken.REPEATED, "d3")


@pytest.mark.parametrize("window", [None, 60.0])
async def test_of_many_at_once_one_is_stored(
    store: Store, other: Store, hook: Hook, window: float | None, url: str
) -> None:
    results = await asyncio.gather(
        *(
            server.accept(an_arrival(f"{name}{n}", hook, same="same", window=window), most=MOST)
            for n in range(100)
            for name, server in (("a", store), ("b", other))
        )
    )
    new = [id_ for taken, id_ in results if taken is Taken.NEW]
    assert len(new) == 1
    assert {result for result in results if result[0] is not Taken.NEW} == {
        (Taken.REPEATED, new[0])
    }
    assert (await store.usage())["deliveries"] == 1
    await check_counted(url)


async def test_no_more_than_may_wait(store: Store, other: Store, hook: Hook, url: str) -> None:
    results = await asyncio.gather(
        *(
            server.accept(an_arrival(f"{name}{n}", hook), most=70)
            for n in range(100)
            for name, server in (("a", store), ("b", other))
        )
    )
    new = {id_ for taken, id_ in results if taken is Taken.NEW}
    assert len(new) == 70
    assert sum(taken is Taken.FULL for taken, _ in results) == 130
    assert {one.id for one in await store.deliveries("ann", "hello", limit=1000)} == new
    await check_counted(url)
    # What runs counts; what has ended does not.
    (first, *_) = await take(store, 10)
    assert await store.accept(an_arrival("x", hook), most=70) == (Taken.FULL, "x")
    assert await store.end_attempt(first, 1, State.FAILED)
    assert await store.accept(an_arrival("x", hook), most=70) == (Taken.NEW, "x")
    await check_counted(url)
    # Another command has room of its own.
    await store.create(**a_command("second"))
    second = await store.add_hook(a_hook(command="ann/second"), by="ann")
    assert await store.accept(an_arrival("y", second), most=1) == (Taken.NEW, "y")


async def test_one_that_cannot_be_stored_is_nobody_elses_business(store: Store, hook: Hook) -> None:
    await put(store, hook, "first")
    bad = [
        an_arrival("first", hook, same="another"),  # an id that is taken
        an_arrival("c", hook, event="\ud800"),
        an_arrival("d", replace(hook, command="ann/none")),
        an_arrival("e", replace(hook, id=hook.id + 1)),
    ]
    good = [an_arrival(f"g{n}", hook) for n in range(10)]
    results = await asyncio.gather(
        *(store.accept(one, most=MOST) for one in (*good[:5], *bad, *good[5:])),
        return_exceptions=True,
    )
    kinds = [type(one) for one in results[5:9]]
    assert kinds[0] is InternalError
    assert kinds[2:] == [NotFoundError, NotFoundError]
    assert isinstance(results[6], Exception)
    assert [one[0] for one in (*results[:5], *results[9:]) if isinstance(one, tuple)] == [
        Taken.NEW
    ] * 10
    assert (await store.usage())["deliveries"] == 11


async def test_a_hook_of_another_command_is_none(store: Store, hook: Hook) -> None:
    await store.create(**a_command("second"))
    with pytest.raises(NotFoundError, match="ann/second has no such hook"):
        await store.accept(an_arrival("d", replace(hook, command="ann/second")), most=9)


async def test_those_at_once_are_few_commits(
    store: Store, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = []
    storing = arrivals.store

    async def counted(batch, connection):
        batches.append(len(batch))
        return await storing(batch, connection)

    monkeypatch.setattr(arrivals, "store", counted)
    await asyncio.gather(*(store.accept(an_arrival(f"d{n}", hook), most=MOST) for n in range(200)))
    assert sum(batches) == 200
    assert max(batches) == arrivals.BATCH
    assert len(batches) <= 5


async def test_only_so_many_wait_for_a_commit(
    store: Store, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "MOST_PENDING", 3)
    done = await asyncio.gather(
        *(store.accept(an_arrival(f"d{n}", hook), most=MOST) for n in range(5)),
        return_exceptions=True,
    )
    assert [type(one) for one in done] == [tuple] * 3 + [BusyError] * 2
    assert (await store.usage())["deliveries"] == 3


async def test_one_that_nobody_waits_for_any_more(store: Store, hook: Hook) -> None:
    """Not begun, it is not stored; the others are."""
    tasks = [
        asyncio.create_task(store.accept(an_arrival(f"d{n}", hook), most=MOST)) for n in range(3)
    ]
    await asyncio.sleep(0)
    tasks[1].cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(done[1], asyncio.CancelledError)
    assert {one.id for one in await store.deliveries("ann", "hello")} == {"d0", "d2"}


async def test_closed_meanwhile(store: Store, hook: Hook) -> None:
    tasks = [
        asyncio.create_task(store.accept(an_arrival(f"d{n}", hook), most=MOST)) for n in range(300)
    ]
    await asyncio.sleep(0)
    await store.aclose()
    done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    assert {type(one) for one in done} <= {tuple, InternalError}
    assert InternalError in {type(one) for one in done}
