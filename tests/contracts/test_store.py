"""What every store does, whatever database is behind it."""

import asyncio
from datetime import UTC, timedelta, timezone
from typing import Any

import pytest

from cmdsvc.errors import DataError, ExistsError, ForbiddenError, InternalError, NotFoundError
from cmdsvc.model import Command, Outcome, Reason
from cmdsvc.store import Listing, Store, open_store
from tests.store.lab import LATER, NOW, a_command, a_run, at, fail, query

pytest_plugins = ("tests.store.backends",)

ODD = [
    b"",
    b"\0\xff\xfe\r\n'\"; DROP TABLE commands; --",
    "#!cmd alpine\n#!/bin/sh\necho \N{SNOWMAN} \N{PILE OF POO} e\N{COMBINING ACUTE ACCENT}\n".encode(),
    bytes(range(256)) * 4096,
]
HOSTILE = ["' OR '1'='1", "x'; DROP TABLE commands; --", '"', "%", "_", ":of_name", "$1", "ünï", ""]


# Users


async def test_users_are_known_once(store: Store) -> None:
    for name in ("zoe", "bob", "ann", "zoe"):
        await store.ensure_user(name)
    await asyncio.gather(*(store.ensure_user("eve") for _ in range(5)))
    assert await store.users() == ["ann", "bob", "eve", "zoe"]


async def test_a_known_user_costs_no_statement(store: Store) -> None:
    with at("INSERT", fail):
        await store.ensure_user("ann")


async def test_a_user_known_to_another_server(url: str, store: Store) -> None:
    other = await open_store(url, server="two")
    await other.ensure_user("ann")
    await other.aclose()
    assert await store.users() == ["ann"]


# Commands


async def test_create_then_find(store: Store) -> None:
    made = await store.create(**a_command())
    assert made == await store.find("ann", "hello")
    assert made.full_name == "ann/hello"
    assert made.description == "says hello"
    assert made.version.number == 1
    assert made.version.created_at == NOW
    assert made.version.created_at.tzinfo is UTC


async def test_find_what_is_not_there(store: Store) -> None:
    await store.create(**a_command())
    for owner, name in (("ann", "hell"), ("ann", "HELLO"), ("bob", "hello"), ("ann", "hello ")):
        assert await store.find(owner, name) is None


async def test_create_what_exists(store: Store) -> None:
    made = await store.create(**a_command())
    with pytest.raises(ExistsError, match="ann/hello exists already") as raised:
        await store.create(**a_command(source=b"other"))
    assert raised.value.exit_status == 73
    assert await store.find("ann", "hello") == made


async def test_the_same_name_of_two_owners(store: Store) -> None:
    await store.ensure_user("bob")
    await store.create(**a_command(source=b"1"))
    await store.create(**a_command(source=b"2", owner="bob"))
    assert await store.source("ann", "hello") == b"1"
    assert await store.source("bob", "hello") == b"2"


async def test_two_create_one_name_at_once(url: str, store: Store) -> None:
    other = await open_store(url, server="two")
    made = await asyncio.gather(
        *(
            one.create(**a_command(source=str(number).encode()))
            for number, one in enumerate((store, store, other, other))
        ),
        return_exceptions=True,
    )
    await other.aclose()
    (winner,) = [one for one in made if isinstance(one, Command)]
    assert [type(one) for one in made].count(ExistsError) == 3
    assert await store.find("ann", "hello") == winner
    assert await query(url, "SELECT count(*) FROM versions") == [(1,)]


async def test_create_for_a_user_who_is_gone(url: str, store: Store) -> None:
    await query(url, "DELETE FROM users")
    with pytest.raises(ForbiddenError, match="ann is not a user any more; log in again"):
        await store.create(**a_command())
    await store.ensure_user("ann")
    await store.create(**a_command())


