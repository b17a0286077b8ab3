"""Tokens; users renamed and removed; on every store."""

import asyncio

import pytest

from cmdsvc.errors import ExistsError, ForbiddenError
from cmdsvc.model import PUBLIC
from cmdsvc.store import Store, open_store
from tests.store.lab import LATER, NOW, a_command, a_run, a_token, lines, query

pytest_plugins = ("tests.store.backends",)


# Tokens


async def test_a_token_comes_back(store: Store) -> None:
    token = a_token("cmd_1", expires_at=LATER, description="for \N{SNOWMAN}")
    await store.add_token(token, b"\0hash", by="ann")
    assert await store.token("cmd_1") == (token, b"\0hash")
    assert await store.tokens("ann") == [token]
    assert await store.token("cmd_2") is None
    assert await store.tokens("bob") == []
    assert await lines(store) == ["ann token cmd_1 for \N{SNOWMAN}"]


async def test_an_id_that_is_taken(store: Store) -> None:
    await store.ensure_user("bob")
    await store.add_token(a_token("cmd_1"), b"1", by="ann")
    with pytest.raises(ExistsError):
        await store.add_token(a_token("cmd_1", owner="bob"), b"2", by="bob")
    assert await store.token("cmd_1") == (a_token("cmd_1"), b"1")
    assert len(await lines(store)) == 1


async def test_a_token_for_a_user_who_is_gone(store: Store) -> None:
    await store.remove_user("ann", by="")
    with pytest.raises(ForbiddenError, match="ann is not a user any more"):
        await store.add_token(a_token("cmd_1"), b"1", by="ann")


async def test_oldest_first(store: Store) -> None:
    for id_, at in (("cmd_b", LATER), ("cmd_c", NOW), ("cmd_a", NOW)):
        await store.add_token(a_token(id_, created_at=at), b"1", by="ann")
    assert [token.id for token in await store.tokens("ann")] == ["cmd_a", "cmd_c", "cmd_b"]


async def test_last_use(store: Store) -> None:
    await store.add_token(a_token("cmd_1"), b"1", by="ann")
    await store.used("cmd_1", LATER)
    await store.used("cmd_none", LATER)
    assert await store.tokens("ann") == [a_token("cmd_1", last_used_at=LATER)]


async def test_removed_with_its_grants(store: Store) -> None:
    for id_ in ("cmd_1", "cmd_2"):
        await store.add_token(a_token(id_), b"1", by="ann")
    await store.create(**a_command())
    await store.set_access("ann", "hello", grant=["cmd_1", "cmd_2", PUBLIC], by="ann")
    assert await store.remove_token("cmd_1", by="ann") is True
    assert await store.remove_token("cmd_1", by="ann") is False
    found = await store.find("ann", "hello")
    assert found
    assert found.access == {"cmd_2", PUBLIC}
    assert (await lines(store))[-1] == "ann token-rm cmd_1"


# Users


@pytest.fixture
async def busy(store: Store) -> Store:
    """Ann and bob own, run, change and may use what is each other's."""
    await store.ensure_user("bob")
    for owner in ("ann", "bob"):
        await store.add_token(a_token(f"cmd_{owner}", owner=owner), b"1", by=owner)
    for owner, other in (("ann", "bob"), ("bob", "ann")):
        await store.create(**a_command(owner=owner, author=owner))
        await store.add_version(**a_command(owner=owner, author=other))
        await store.set_access(owner, "hello", grant=[other, f"cmd_{other}"], by=owner)
        await store.set_admins(owner, "hello", grant=[other], by=owner)
        await store.set_env(owner, "hello", put={"A": owner.encode()}, by=owner)
        for user in ("ann", "bob"):
            await store.begin_run(a_run(f"{owner}-{user}", command=f"{owner}/hello", user=user))
    return store


