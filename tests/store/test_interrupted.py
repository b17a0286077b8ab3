"""What fails, is killed or is cancelled half-way."""

import asyncio

import pytest

from cmdsvc.errors import ExistsError
from cmdsvc.model import Outcome, Reason
from cmdsvc.store import Store, open_store
from tests.store.lab import LATER, a_command, a_run, a_token, at, everything, fail, killed, query

pytest_plugins = ("tests.store.backends",)

STATEMENTS = [
    "INSERT INTO commands",
    "UPDATE commands",
    "SELECT",
    "INSERT INTO versions",
    "INSERT INTO entries",
    "COMMIT",
]
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


CHANGES = {
    "edit": 'add_version(**a_command(source=b"2"))',
    "rollback": 'set_current("ann", "hello", 1, by="ann")',
    "grant": 'set_access("ann", "hello", grant=["bob", "cmd_1"], by="ann")',
    "revoke": 'set_access("ann", "hello", revoke=["ann"], by="ann")',
    "admin": 'set_admins("ann", "hello", grant=["bob"], by="ann")',
    "env": 'set_env("ann", "hello", put={"A": b"2", "C": b"3"}, remove=["B"], by="ann")',
    "reseal": 'reseal([("ann", "hello", n, v, b"new") for n, v in (("A", b"1"), ("B", b"1"))])',
    "delete": 'delete("ann", "hello", by="ann")',
    "token": 'add_token(a_token("cmd_2"), b"2", by="ann")',
    "token-rm": 'remove_token("cmd_1", by="ann")',
    "user-rename": 'rename_user("ann", "anna", by="")',
    "user-rm": 'remove_user("ann", by="")',
    "notice": 'set_notice(Notice("x"), by="")',
}


@pytest.mark.parametrize("change", CHANGES)
async def test_what_is_killed_before_its_commit_changes_nothing(
    url: str, store: Store, change: str
) -> None:
    await store.ensure_user("bob")
    await store.create(**a_command())
    await store.add_version(**a_command())
    await store.add_token(a_token("cmd_1"), b"1", by="ann")
    await store.set_access("ann", "hello", grant=["ann"], by="ann")
    await store.set_env("ann", "hello", put={"A": b"1", "B": b"1"}, by="ann")
    await store.begin_run(a_run())
    before = await everything(url)
    # The first COMMIT is of the program's ensure_user, which changes nothing.
    await killed(url, f'    with at("COMMIT", die):\n        await store.{CHANGES[change]}')
    assert await everything(url) == before


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
