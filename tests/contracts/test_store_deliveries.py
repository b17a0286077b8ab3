"""Deliveries are looked at, replayed, removed; on every store."""

from datetime import UTC, datetime, timedelta

import pytest

from cmdsvc.errors import NotFoundError
from cmdsvc.model import Hook, State
from cmdsvc.store import Backlog, Store
from cmdsvc.store.sql import deliveries
from tests.contracts.deliveries_lab import MINUTE, MOST, check_counted, end_all, found, put, take
from tests.store.lab import LATER, NOW, a_command, an_arrival, lines

pytest_plugins = ("tests.store.backends",)


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
