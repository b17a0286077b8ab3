"""Runs seen by others, and what is kept of them and for how long; on every store."""

import asyncio
from datetime import timedelta

import pytest

from cmdsvc.model import Outcome, Output
from cmdsvc.store import Store, open_store
from cmdsvc.store.sql import outputs
from tests.store.lab import LATER, NOW, a_command, a_run

pytest_plugins = ("tests.store.backends",)

ALL = range(24)


async def test_one_run(store: Store) -> None:
    await store.begin_run(a_run())
    assert await store.run("r1") == a_run()
    await store.end_run("r1", LATER, Outcome(3))
    assert await store.run("r1") == a_run(ended_at=LATER, outcome=Outcome(3))
    assert await store.run("r2") is None


@pytest.fixture
async def busy(store: Store) -> Store:
    """Runs by three users of three commands; bob administers ann/a, eve owns none."""
    for name in ("bob", "eve"):
        await store.ensure_user(name)
    for full_name in ("ann/a", "ann/b", "bob/a"):
        owner, _, name = full_name.partition("/")
        await store.create(**a_command(name, owner=owner))
    await store.set_admins("ann", "a", grant=["bob"], by="ann")
    for number in ALL:
        changes = {
            "user": ("ann", "bob", "eve")[number % 3],
            "command": ("ann/a", "ann/b", "bob/a", "cmd/echo")[number // 3 % 4],
            # Some begin in the same microsecond.
            "started_at": NOW + timedelta(microseconds=number // 2),
        }
        await store.begin_run(a_run(f"r{number:02}", **changes))
    return store


SEEN = {
    "ann": {"ann/a", "ann/b"},
    "bob": {"ann/a", "bob/a"},
    "eve": set(),
    "nobody": set(),
}
"""Commands, all of whose runs that user sees."""


@pytest.mark.parametrize("user", SEEN)
async def test_runs_seen_by(busy: Store, user: str) -> None:
    every = await busy.runs(limit=100)
    assert len(every) == len(ALL)
    seen = [run for run in every if run.user == user or run.command in SEEN[user]]
    for limit in (0, 1, 2, 5, 100, 10**30):
        assert await busy.runs_seen_by(user, limit=limit) == seen[:limit]
    for command in ("ann/a", "ann/b", "bob/a", "cmd/echo", "ann/none", "x", ""):
        of_it = [run for run in seen if run.command == command]
        for limit in (1, 2, 100):
            found = await busy.runs_seen_by(user, command=command, limit=limit)
            assert found == of_it[:limit]


async def test_what_an_admin_saw_he_sees_no_more(busy: Store) -> None:
    await busy.set_admins("ann", "a", revoke=["bob"], by="ann")
    assert {run.command for run in await busy.runs_seen_by("bob") if run.user != "bob"} == {"bob/a"}
    mine = await busy.runs_seen_by("bob", command="ann/a")
    assert {run.user for run in mine} == {"bob"}


async def test_an_owner_sees_the_runs_of_what_he_deleted(busy: Store) -> None:
    before = await busy.runs_seen_by("ann", limit=100)
    await busy.delete("ann", "a", by="ann")
    assert await busy.runs_seen_by("ann", limit=100) == before


# Outputs

KEPT = Output(((1, b"begin\0"), (2, b""), (1, bytes(100_000))), ((2, b"\xff"), (1, b"end")), 2**40)


async def test_output_comes_back(store: Store) -> None:
    await store.begin_run(a_run())
    assert await store.output("r1") is None
    await store.keep_output("r1", KEPT)
    assert await store.output("r1") == KEPT
    await store.keep_output("r1", Output((), ()))
    assert await store.output("r1") == Output((), ())
    assert (await store.usage())["outputs"] == 1


async def test_output_of_an_unknown_run_is_nothing(store: Store) -> None:
    await store.keep_output("r1", KEPT)
    assert await store.output("r1") is None


async def ended(store: Store, run_id: str, after: float, output: bytes | None = None) -> None:
    await store.begin_run(a_run(run_id))
    if output is not None:
        await store.keep_output(run_id, Output(((1, output),), ()))
    await store.end_run(run_id, NOW + timedelta(seconds=after), Outcome(0))


async def ids(store: Store) -> str:
    return "".join(sorted(run.id for run in await store.runs(limit=1000)))


async def test_old_runs_go_with_their_output(store: Store) -> None:
    await ended(store, "a", 1, b"12345")
    await ended(store, "b", 2)
    await ended(store, "c", 3, b"123")
    await store.begin_run(a_run("d"))
    three = NOW + timedelta(seconds=3)
    assert await store.retire_runs(before=three, bytes_kept=100) == (2, 5)
    assert await ids(store) == "cd"
    assert await store.retire_runs(before=three, bytes_kept=100) == (0, 0)
    assert await store.output("c") is not None
    assert await store.output("a") is None


async def test_the_output_kept_longest_goes_first(store: Store) -> None:
    for run_id, size in (("a", 10), ("b", 0), ("c", 20), ("d", 5)):
        await ended(store, run_id, 0, bytes(size))
    # Kept anew, it is the newest.
    await store.keep_output("a", Output(((1, bytes(10)),), ()))
    assert await store.retire_runs(before=NOW, bytes_kept=35) == (0, 0)
    assert await store.retire_runs(before=NOW, bytes_kept=34) == (0, 20)
    assert [await store.output(one) is None for one in "abcd"] == [False, True, True, False]
    assert await store.retire_runs(before=NOW, bytes_kept=0) == (0, 15)
    assert await ids(store) == "abcd"


async def test_in_steps(url: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    many = outputs.BATCH * 2 + 1
    for number in range(many):
        await ended(store, f"r{number}", number % 2, b"1" if number < 700 else b"")
    other = await open_store(url, server="two")
    done = await asyncio.gather(
        *(
            one.retire_runs(before=NOW + timedelta(seconds=1), bytes_kept=10)
            for one in (store, other)
        )
    )
    await other.aclose()
    assert sum(runs for runs, _ in done) == many // 2 + 1
    assert (await store.usage())["output_bytes"] <= 10
