"""What fails, is killed or is cancelled half-way."""

import asyncio

import pytest

from cmdsvc.errors import ExistsError
from cmdsvc.model import Answer, Outcome, Reason, Schedule, State
from cmdsvc.store import Store, open_store
from tests.store.lab import (
    LATER,
    NOW,
    a_command,
    a_hook,
    a_run,
    a_token,
    an_arrival,
    at,
    everything,
    fail,
    killed,
    query,
)

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
    "reseal": 'reseal([(("env", "ann", "hello", n), v, b"new") for n, v in (("A", b"1"), ("B", b"1"))])',
    "delete": 'delete("ann", "hello", by="ann")',
    "token": 'add_token(a_token("cmd_2"), b"2", by="ann")',
    "token-rm": 'remove_token("cmd_1", by="ann")',
    "user-rename": 'rename_user("ann", "anna", by="")',
    "user-rm": 'remove_user("ann", by="")',
    "notice": 'set_notice(Notice("x"), by="")',
    "hook": 'add_hook(a_hook("new"), by="ann")',
    "hook-rotate": 'rotate_hook(a_hook(id=1), b"new", LATER, by="ann")',
    "hook-rm": 'remove_hook("ann", "hello", "push", by="ann")',
    "accept": 'accept(an_arrival("new", a_hook("ordered", id=2)), most=99)',
    "claim": "claim(NOW, LATER, 9)",
    "begin-attempt": 'begin_attempt("taken", 1, "r1")',
    "retry": 'end_attempt("taken", 1, State.WAITING, due_at=LATER)',
    "end-attempt": 'end_attempt("taken", 1, State.DONE)',
    "replay": 'replay("ann", "hello", delivery=None, now=NOW, by="ann")',
    "reclaim": "reclaim(NOW)",
    "retire": "retire_deliveries(before=datetime.now(UTC) + timedelta(1))",
    "schedule": 'set_schedule(Schedule("ann/hello", "@hourly", "UTC", True, NOW), by="ann")',
    "tick": 'tick(await store.schedule("ann", "hello"), LATER, an_arrival("tick", None), most=99)',
    "answer": 'begin_answer("", "new", Answer(b"", "r1"), NOW, NOW)',
    "answered": 'end_answer("", "key", Answer(b"", "r1", 200))',
    "lost": "mark_lost(NOW)",
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
    await have_deliveries(store)
    before = await everything(url)
    # The first COMMIT is of the program's ensure_user, which changes nothing.
    await killed(url, f'    with at("COMMIT", die):\n        await store.{CHANGES[change]}')
    assert await everything(url) == before


async def have_deliveries(store: Store) -> None:
    """One that failed, one that runs and is of an ordered hook, one behind it, one that waits."""
    push = await store.add_hook(a_hook("push"), by="ann")
    ordered = await store.add_hook(a_hook("ordered", ordered=True), by="ann")
    assert (push.id, ordered.id) == (1, 2)
    await store.accept(an_arrival("failed", push), most=99)
    await store.accept(an_arrival("taken", ordered), most=99)
    for taken in await store.claim(NOW, LATER, 9):
        if taken.id == "failed":
            await store.end_attempt("failed", 1, State.FAILED)
    await store.accept(an_arrival("behind", ordered), most=99)
    await store.accept(an_arrival("waiting", push), most=99)
    await store.set_schedule(Schedule("ann/hello", "@daily", "UTC", own=True, since=NOW), by="ann")
    await store.begin_answer("", "key", Answer(b"", "r1"), NOW, NOW)


async def test_what_was_accepted_outlives_the_server(url: str, store: Store) -> None:
    """Each that was answered is there, none that was not, and they are counted."""
    await store.create(**a_command())
    await store.add_hook(a_hook(), by="ann")
    program = """    hook = await store.hook("ann", "hello", "push")
    async def call(n):
        await store.accept(an_arrival(f"d{n}", hook), most=200)
        print(f"d{n}", flush=True)
        if n == 150:
            die()
    await asyncio.gather(*(call(n) for n in range(300)))
"""
    told = set((await killed(url, program)).split())
    stored = {one.id for one in await store.deliveries("ann", "hello", limit=1000)}
    assert told <= stored
    assert len(stored) in {192, 200}  # whole commits
    unfinished = await query(url, "SELECT unfinished FROM commands")
    assert unfinished == [(len(stored),)]
    assert len(await store.claim(NOW, LATER, 1000)) == len(stored)


async def test_what_was_taken_is_taken_again(url: str, store: Store) -> None:
    await store.create(**a_command())
    hook = await store.add_hook(a_hook(), by="ann")
    for id_ in ("d1", "d2"):
        await store.accept(an_arrival(id_, hook), most=9)
    await killed(
        url,
        """    await store.claim(NOW, LATER, 2)
    await store.begin_attempt("d1", 1, "r1")
    await store.end_attempt("d1", 1, State.DONE)
    await store.begin_attempt("d2", 1, "r2")
    die()
""",
    )
    assert await store.reclaim(LATER) == 1
    assert [(one.id, one.attempt) for one in await store.claim(LATER, LATER, 9)] == [("d2", 2)]
    assert await store.end_attempt("d2", 2, State.DONE)
    assert await query(url, "SELECT unfinished FROM commands") == [(0,)]


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