async def test_versions_count_up(store: Store) -> None:
    await store.create(**a_command(source=b"1"))
    changes = {"source": b"2", "author": "bob", "description": "better", "created_at": LATER}
    changed = await store.add_version(**a_command(**changes))
    assert changed == await store.find("ann", "hello")
    assert changed.version.number == 2
    assert (changed.description, changed.version.author) == ("better", "bob")
    assert await store.source("ann", "hello") == b"2"
    assert await store.source("ann", "hello", 1) == b"1"


async def test_many_add_a_version_at_once(url: str, store: Store) -> None:
    await store.create(**a_command())
    other = await open_store(url, server="two")
    changed = await asyncio.gather(
        *(
            one.add_version(**a_command(source=str(number).encode()))
            for number, one in enumerate([store, other] * 5)
        )
    )
    await other.aclose()
    assert sorted(one.version.number for one in changed) == list(range(2, 12))
    for one in changed:
        assert await store.source("ann", "hello", one.version.number) == one.version.source
    assert await store.find("ann", "hello") == max(changed, key=lambda one: one.version.number)


async def test_add_a_version_to_what_is_not_there(url: str, store: Store) -> None:
    with pytest.raises(NotFoundError, match="there is no command ann/hello") as raised:
        await store.add_version(**a_command())
    assert raised.value.exit_status == 127
    assert await query(url, "SELECT * FROM versions") == []


async def test_lists(store: Store) -> None:
    for name in ("b", "a-b", "ab", "a.b", "0"):
        await store.create(**a_command(name))
    await store.add_version(**a_command("ab", description="new", created_at=LATER))
    names = ["0", "a-b", "a.b", "ab", "b"]
    assert await store.names("ann") == names
    listed = await store.list_commands("ann")
    assert [one.name for one in listed] == names
    assert listed[0] == Listing("ann", "0", "says hello", 1, NOW)
    assert listed[3] == Listing("ann", "ab", "new", 2, LATER)
    assert listed[3].full_name == "ann/ab"
    assert await store.names("bob") == await store.list_commands("bob") == []


async def test_delete(url: str, store: Store) -> None:
    await store.create(**a_command())
    await store.add_version(**a_command())
    await store.begin_run(a_run())
    assert await store.delete("ann", "hello", by="ann") is True
    assert await store.delete("ann", "hello", by="ann") is False
    assert await store.find("ann", "hello") is None
    assert await store.source("ann", "hello", 1) is None
    assert await query(url, "SELECT * FROM versions") == []
    assert await store.runs(command="ann/hello") == [a_run()]
    again = await store.create(**a_command())
    assert again.version.number == 1


@pytest.mark.parametrize("source", ODD, ids=["empty", "bytes", "unicode", "1 MB"])
async def test_sources_come_back_as_they_were(store: Store, source: bytes) -> None:
    await store.create(**a_command(source=source))
    found = await store.find("ann", "hello")
    assert found is not None
    assert found.version.source == source
    assert type(found.version.source) is bytes
    assert await store.source("ann", "hello", 1) == source


@pytest.mark.parametrize("number", [0, -1, 2, 2**31, 2**63, 10**30])
async def test_a_version_that_is_not_there(store: Store, number: int) -> None:
    await store.create(**a_command())
    assert await store.source("ann", "hello", number) is None


@pytest.mark.parametrize("name", HOSTILE)
async def test_names_are_never_sql(store: Store, name: str) -> None:
    made = await store.create(**a_command())
    assert await store.find("ann", name) is None
    assert await store.find(name, "hello") is None
    assert await store.source(name, name) is None
    assert await store.names(name) == []
    assert await store.list_commands(name) == []
    assert await store.runs(user=name, command=name) == []
    assert await store.delete("ann", name, by="ann") is False
    await store.create(**a_command(f"x{name}", description=name))
    found = await store.find("ann", f"x{name}")
    assert found is not None
    assert found.description == name
    assert await store.find("ann", "hello") == made


