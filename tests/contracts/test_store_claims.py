"""Deliveries are taken: the earliest first, once, of an ordered hook one by one; on every store."""

import asyncio
from datetime import timedelta

from cmdsvc.model import Hook, State
from cmdsvc.store import Store
from tests.contracts.deliveries_lab import MINUTE, MOST, check_counted, put, take
from tests.store.lab import LATER, NOW, a_command, a_hook, an_arrival

pytest_plugins = ("tests.store.backends",)


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
