"""Deliveries: stored once and within bounds, taken once, ended once; on every store."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from cmdsvc.errors import BusyError, InternalError, NotFoundError
from cmdsvc.model import Delivery, Hook, State
from cmdsvc.store import Backlog, Store, Taken, open_store
from cmdsvc.store.sql import arrivals, deliveries
from tests.store.lab import LATER, NOW, a_command, a_hook, an_arrival, lines, query

pytest_plugins = ("tests.store.backends",)

MOST = 1000
MINUTE = timedelta(minutes=1)


@pytest.fixture
async def hook(store: Store) -> Hook:
    await store.create(**a_command())
    return await store.add_hook(a_hook(), by="ann")


@pytest.fixture
async def ordered(store: Store, hook: Hook) -> Hook:
    return await store.add_hook(a_hook("ordered", ordered=True), by="ann")


@pytest.fixture
async def other(store: Store, url: str) -> AsyncIterator[Store]:
    """Another server on the same database."""
    opened = await open_store(url, server="two")
    yield opened
    await opened.aclose()


async def put(store: Store, hook: Hook, *ids: str) -> None:
    for id_ in ids:
        assert await store.accept(an_arrival(id_, hook), most=MOST) == (Taken.NEW, id_)


async def take(store: Store, limit: int = 100, now: datetime = NOW) -> list[str]:
    return [one.id for one in await store.claim(now, now + MINUTE, limit)]


async def found(store: Store, id_: str) -> Delivery:
    listed = await store.deliveries("ann", "hello", limit=1000)
    return next(one for one in listed if one.id == id_)


async def check_counted(url: str) -> None:
    """The counter is what it counts."""
    unfinished = "SELECT count(*) FROM deliveries WHERE state IN ('waiting', 'running')"
    counted = await query(url, "SELECT coalesce(sum(unfinished), 0) FROM commands")
    assert await query(url, unfinished) == counted


# Accepted


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


# Taken


async def test_the_earliest_first_and_once(store: Store, hook: Hook) -> None:
    for id_, seconds in (("c", 3), ("a", 1), ("d", 10), ("b", 2)):
        due_at = NOW + timedelta(seconds=seconds)
        await store.accept(an_arrival(id_, hook, due_at=due_at), most=MOST)
    assert await take(store) == []
    assert await store.next_due() == NOW + timedelta(seconds=1)
    now = NOW + timedelta(seconds=5)
    assert await take(store, 2, now) == ["a", "b"]
    assert await take(store, 0, now) == []
    assert await take(store, 2, now) == ["c"]
    assert await take(store, 2, now) == []
    assert await store.next_due() == NOW + timedelta(seconds=10)


async def test_those_of_some_are_passed_over(store: Store, hook: Hook) -> None:
    await store.ensure_user("bob")
    await store.create(**a_command(owner="bob"))
    theirs = await store.add_hook(a_hook(command="bob/hello"), by="bob")
    await put(store, hook, "a1", "a2")
    await put(store, theirs, "b1")
    assert [one.id for one in await store.claim(NOW, LATER, 9, apart=["ann", "x"])] == ["b1"]
    assert await store.claim(NOW, LATER, 9, apart=["ann", "bob"]) == []
    assert await take(store) == ["a1", "a2"]


async def test_two_servers_never_get_the_same(store: Store, other: Store, hook: Hook) -> None:
    await asyncio.gather(*(store.accept(an_arrival(f"d{n}", hook), most=MOST) for n in range(120)))
    taken: list[str] = []

    async def work(server: Store) -> None:
        while ids := await take(server, 3):
            taken.extend(ids)

    await asyncio.gather(*(work(server) for server in (store, other) for _ in range(4)))
    assert sorted(taken) == sorted(f"d{n}" for n in range(120))


async def test_an_attempt(store: Store, hook: Hook, url: str) -> None:
    await put(store, hook, "d1")
    assert not await store.begin_attempt("d1", 1, "r1")  # nobody has taken it
    await take(store)
    assert not await store.begin_attempt("d1", 2, "r1")
    assert not await store.begin_attempt("none", 1, "r1")
    assert await store.begin_attempt("d1", 1, "r1")
    assert (await found(store, "d1")).run == "r1"
    later = NOW + MINUTE
    assert await store.end_attempt(
        "d1", 1, State.WAITING, due_at=later, exit_status=75, message="busy"
    )
    listed = await found(store, "d1")
    assert (listed.state, listed.due_at, listed.exit_status) == (State.WAITING, later, 75)
    assert (listed.message, listed.attempt) == ("busy", 1)
    assert await take(store) == []
    assert await take(store, now=later) == ["d1"]
    assert not await store.end_attempt("d1", 1, State.DONE)
    assert await store.end_attempt("d1", 2, State.DONE, exit_status=0)
    assert not await store.end_attempt("d1", 2, State.FAILED)
    listed = await found(store, "d1")
    assert (listed.state, listed.due_at, listed.exit_status) == (State.DONE, None, 0)
    assert (listed.message, listed.attempt) == ("", 2)
    assert await store.next_due() is None
    await check_counted(url)


async def test_an_attempt_that_did_not_begin_does_not_count(store: Store, hook: Hook) -> None:
    await put(store, hook, "d1")
    for _ in range(3):
        (taken,) = await store.claim(NOW, LATER, 1)
        assert taken.attempt == 1
        assert await store.end_attempt("d1", 1, State.WAITING, due_at=NOW, uncounted=True)
    assert (await found(store, "d1")).attempt == 0


async def test_a_lease_that_ran_out(store: Store, other: Store, hook: Hook, url: str) -> None:
    await put(store, hook, "d1", "d2")
    await take(store)
    assert await other.next_due() == NOW + MINUTE
    assert await store.next_due() is None  # they are its own
    assert await take(other) == []
    later = NOW + MINUTE
    await store.renew(["d2", "none"], later + MINUTE)
    await other.renew(["d1"], later + MINUTE)  # it has no say
    assert await take(store, now=later) == []
    (taken,) = await other.claim(later, later + MINUTE, 9)
    assert (taken.id, taken.attempt) == ("d1", 2)
    # Who held it before learns of it, and changes nothing.
    assert not await store.begin_attempt("d1", 1, "r1")
    assert not await store.end_attempt("d1", 1, State.DONE)
    assert not await store.end_attempt("d1", 2, State.DONE)
    assert await store.end_attempt("d2", 1, State.DONE)
    assert await other.end_attempt("d1", 2, State.DONE)
    await check_counted(url)


async def test_what_a_server_held_when_it_died(store: Store, other: Store, hook: Hook) -> None:
    await put(store, hook, "d1", "d2", "d3")
    await take(store, 2)
    await take(other, 1)
    assert await store.reclaim(LATER) == 2
    assert await store.reclaim(LATER) == 0
    assert await store.next_due() == LATER
    assert (await found(store, "d1")).state is State.WAITING
    taken = await store.claim(LATER, LATER, 9)
    assert {(one.id, one.attempt) for one in taken} == {("d1", 2), ("d2", 2)}


# In order


async def test_only_the_first_of_an_ordered_hook(store: Store, hook: Hook, ordered: Hook) -> None:
    await put(store, ordered, "a", "b", "c")
    await put(store, hook, "x")
    assert await take(store) == ["a", "x"]
    assert await store.end_attempt("x", 1, State.DONE)
    assert await take(store) == []
    assert await store.end_attempt("a", 1, State.WAITING, due_at=NOW + MINUTE)
    assert await take(store) == []  # it is not over yet
    assert await take(store, now=NOW + MINUTE) == ["a"]
    assert await store.end_attempt("a", 2, State.FAILED)
    assert await take(store) == ["b"]
    await put(store, ordered, "d")
    assert await store.end_attempt("b", 1, State.DONE)
    assert await take(store) == ["c"]
    await store.reclaim(NOW)
    assert await take(store) == ["c"]
    assert await store.end_attempt("c", 2, State.DONE)
    assert await take(store) == ["d"]
    assert await store.end_attempt("d", 1, State.DONE)
    await put(store, ordered, "e")
    assert await take(store) == ["e"]


async def test_the_order_of_those_at_once(store: Store, ordered: Hook) -> None:
    ids = [f"d{n}" for n in range(150)]
    await asyncio.gather(*(store.accept(an_arrival(id_, ordered), most=MOST) for id_ in ids))
    for id_ in ids:
        assert await take(store) == [id_]
        assert await store.end_attempt(id_, 1, State.DONE)


async def test_nobody_is_left_standing(store: Store, other: Store, ordered: Hook, url: str) -> None:
    """Two servers store, take and end at the same time."""
    order: list[str] = []

    async def fill(server: Store, name: str) -> None:
        for number in range(40):
            await server.accept(an_arrival(f"{name}{number:02}", ordered), most=MOST)

    async def work(server: Store) -> None:
        while len(order) < 80:
            taken = await take(server)
            assert len(taken) <= 1
            for id_ in taken:
                order.append(id_)
                assert await server.end_attempt(id_, 1, State.DONE)

    await asyncio.wait_for(
        asyncio.gather(fill(store, "a"), fill(other, "b"), work(store), work(other)), 60
    )
    for name in "ab":
        assert [one for one in order if one[0] == name] == [f"{name}{n:02}" for n in range(40)]
    await check_counted(url)


# Looked at, replayed, removed


async def test_newest_first(store: Store, hook: Hook, ordered: Hook) -> None:
    await put(store, hook, "a")
    await put(store, ordered, "b")
    await put(store, hook, "c")
    await store.accept(an_arrival("s", None), most=MOST)

    async def listed(**which: object) -> list[str]:
        return [one.id for one in await store.deliveries("ann", "hello", **which)]  # type: ignore[arg-type]

    assert await listed() == ["s", "c", "b", "a"]
    assert await listed(limit=2) == ["s", "c"]
    assert await listed(hook="push") == ["c", "a"]
    assert await listed(hook="push", limit=1) == ["c"]
    assert await listed(hook="") == ["s"]
    assert await listed(hook="none") == []
    assert await store.deliveries("bob", "hello") == []


async def end_all(store: Store, state: State) -> None:
    while taken := await store.claim(NOW, LATER, 9):
        for one in taken:
            await store.begin_attempt(one.id, one.attempt, "r")
            await store.end_attempt(one.id, one.attempt, state, exit_status=3, message="no")


async def test_replayed(store: Store, hook: Hook, url: str) -> None:
    await put(store, hook, "done")
    await end_all(store, State.DONE)
    await put(store, hook, "f1", "f2", "f3")
    await end_all(store, State.FAILED)
    await put(store, hook, "waiting")
    assert await store.replay("ann", "hello", delivery="waiting", now=LATER, by="bob") == 0
    assert await store.replay("ann", "hello", delivery="none", now=LATER, by="bob") == 0
    assert await store.replay("ann", "hello", delivery="f2", now=LATER, by="bob") == 1
    listed = await found(store, "f2")
    assert (listed.state, listed.attempt, listed.due_at) == (State.WAITING, 0, LATER)
    assert (listed.run, listed.exit_status, listed.message) == (None, None, "")
    await check_counted(url)
    assert await store.replay("ann", "hello", delivery=None, now=LATER, by="bob") == 2
    assert await store.replay("ann", "hello", delivery=None, now=LATER, by="bob") == 0
    assert await store.replay("ann", "hello", delivery="done", now=LATER, by="bob") == 1
    await check_counted(url)
    assert set(await take(store, now=LATER)) == {"waiting", "f1", "f2", "f3", "done"}
    assert (await lines(store))[-3:] == [
        "bob replay ann/hello f2",
        "bob replay ann/hello all failed: 2",
        "bob replay ann/hello done",
    ]
    with pytest.raises(NotFoundError):
        await store.replay("ann", "none", delivery=None, now=NOW, by="ann")
    await store.create(**a_command("second"))
    assert await store.replay("ann", "second", delivery="f1", now=NOW, by="ann") == 0


async def test_replayed_in_order(store: Store, ordered: Hook) -> None:
    await put(store, ordered, "a", "b", "c")
    await end_all(store, State.FAILED)
    await put(store, ordered, "d", "e")
    assert await store.replay("ann", "hello", delivery=None, now=NOW, by="ann") == 3
    seen = []
    while taken := await take(store):
        seen += taken
        assert len(taken) == 1
        await store.end_attempt(taken[0], 1, State.DONE)
    assert seen == ["d", "a", "b", "c", "e"]  # the one whose turn it was keeps it
    assert await store.replay("ann", "hello", delivery="c", now=NOW, by="ann") == 1
    assert await take(store) == ["c"]


async def test_the_backlog(store: Store, hook: Hook) -> None:
    assert await store.backlog() == Backlog(0, 0, 0, None)
    for number, id_ in enumerate("abcde"):
        received_at = NOW + timedelta(seconds=number)
        await store.accept(an_arrival(id_, hook, received_at=received_at), most=MOST)
    later = NOW + MINUTE
    await take(store, 3, later)
    await store.end_attempt("a", 1, State.DONE)
    await store.end_attempt("b", 1, State.FAILED)
    assert await store.backlog() == Backlog(2, 1, 1, NOW + timedelta(seconds=3))


async def test_the_old_ones_go(
    store: Store, hook: Hook, ordered: Hook, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "BATCH", 3)
    monkeypatch.setattr(deliveries, "OLD", deliveries.OLD.limit(3))
    begun = datetime.now(UTC)
    await put(store, hook, *(f"d{n}" for n in range(8)))
    await put(store, ordered, "o")
    await end_all(store, State.FAILED)
    await put(store, hook, "new")
    assert await store.retire_deliveries(before=begun) == 0
    assert await store.retire_deliveries(before=datetime.now(UTC) + MINUTE) == 9
    assert [one.id for one in await store.deliveries("ann", "hello")] == ["new"]
    await check_counted(url)


async def test_they_go_with_the_users_name(store: Store, hook: Hook) -> None:
    await put(store, hook, "a")
    await store.rename_user("ann", "anna", by="")
    (taken,) = await store.claim(NOW, LATER, 1)
    assert taken.command == "anna/hello"
    assert await store.end_attempt("a", 1, State.DONE)
    await store.remove_user("anna", by="")
    assert (await store.usage())["deliveries"] == 0