async def test_text_that_is_no_unicode(store: Store) -> None:
    with pytest.raises(DataError):
        await store.find("ann", "\ud800")
    with pytest.raises(DataError):
        await store.create(**a_command(description="\ud800"))
    assert await store.names("ann") == []


async def test_moments_of_other_zones(store: Store) -> None:
    there = NOW.astimezone(timezone(timedelta(hours=5, minutes=45)))
    made = await store.create(**a_command(created_at=there))
    found = await store.find("ann", "hello")
    assert found == made
    assert found.version.created_at == NOW
    assert made.version.created_at.tzinfo is UTC


# Runs


async def test_a_run_from_start_to_end(store: Store) -> None:
    await store.begin_run(a_run())
    assert await store.runs() == [a_run()]
    outcome = Outcome(137, Reason.MEMORY, "it ran out of memory \N{SNOWMAN}")
    await store.end_run("r1", LATER, outcome)
    assert await store.runs() == [a_run(ended_at=LATER, outcome=outcome)]


async def test_the_first_end_stays(store: Store) -> None:
    await store.begin_run(a_run())
    await store.end_run("r1", LATER, Outcome(3))
    await store.end_run("r1", NOW, Outcome(4))
    await store.end_run("unknown", NOW, Outcome(5))
    assert await store.runs() == [a_run(ended_at=LATER, outcome=Outcome(3))]


async def test_a_run_is_begun_once(store: Store) -> None:
    await store.begin_run(a_run())
    with pytest.raises(InternalError):
        await store.begin_run(a_run())


@pytest.mark.parametrize("reason", Reason)
async def test_every_reason(store: Store, reason: Reason) -> None:
    await store.begin_run(a_run())
    await store.end_run("r1", LATER, Outcome(0, reason))
    (run,) = await store.runs()
    assert run.outcome == Outcome(0, reason)


async def test_runs_newest_first(store: Store) -> None:
    for number in range(6):
        changes = {
            "user": ("ann", "bob")[number % 2],
            "command": ("ann/a", "ann/b", "ann/c")[number % 3],
            "started_at": NOW + timedelta(microseconds=number // 2),
        }
        await store.begin_run(a_run(f"r{number}", **changes))

    async def ids(**wanted: Any) -> str:
        return "".join(run.id[1] for run in await store.runs(**wanted))

    assert await ids() == "543210"
    assert await ids(limit=2) == "54"
    assert await ids(user="ann") == "420"
    assert await ids(command="ann/a") == "30"
    assert await ids(user="bob", command="ann/b") == "1"
    assert await ids(user="eve") == ""
    assert await ids(limit=0) == await ids(limit=-1) == ""
    assert await ids(limit=10**30) == "543210"


async def test_lost_runs_are_those_of_this_server_without_an_end(url: str, store: Store) -> None:
    other = await open_store(url, server="two")
    await other.begin_run(a_run("theirs"))
    await other.aclose()
    await store.begin_run(a_run("ended"))
    await store.end_run("ended", NOW, Outcome(0))
    await store.begin_run(a_run("lost1"))
    await store.begin_run(a_run("lost2"))

    assert await store.mark_lost(LATER) == 2
    assert await store.mark_lost(LATER) == 0
    found = {run.id: run for run in await store.runs()}
    assert found["theirs"].outcome is None
    assert found["ended"].outcome == Outcome(0)
    for name in ("lost1", "lost2"):
        outcome = found[name].outcome
        assert outcome is not None
        assert outcome.reason is Reason.LOST
        assert found[name].ended_at == LATER


async def test_many_runs_at_once(store: Store) -> None:
    await store.create(**a_command())

    async def run(number: int) -> None:
        assert await store.find("ann", "hello")
        await store.begin_run(a_run(f"r{number}"))
        await store.end_run(f"r{number}", LATER, Outcome(number))

    await asyncio.gather(*(run(number) for number in range(200)))
    ended = await store.runs(limit=500)
    assert sorted(one.outcome.exit_status for one in ended if one.outcome) == list(range(200))
