"""What the tests of stored deliveries share."""

from datetime import datetime, timedelta

from cmdsvc.model import Delivery, Hook, State
from cmdsvc.store import Store, Taken
from tests.store.lab import LATER, NOW, an_arrival, query

MOST = 1000
MINUTE = timedelta(minutes=1)


async def put(store: Store, hook: Hook, *ids: str) -> None:
    for id_ in ids:
        assert await store.accept(an_arrival(id_, hook), most=MOST) == (Taken.NEW, id_)


async def take(store: Store, limit: int = 100, now: datetime = NOW) -> list[str]:
    return [one.id for one in await store.claim(now, now + MINUTE, limit)]


async def found(store: Store, id_: str) -> Delivery:
    listed = await store.deliveries("ann", "hello", limit=1000)
    return next(one for one in listed if one.id == id_)


async def end_all(store: Store, state: State) -> None:
    while taken := await store.claim(NOW, LATER, 9):
        for one in taken:
            await store.begin_attempt(one.id, one.attempt, "r")
            await store.end_attempt(one.id, one.attempt, state, exit_status=3, message="no")


async def check_counted(url: str) -> None:
    """The counter is what it counts."""
    unfinished = "SELECT count(*) FROM deliveries WHERE state IN ('waiting', 'running')"
    counted = await query(url, "SELECT coalesce(sum(unfinished), 0) FROM commands")
    assert await query(url, unfinished) == counted