async def test_renamed_with_all_that_is_his(url: str, busy: Store) -> None:
    before = await lines(busy)
    assert await busy.rename_user("ann", "anna", by="") is True
    assert await busy.users() == ["anna", "bob"]
    assert await busy.find("ann", "hello") is None
    own = await busy.find("anna", "hello")
    other = await busy.find("bob", "hello")
    assert own
    assert other
    assert (own.access, own.admins, own.env) == ({"bob", "cmd_bob"}, {"bob"}, {"A": b"ann"})
    assert (other.access, other.admins) == ({"anna", "cmd_ann"}, {"anna"})
    assert [one.author for one in await busy.history("anna", "hello")] == ["bob", "anna"]
    assert [one.author for one in await busy.history("bob", "hello")] == ["anna", "bob"]
    assert [token.id for token in await busy.tokens("anna")] == ["cmd_ann"]
    assert {run.id: (run.command, run.user) for run in await busy.runs()} == {
        "ann-ann": ("anna/hello", "anna"),
        "ann-bob": ("anna/hello", "bob"),
        "bob-ann": ("bob/hello", "anna"),
        "bob-bob": ("bob/hello", "bob"),
    }
    assert {run.id for run in await busy.runs_seen_by("anna")} == {
        "ann-ann", "ann-bob", "bob-ann", "bob-bob",
    }  # fmt: skip
    assert await busy.runs_seen_by("ann") == []
    # The record tells of what was.
    assert await lines(busy) == [*before, " user-rename ann to anna"]
    assert await query(url, "SELECT DISTINCT owner FROM runs ORDER BY owner") == [
        ("anna",),
        ("bob",),
    ]


async def test_a_renamed_user_is_known_anew(busy: Store) -> None:
    await busy.rename_user("ann", "anna", by="")
    await busy.ensure_user("ann")
    assert await busy.users() == ["ann", "anna", "bob"]
    await busy.create(**a_command())


async def test_renamed_to_who_is_there(busy: Store) -> None:
    before = await busy.find("ann", "hello"), await lines(busy), await busy.runs()
    with pytest.raises(ExistsError, match="there is a user bob already"):
        await busy.rename_user("ann", "bob", by="")
    assert await busy.rename_user("nobody", "somebody", by="") is False
    assert (await busy.find("ann", "hello"), await lines(busy), await busy.runs()) == before


async def test_removed_with_all_that_is_his(url: str, busy: Store) -> None:
    assert await busy.remove_user("ann", by="root") is True
    assert await busy.remove_user("ann", by="root") is False
    assert await busy.users() == ["bob"]
    assert await busy.find("ann", "hello") is None
    other = await busy.find("bob", "hello")
    assert other
    assert (other.access, other.admins, other.env) == (frozenset(), frozenset(), {"A": b"bob"})
    assert await busy.token("cmd_ann") is None
    assert [one.author for one in await busy.history("bob", "hello")] == ["ann", "bob"]
    assert len(await busy.runs()) == 4
    for table, rows in (("commands", 1), ("versions", 2), ("grants", 0), ("env", 1), ("tokens", 1)):
        assert await query(url, f"SELECT count(*) FROM {table}") == [(rows,)]
    assert (await lines(busy))[-1] == "root user-rm ann with 1 commands"
    await busy.ensure_user("ann")
    await busy.create(**a_command())


async def test_removed_while_he_makes_commands(url: str, store: Store) -> None:
    other = await open_store(url, server="two")
    for attempt in range(5):
        await store.ensure_user("ann")
        results = await asyncio.gather(
            *(other.create(**a_command(f"c{attempt}{number}")) for number in range(4)),
            store.remove_user("ann", by=""),
            other.add_token(a_token(f"cmd_{attempt}"), b"1", by="ann"),
            return_exceptions=True,
        )
        assert results[4] is True
        assert all(
            not isinstance(one, Exception) or isinstance(one, ForbiddenError) for one in results
        )
        assert await store.names("ann") == await store.tokens("ann") == await store.users() == []
    await other.aclose()


async def test_two_rename_at_once(url: str, busy: Store) -> None:
    other = await open_store(url, server="two")
    results = await asyncio.gather(
        busy.rename_user("ann", "carl", by=""), other.rename_user("bob", "carl", by=""),
        return_exceptions=True,
    )  # fmt: skip
    assert [type(one) for one in results].count(ExistsError) == 1
    results = await asyncio.gather(
        busy.rename_user("carl", "dora", by=""), other.rename_user("carl", "emil", by="")
    )
    assert sorted(results) == [False, True]
    await other.aclose()
