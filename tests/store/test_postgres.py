"""What is PostgreSQL's own: logins, servers beside each other, a database that goes away."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy.dialects.postgresql.asyncpg import dialect

from cmdsvc.errors import BusyError, CmdError, DataError, InternalError
from cmdsvc.model import PUBLIC, Outcome, State
from cmdsvc.store import Store, open_store
from cmdsvc.store import postgres as behind
from cmdsvc.store.sql import (
    answers,
    commands,
    deliveries,
    hooks,
    outputs,
    runs,
    schedules,
    sharing,
    tokens,
    users,
)
from tests.store.lab import LATER, a_command, a_hook, a_run, at, query
from tests.store.postgres import Postgres

pytest_plugins = ("tests.store.backends",)


@pytest.fixture
def name(request: pytest.FixtureRequest, postgres: Postgres) -> Iterator[str]:
    """Of an empty database; where the test asks for `store`, one was opened and closed there."""
    made = "store" in request.fixturenames
    template = request.getfixturevalue("new_postgres") if made else "template0"
    with postgres.database(template) as name:
        yield name


@pytest.fixture
def url(postgres: Postgres, name: str) -> str:
    return postgres.url(name)


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    opened = await open_store(url, server="one")
    await opened.ensure_user("ann")
    yield opened
    await opened.aclose()


# Opening


async def test_over_the_network_with_a_password(postgres: Postgres, name: str) -> None:
    store = await open_store(postgres.tcp_url(name))
    await store.ensure_user("ann")
    assert await store.users() == ["ann"]
    await store.aclose()


async def test_what_cannot_be_opened(postgres: Postgres, name: str) -> None:
    for url, words in (
        (postgres.tcp_url(name, password="s3cret"), "the database refuses the login"),
        (postgres.tcp_url("none"), "there is no such database"),
        (f"postgresql+asyncpg://x:s3cret@127.0.0.1:1/{name}", "the database cannot be reached"),
        (f"postgresql+asyncpg://x:s3cret@/{name}?host=/nowhere", "the database cannot be reached"),
        (postgres.url(name) + "&nothing=known", "the database's URL"),
    ):
        with pytest.raises(CmdError, match=words) as raised:
            await open_store(url)
        assert "s3cret" not in str(raised.value)
        assert "\n" not in str(raised.value)
        assert isinstance(raised.value, InternalError) or "URL" in words


OPENING = """
import asyncio, sys
from cmdsvc.store import open_store

async def main():
    store = await open_store(sys.argv[1], server=sys.argv[2])
    await store.ensure_user("ann")
    await store.aclose()

asyncio.run(main())
"""


async def python(program: str, *words: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        *words,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )


async def test_servers_that_start_at_once(url: str) -> None:
    processes = [await python(OPENING, url, str(number)) for number in range(4)]
    done = await asyncio.gather(*(process.communicate() for process in processes))
    assert [process.returncode for process in processes] == [0] * 4, done
    assert await query(url, "SELECT name FROM users") == [("ann",)]


async def test_one_migrates_and_the_other_waits(url: str) -> None:
    waiting: list[asyncio.Task[Store]] = []

    def begin_another() -> None:
        waiting.append(asyncio.ensure_future(open_store(url)))

    with (
        at("CREATE TABLE alembic_version", lambda: None),
        at("\nCREATE TABLE users", begin_another),
    ):
        first = await open_store(url)
    (second,) = waiting
    await (await second).aclose()
    await first.aclose()


# Two servers

CREATING = """
import asyncio, sys
from cmdsvc.errors import ExistsError
from cmdsvc.store import open_store
from tests.store.lab import a_command, a_run

async def main():
    store = await open_store(sys.argv[1], server=sys.argv[2])
    await store.ensure_user("ann")
    print("ready", flush=True)
    sys.stdin.read(1)

    async def create(number):
        try:
            await store.create(**a_command(f"c{number}", author=sys.argv[2]))
        except ExistsError:
            return 0
        return 1

    made = sum(await asyncio.gather(*map(create, range(50))))
    await asyncio.gather(*(store.add_version(**a_command("c0")) for _ in range(50)))
    await store.begin_run(a_run(sys.argv[2]))
    print(made, flush=True)
    await store.aclose()

asyncio.run(main())
"""


async def test_two_server_processes(url: str) -> None:
    processes = [await python(CREATING, url, name) for name in ("one", "two")]
    for process in processes:
        assert process.stdout
        assert await process.stdout.readline() == b"ready\n"
    done = await asyncio.gather(*(process.communicate(b"\n") for process in processes))
    made = [int(out) for out, _ in done]
    assert sum(made) == 50
    store = await open_store(url, server="one")
    assert len(await store.names("ann")) == 50
    assert [one.number for one in await store.history("ann", "c0")] == list(range(101, 0, -1))
    # Each server's lost runs are its own.
    assert await store.mark_lost(LATER) == 1
    await store.aclose()


TAKING = """
import asyncio, sys
from datetime import timedelta
from cmdsvc.model import State
from cmdsvc.store import open_store
from tests.store.lab import NOW, an_arrival

