"""Schedules, and each of their moments dealt with once; on every store."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from cmdsvc.errors import NotFoundError
from cmdsvc.model import Schedule, State
from cmdsvc.store import Store, Taken, Ticked
from tests.store.lab import LATER, NOW, a_command, a_hook, an_arrival, lines, query

pytest_plugins = ("tests.store.backends",)

HOUR = timedelta(hours=1)
SCRIPTS = Schedule("ann/hello", "@daily", "UTC", own=False, since=NOW)
OWNERS = Schedule("ann/hello", "5 4 * * *", "Europe/Vienna", own=True, since=LATER)


@pytest.fixture
async def hello(store: Store) -> Store:
    await store.create(**a_command(schedule="@daily"))
    return store


async def tick(
    store: Store, schedule: Schedule, hours: int, *, missed: bool = False, most: int = 9
) -> Ticked:
    at = NOW + hours * HOUR
    arrival = None if missed else an_arrival(f"t{hours}", None, same=at.isoformat())
    return await store.tick(schedule, at, arrival, most=most)


async def in_force(store: Store) -> Schedule:
    (found,) = await store.schedules()
    assert await store.schedule("ann", "hello") == found
    return found


async def end(store: Store) -> None:
    for one in await store.claim(LATER, LATER, 99):
        assert await store.end_attempt(one.id, one.attempt, State.DONE)


# In force


async def test_the_scripts_own(hello: Store) -> None:
    assert await in_force(hello) == SCRIPTS
    await hello.add_version(**a_command(schedule="@hourly", created_at=LATER))
    assert await in_force(hello) == replace(SCRIPTS, expression="@hourly", since=LATER)
    await hello.add_version(**a_command())
    assert await hello.schedules() == []
    assert await hello.schedule("ann", "hello") is None
    await hello.set_current("ann", "hello", 1, by="ann")
    assert (await in_force(hello)).expression == "@daily"


async def test_the_owners_goes_before_it(hello: Store) -> None:
    await hello.set_schedule(OWNERS, by="bob")
    assert await in_force(hello) == OWNERS
    changed = replace(OWNERS, expression="* * * * *", zone="UTC", overlap=True)
    await hello.set_schedule(changed, by="ann")
    assert await in_force(hello) == changed
    assert await hello.remove_schedule("ann", "hello", by="ann") is True
    assert await hello.remove_schedule("ann", "hello", by="ann") is False
    assert await hello.remove_schedule("ann", "none", by="ann") is False
    assert await in_force(hello) == SCRIPTS
    assert (await lines(hello))[-3:] == [
        "bob schedule ann/hello 5 4 * * * Europe/Vienna",
        "ann schedule ann/hello * * * * * UTC",
        "ann schedule ann/hello removed",
    ]


async def test_of_a_command_without_its_own(store: Store) -> None:
    await store.create(**a_command())
    assert await store.schedules() == []
    await store.set_schedule(OWNERS, by="ann")
    assert await in_force(store) == OWNERS


async def test_of_a_command_that_is_gone(hello: Store) -> None:
    with pytest.raises(NotFoundError, match="there is no command ann/none"):
        await hello.set_schedule(replace(OWNERS, command="ann/none"), by="ann")
    await hello.set_schedule(OWNERS, by="ann")
    await hello.delete("ann", "hello", by="ann")
    assert await hello.schedules() == []
    assert await tick(hello, OWNERS, 1) is Ticked.TAKEN


async def test_all_of_them(hello: Store) -> None:
    await hello.ensure_user("bob")
    await hello.create(**a_command("z", owner="bob"))
    await hello.create(**a_command("a", owner="bob", schedule="@hourly"))
    await hello.set_schedule(replace(OWNERS, command="bob/z"), by="bob")
    assert [one.command for one in await hello.schedules()] == ["ann/hello", "bob/a", "bob/z"]


# Dealt with


@pytest.mark.parametrize("own", [False, True])
async def test_begun(hello: Store, own: bool) -> None:
    if own:
        await hello.set_schedule(OWNERS, by="ann")
    wanted = OWNERS if own else SCRIPTS
    assert await tick(hello, wanted, 1) is Ticked.BEGUN
    assert await in_force(hello) == replace(wanted, last_at=NOW + HOUR, last="begun")
    (delivery,) = await hello.deliveries("ann", "hello")
    assert (delivery.id, delivery.hook, delivery.state) == ("t1", "", State.WAITING)
    (taken,) = await hello.claim(NOW, LATER, 9)
    assert taken.command == "ann/hello"


async def test_missed(hello: Store) -> None:
    assert await tick(hello, SCRIPTS, 1, missed=True) is Ticked.MISSED
    assert await in_force(hello) == replace(SCRIPTS, last_at=NOW + HOUR, last="missed")
    assert await hello.deliveries("ann", "hello") == []


async def test_skipped_while_the_one_before_goes_on(hello: Store, url: str) -> None:
    push = await hello.add_hook(a_hook(), by="ann")
    await hello.accept(an_arrival("d", push), most=9)  # which is nothing of a schedule's
    assert await tick(hello, SCRIPTS, 1) is Ticked.BEGUN
    assert await tick(hello, await in_force(hello), 2) is Ticked.SKIPPED
    assert await in_force(hello) == replace(SCRIPTS, last_at=NOW + 2 * HOUR, last="skipped")
    await end(hello)
    assert await tick(hello, await in_force(hello), 3) is Ticked.BEGUN
    assert [one.id for one in await hello.deliveries("ann", "hello")] == ["t3", "t1", "d"]
    assert await query(url, "SELECT unfinished FROM commands") == [(1,)]


async def test_unless_they_may_overlap(hello: Store) -> None:
    await hello.set_schedule(replace(OWNERS, overlap=True), by="ann")
    for hours in (1, 2):
        assert await tick(hello, await in_force(hello), hours) is Ticked.BEGUN
    assert await tick(hello, await in_force(hello), 3, most=2) is Ticked.SKIPPED  # it is full
    assert len(await hello.deliveries("ann", "hello")) == 2


async def test_once_among_all_servers(hello: Store, other: Store) -> None:
    for hours in range(1, 6):
        schedule = await in_force(hello)
        ticked = await asyncio.gather(
            *(tick(server, schedule, hours) for server in (hello, other) for _ in range(3))
        )
        assert sorted(one.name for one in ticked) == ["BEGUN"] + ["TAKEN"] * 5
        await end(hello)
    assert len(await hello.deliveries("ann", "hello")) == 5


async def test_what_is_not_in_force_any_more(hello: Store) -> None:
    await hello.set_schedule(OWNERS, by="ann")
    assert await tick(hello, SCRIPTS, 1) is Ticked.TAKEN
    assert await tick(hello, replace(OWNERS, since=NOW), 1) is Ticked.TAKEN
    assert await tick(hello, replace(OWNERS, expression="* * * * *"), 1) is Ticked.TAKEN
    await hello.remove_schedule("ann", "hello", by="ann")
    assert await tick(hello, OWNERS, 1) is Ticked.TAKEN
    assert await hello.deliveries("ann", "hello") == []


async def test_what_was_set_anew_does_not_run_a_moment_twice(hello: Store) -> None:
    """As with a clock that was set back: the delivery of that moment is there."""
    await hello.set_schedule(OWNERS, by="ann")
    assert await tick(hello, OWNERS, 1) is Ticked.BEGUN
    await end(hello)
    await hello.set_schedule(replace(OWNERS, since=NOW), by="ann")
    again = await in_force(hello)
    assert again.last_at == NOW + HOUR
    assert await tick(hello, again, 1) is Ticked.BEGUN
    assert len(await hello.deliveries("ann", "hello")) == 1


async def test_a_schedules_delivery_by_itself(hello: Store) -> None:
    assert await hello.accept(an_arrival("s", None), most=1) == (Taken.NEW, "s")
    again = an_arrival("s2", None, same="s")
    assert await hello.accept(again, most=1) == (Taken.REPEATED, "s")
