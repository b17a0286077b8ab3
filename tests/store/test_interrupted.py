"""What fails, is killed or is cancelled half-way."""

import asyncio

import pytest

from cmdsvc.errors import ExistsError
from cmdsvc.model import Outcome, Reason
from cmdsvc.store import Store, open_store
from tests.store.lab import LATER, a_command, a_run, at, fail, killed, query

STATEMENTS = ["INSERT INTO commands", "UPDATE commands", "SELECT", "INSERT INTO versions", "COMMIT"]
"""Of a `create`."""


async def test_what_fails_within_stores_nothing(url: str, store: Store) -> None:
    with at("INSERT INTO versions", fail), pytest.raises(RuntimeError):
        await store.create(**a_command())
    assert await store.names("ann") == []
    made = await store.create(**a_command())
    with at("INSERT INTO versions", fail), pytest.raises(RuntimeError):
        await store.add_version(**a_command(source=b"2"))
    assert await store.find("ann", "hello") == made
    changed = await store.add_version(**a_command(source=b"3"))
    assert changed.version.number == 2


@pytest.mark.parametrize("start", STATEMENTS)
async def test_what_is_killed_within_stores_nothing(url: str, start: str) -> None:
    program = f"    with at({start!r}, die):\n        await store.create(**a_command())"
    await killed(url, program)
    store = await open_store(url)
    assert await store.users() == ["ann"]
    assert await store.names("ann") == []
    await store.create(**a_command())
    await store.aclose()


async def test_a_begun_run_outlives_the_server(url: str) -> None:
    await killed(
        url, "    await store.create(**a_command())\n    await store.begin_run(a_run())\n    die()"
    )
    store = await open_store(url, server="one")
    assert await store.names("ann") == ["hello"]
    assert await store.runs() == [a_run()]
    assert await store.mark_lost(LATER) == 1
    await store.aclose()


@pytest.mark.parametrize("times", [1, 50])
@pytest.mark.parametrize("start", ["BEGIN", *STATEMENTS])
async def test_cancelled_once_begun_it_is_brought_to_its_end(
    url: str, store: Store, start: str, times: int
) -> None:
    reached = asyncio.Event()

    def cancel() -> None:
        creating.cancel()
        reached.set()

    with at(start, cancel):
        creating = asyncio.ensure_future(store.create(**a_command()))
        await reached.wait()
        for _ in range(times - 1):
            await asyncio.sleep(0)
            creating.cancel()
        await asyncio.gather(creating, return_exceptions=True)
    assert creating.cancelled()
    with pytest.raises(ExistsError):
        await store.create(**a_command())
    counted = "SELECT (SELECT count(*) FROM commands), (SELECT count(*) FROM versions)"
    assert await query(url, counted) == [(1, 1)]


async def test_cancelled_while_another_writes_it_never_begins(store: Store) -> None:
    first = asyncio.ensure_future(store.create(**a_command("first")))
    second = asyncio.ensure_future(store.create(**a_command("second")))
    third = asyncio.ensure_future(store.create(**a_command("third")))
    with at("INSERT INTO versions", second.cancel):
        await asyncio.gather(first, second, third, return_exceptions=True)
    assert second.cancelled()
    assert await store.names("ann") == ["first", "third"]


async def test_closing_waits_for_what_is_under_way(url: str, store: Store) -> None:
    closing: list[asyncio.Task[None]] = []

    def close() -> None:
        closing.append(asyncio.ensure_future(store.aclose()))
        creating.cancel()

    creating = asyncio.ensure_future(store.create(**a_command()))
    with at("INSERT INTO versions", close):
        await asyncio.gather(creating, return_exceptions=True)
    await asyncio.gather(*closing)
    again = await open_store(url)
    assert await again.names("ann") == ["hello"]
    await again.aclose()


async def test_a_cancelled_run_can_be_ended(store: Store) -> None:
    beginning = asyncio.ensure_future(store.begin_run(a_run()))
    await asyncio.sleep(0)
    beginning.cancel()
    await asyncio.gather(beginning, return_exceptions=True)
    await store.end_run("r1", LATER, Outcome(129, Reason.HANGUP))
    assert await store.mark_lost(LATER) == 0
