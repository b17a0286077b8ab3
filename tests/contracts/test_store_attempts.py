"""Deliveries are ended: once, by who holds them; on every store."""

from cmdsvc.model import Hook, State
from cmdsvc.store import Store
from tests.contracts.deliveries_lab import MINUTE, check_counted, found, put, take
from tests.store.lab import LATER, NOW

pytest_plugins = ("tests.store.backends",)


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