async def main():
    store = await open_store(sys.argv[1], server=sys.argv[2])
    print("ready", flush=True)
    sys.stdin.read(1)
    hooks = await store.hooks("ann", "hello")
    taken = []

    async def put(number):
        # Half of them come to both servers.
        name = f"{number}" if number % 2 else f"{sys.argv[2]}{number}"
        arrival = an_arrival(sys.argv[2] + name, hooks[number % 2], same=name)
        await store.accept(arrival, most=1000)

    async def work():
        idle = 0
        while idle < 20:
            found = await store.claim(NOW, NOW + timedelta(minutes=1), 3)
            idle = 0 if found else idle + 1
            for one in found:
                taken.append(one.id)
                assert await store.end_attempt(one.id, 1, State.DONE)
            await asyncio.sleep(0 if found else 0.05)

    await asyncio.gather(*map(put, range(200)), work(), work())
    print(*taken, flush=True)
    await store.aclose()

asyncio.run(main())
"""


async def test_two_server_processes_share_the_deliveries(url: str, store: Store) -> None:
    await store.create(**a_command())
    for name in ("a", "b"):
        await store.add_hook(a_hook(name, ordered=name == "b"), by="ann")
    processes = [await python(TAKING, url, name) for name in ("one", "two")]
    for process in processes:
        assert process.stdout
        assert await process.stdout.readline() == b"ready\n"
    done = await asyncio.gather(*(process.communicate(b"\n") for process in processes))
    taken = [out.decode().split() for out, _ in done]
    everyone = taken[0] + taken[1]
    assert len(set(everyone)) == len(everyone) == 300
    assert all(taken)
    assert {one.state for one in await store.deliveries("ann", "hello", limit=1000)} == {State.DONE}
    assert await query(url, "SELECT unfinished FROM commands") == [(0,)]


# A database that goes away


async def test_it_comes_back(postgres: Postgres, store: Store) -> None:
    await store.create(**a_command())
    made = await store.find("ann", "hello")
    for number in (signal.SIGQUIT, signal.SIGINT):
        postgres.stop(number)
        for call in (
            store.find("ann", "hello"),
            store.begin_run(a_run()),
            store.usage(),
            store.create(**a_command("second")),
            store.ensure_user("bob"),
        ):
            with pytest.raises(BusyError) as raised:
                await call
            assert str(raised.value) == "the database cannot be reached; try again in a moment"
        postgres.start()
        assert await store.find("ann", "hello") == made
        await store.begin_run(a_run(f"r{number}"))
        await store.create(**a_command(f"c{number}"))
    assert len(await store.runs()) == 2


async def test_it_goes_away_in_a_transaction(postgres: Postgres, store: Store) -> None:
    with (
        at("INSERT INTO versions", lambda: postgres.stop(signal.SIGQUIT)),
        pytest.raises(BusyError),
    ):
        await store.create(**a_command())
    postgres.start()
    assert await store.names("ann") == []
    await store.create(**a_command())


async def test_its_connections_are_ended(postgres: Postgres, name: str, store: Store) -> None:
    await store.create(**a_command())
    await store.find("ann", "hello")
    postgres.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    results = await asyncio.gather(
        store.find("ann", "hello"), store.create(**a_command("x")), return_exceptions=True
    )
    assert all(not isinstance(one, Exception) or isinstance(one, BusyError) for one in results)
    assert await store.find("ann", "hello") is not None
    await store.create(**a_command("second"))
    await store.begin_run(a_run())


async def test_closed_while_it_is_away(postgres: Postgres, url: str) -> None:
    store = await open_store(url)
    await store.ensure_user("ann")
    postgres.stop(signal.SIGQUIT)
    await store.aclose()
    postgres.start()


# Locks


async def test_locked_by_another_process(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behind, "LOCK_TIMEOUT", 0.05)
    store = await open_store(url)
    await store.ensure_user("ann")
    await store.create(**a_command())
    other = await asyncpg.connect(url.replace("+asyncpg", ""))
    transaction = other.transaction()
    await transaction.start()
    await other.execute("LOCK TABLE commands, runs, users IN EXCLUSIVE MODE")
    for call in (
        store.begin_run(a_run()),
        store.ensure_user("bob"),
        store.add_version(**a_command()),
        store.set_access("ann", "hello", grant=[PUBLIC], by="ann"),
        store.delete("ann", "hello", by="ann"),
    ):
        with pytest.raises(BusyError, match="in use by another process; try again"):
            await call
    assert await store.find("ann", "hello") is not None
    await transaction.rollback()
    await other.close()
    await store.begin_run(a_run())
    await store.ensure_user("bob")
    await store.aclose()


async def test_a_deadlock_is_nobodys_business(store: Store) -> None:
    """Two lock two rows in turns; the database undoes one, which is done again."""
    for one in ("a", "b"):
        await store.create(**a_command(one))
    database: Any = store._database  # type: ignore[attr-defined]
    arrived = asyncio.Barrier(2)
    attempts = 0

    async def both(first: str, second: str) -> None:
        begun = False

        async def work(connection: Any) -> None:
            nonlocal begun, attempts
            attempts += 1
            await commands.hold(connection, "ann", first)
            if not begun:
                begun = True
                await arrived.wait()
            await commands.hold(connection, "ann", second)

        await database.transact(work)

    await asyncio.gather(both("a", "b"), both("b", "a"))
    assert 3 <= attempts <= 2 * behind.ATTEMPTS


async def test_more_at_once_than_connections(store: Store) -> None:
    await store.create(**a_command())
    await asyncio.gather(
        *(store.begin_run(a_run(f"r{number}")) for number in range(100)),
        *(store.add_version(**a_command()) for _ in range(50)),
        *(store.find("ann", "hello") for _ in range(100)),
    )
    assert len(await store.runs(limit=1000)) == 100


# What is stored


async def test_a_text_with_a_nul(store: Store) -> None:
    await store.create(**a_command())
    for call in (
        store.find("ann", "\0"),
        store.create(**a_command("x", description="a\0b")),
        store.set_env("ann", "hello", put={"\0": b""}, by="ann"),
    ):
        with pytest.raises(DataError, match="a text with a NUL in it cannot be stored"):
            await call
    assert await store.names("ann") == ["hello"]


async def test_text_is_ordered_by_code_point_whatever_the_database_does(
    postgres: Postgres,
) -> None:
    name = "test_ordered"
    postgres.sql(
        f"CREATE DATABASE {name} TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en' LOCALE 'C.UTF-8'"
    )
    try:
        store = await open_store(postgres.url(name))
        await store.ensure_user("ann")
        for one in ("b", "a-b", "ab", "a.b", "0", "a_b"):
            await store.create(**a_command(one))
        assert await store.names("ann") == ["0", "a-b", "a.b", "a_b", "ab", "b"]
        await store.set_env("ann", "ab", put=dict.fromkeys(("B", "a", "_", "A_", "AB"), b""), by="")
        assert len([one async for one in store.sealed()]) == 5
        await store.aclose()
    finally:
        postgres.sql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize(
    ("statement", "values"),
    [
        (commands.FIND, {"of_owner": "ann", "of_name": "c1"}),
        (commands.LISTINGS, {"of_owner": "ann"}),
        (commands.HISTORY, {"of_owner": "ann", "of_name": "c1"}),
        (commands.VERSION, {"of_owner": "ann", "of_name": "c1", "of_number": 1}),
        (sharing.RUNNABLE, {"of_subject": "bob"}),
        (tokens.TOKEN, {"of_token": "cmd_1"}),
        (tokens.TOKENS, {"of_owner": "ann"}),
        (runs.SEEN, {"of_user": "ann", "limit": 20, "limit_less_one": 19}),
        (runs.SEEN_OF_ANOTHERS, {"of_user": "bob", "of_command": "ann/c1", "limit": 20}),
        (runs.runs_query(of_user=False, of_command=False), {"limit": 20}),
        (runs.runs_query(of_user=True, of_command=False), {"of_user": "ann", "limit": 20}),
        (runs.END_RUN, {"of_run": "r1", "ended_at": 0}),
        (outputs.OUTPUT, {"of_run": "r1"}),
        (users.RENAME_RUNS[0], {"old": "ann", "new": "bob"}),
        (hooks.HOOK, {"of_owner": "ann", "of_name": "c1", "of_hook": "h"}),
        (deliveries.NEXT_DUE, {"of_server": "one"}),
        (deliveries.LISTED, {"of_owner": "ann", "of_name": "c1", "limit": 20}),
        (
            deliveries.LISTED_OF_HOOK,
            {"of_owner": "ann", "of_name": "c1", "of_hook": "h", "limit": 20},
        ),
        (deliveries.BACKLOG, {}),
        (schedules.SCHEDULE, {"of_owner": "ann", "of_name": "c1"}),
        (answers.ANSWER, {"of_caller": "", "of_key": b"key"}),
    ],
)
async def test_found_by_an_index(store: Store, url: str, statement: Any, values: Any) -> None:
    await store.create(**a_command("c1"))
    await store.begin_run(a_run())
    await store.end_run("r1", LATER, Outcome(0))
    compiled = statement.compile(dialect=dialect(), column_keys=list(values))
    bound = compiled.construct_params(values)
    words = ", ".join(map(literal, (bound[one] for one in compiled.positiontup)))
    settings = "&".join(f"{key}={value}" for key, value in behind.BY_INDEX.items())
    raw = await asyncpg.connect(f"{url.replace('+asyncpg', '')}&{settings}")
    try:
        await raw.execute(f"PREPARE asked AS {compiled}")
        plan = [row[0] for row in await raw.fetch(f"EXPLAIN EXECUTE asked{words and f'({words})'}")]
    finally:
        await raw.close()
    assert not [step for step in plan if "Seq Scan" in step]
    assert [step for step in plan if "Index" in step]


def literal(value: object) -> str:
    if isinstance(value, bytes):
        return f"'\\x{value.hex()}'"
    return "NULL" if value is None else repr(value)
