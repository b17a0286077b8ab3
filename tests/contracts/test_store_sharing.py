"""Who may run or change a command, and its sealed environment, on every store."""

import asyncio
from typing import Any

import pytest

from cmdsvc.errors import CmdError, NotFoundError
from cmdsvc.model import PUBLIC
from cmdsvc.store import Place, Store
from cmdsvc.store.sql import sealed as behind
from tests.store.lab import a_command, a_token, lines, query

pytest_plugins = ("tests.store.backends",)

ANN = ("ann", "hello")


@pytest.fixture
async def shared(store: Store) -> Store:
    """With users, a token of bob's, and a command that nothing is granted on."""
    for name in ("bob", "eve"):
        await store.ensure_user(name)
    await store.add_token(a_token("cmd_1", owner="bob"), b"hash", by="bob")
    await store.create(**a_command())
    return store


async def access(store: Store) -> set[str]:
    found = await store.find(*ANN)
    assert found
    return set(found.access)


async def admins(store: Store) -> set[str]:
    found = await store.find(*ANN)
    assert found
    return set(found.admins)


async def env(store: Store) -> dict[str, bytes]:
    found = await store.find(*ANN)
    assert found
    return dict(found.env)


# Grants


async def test_a_new_command_is_its_owners_alone(shared: Store) -> None:
    found = await shared.find(*ANN)
    assert found
    assert (found.admins, found.access, found.env) == (frozenset(), frozenset(), {})


async def test_grant_then_revoke(shared: Store) -> None:
    await shared.set_access(*ANN, grant=["bob", "cmd_1", PUBLIC], by="ann")
    assert await access(shared) == {"bob", "cmd_1", PUBLIC}
    await shared.set_access(*ANN, grant=["eve"], revoke=["cmd_1", PUBLIC], by="ann")
    assert await access(shared) == {"bob", "eve"}
    await shared.set_access(*ANN, revoke=["bob", "eve"], by="ann")
    assert await access(shared) == set()


async def test_admins_and_access_are_apart(shared: Store) -> None:
    await shared.set_access(*ANN, grant=["bob"], by="ann")
    await shared.set_admins(*ANN, grant=["bob", "eve"], by="ann")
    await shared.set_access(*ANN, revoke=["bob", "eve"], by="ann")
    assert (await access(shared), await admins(shared)) == (set(), {"bob", "eve"})
    await shared.set_admins(*ANN, revoke=["bob"], by="ann")
    assert await admins(shared) == {"eve"}


async def test_granting_and_revoking_twice_is_once(shared: Store) -> None:
    for _ in range(2):
        await shared.set_access(*ANN, grant=["bob", "bob", PUBLIC], by="ann")
        await shared.set_admins(*ANN, grant=["eve"], by="ann")
    assert await access(shared) == {"bob", PUBLIC}
    for _ in range(2):
        await shared.set_access(*ANN, revoke=["bob", "nobody", "cmd_none"], by="ann")
    assert await access(shared) == {PUBLIC}
    assert await lines(shared) == [
        "bob token cmd_1",
        "ann create ann/hello",
        "ann grant ann/hello bob public",
        "ann admin-grant ann/hello eve",
        "ann revoke ann/hello bob",
    ]


@pytest.mark.parametrize("unknown", ["nobody", "cmd_none", "cmd", "Bob", "bob ", "'; --"])
async def test_with_an_unknown_one_nothing_is_granted(shared: Store, unknown: str) -> None:
    await shared.set_access(*ANN, grant=["eve"], by="ann")
    before = await lines(shared)
    with pytest.raises(NotFoundError) as raised:
        await shared.set_access(*ANN, grant=["bob", unknown], revoke=["eve"], by="ann")
    assert unknown in raised.value.what
    assert await access(shared) == {"eve"}
    assert await lines(shared) == before


@pytest.mark.parametrize("unfit", ["nobody", "cmd_1", PUBLIC])
async def test_only_users_are_admins(shared: Store, unfit: str) -> None:
    with pytest.raises(NotFoundError, match=unfit):
        await shared.set_admins(*ANN, grant=["bob", unfit], by="ann")
    assert await admins(shared) == set()


async def test_on_a_command_that_is_gone(shared: Store) -> None:
    for call in (
        shared.set_access("ann", "gone", grant=["bob"], by="ann"),
        shared.set_admins("ann", "gone", grant=["bob"], by="ann"),
        shared.set_env("ann", "gone", put={"A": b"1"}, by="ann"),
    ):
        with pytest.raises(NotFoundError, match="there is no command ann/gone"):
            await call


async def test_a_new_version_keeps_what_hangs_on_the_command(shared: Store) -> None:
    await shared.set_access(*ANN, grant=["bob"], by="ann")
    await shared.set_admins(*ANN, grant=["eve"], by="ann")
    await shared.set_env(*ANN, put={"A": b"1"}, by="ann")
    changed = await shared.add_version(**a_command(author="eve"))
    assert changed == await shared.find(*ANN)
    assert (changed.access, changed.admins, changed.env) == ({"bob"}, {"eve"}, {"A": b"1"})


async def test_deleted_with_its_command(url: str, shared: Store) -> None:
    await shared.set_access(*ANN, grant=["bob", "cmd_1", PUBLIC], by="ann")
    await shared.set_env(*ANN, put={"A": b"1"}, by="ann")
    await shared.delete(*ANN, by="ann")
    assert await query(url, "SELECT * FROM grants") == await query(url, "SELECT * FROM env") == []
    await shared.create(**a_command())
    assert (await access(shared), await env(shared)) == (set(), {})


async def test_many_grant_the_same_at_once(url: str, shared: Store, other: Store) -> None:
    await asyncio.gather(
        *(
            one.set_access(*ANN, grant=["bob", "eve", "cmd_1", PUBLIC], by="ann")
            for one in [shared, other] * 5
        )
    )
    assert await access(shared) == {"bob", "eve", "cmd_1", PUBLIC}
    assert await query(url, "SELECT count(*) FROM grants") == [(4,)]
    assert (await lines(shared))[2:] == ["ann grant ann/hello bob cmd_1 eve public"]


async def test_granted_while_the_grantee_is_removed(url: str, shared: Store, other: Store) -> None:
    for number in range(10):
        name = f"u{number}"
        await shared.ensure_user(name)
        granted, removed = await asyncio.gather(
            shared.set_access(*ANN, grant=[name, "bob"], by="ann"),
            other.remove_user(name, by=""),
            return_exceptions=True,
        )
        assert granted is None or isinstance(granted, NotFoundError)
        assert removed is True
        assert await access(shared) == ({"bob"} if granted is None else set())
        await shared.set_access(*ANN, revoke=["bob"], by="ann")
    assert await query(url, "SELECT * FROM grants") == []


async def test_granted_while_it_is_deleted(url: str, shared: Store, other: Store) -> None:
    for _ in range(5):
        results = await asyncio.gather(
            shared.set_access(*ANN, grant=["bob"], by="ann"),
            other.delete(*ANN, by="ann"),
            other.set_env(*ANN, put={"A": b"1"}, by="ann"),
            shared.add_version(**a_command()),
            return_exceptions=True,
        )
        assert all(
            not isinstance(one, Exception) or isinstance(one, NotFoundError) for one in results
        )
        assert results[1] is True
        for table in ("commands", "versions", "grants", "env"):
            assert await query(url, f"SELECT * FROM {table}") == []
        await shared.create(**a_command())


async def test_everything_at_once_leaves_a_whole_state(shared: Store, other: Store) -> None:
    async def change(one: Store, number: int) -> None:
        await one.set_access(*ANN, grant=["bob"], revoke=["eve"], by="ann")
        await one.set_env(*ANN, put={"A": b"%d" % number, "B": b"%d" % number}, by="ann")
        await one.add_version(**a_command(source=b"%d" % number))
        await one.set_access(*ANN, grant=["eve", PUBLIC], revoke=["bob"], by="ann")
        await one.set_current(*ANN, 1, by="ann")

    await asyncio.gather(*(change(one, number) for number, one in enumerate([shared, other] * 4)))
    found = await shared.find(*ANN)
    assert found
    assert found.access in ({"bob"}, {"eve", PUBLIC}, {"bob", PUBLIC})
    assert found.env["A"] == found.env["B"]
    assert [one.number for one in await shared.history(*ANN)] == list(range(9, 0, -1))


# What others may run


async def runnable(store: Store, subject: str) -> list[str]:
    return [one.full_name for one in await store.runnable(subject)]


async def test_what_others_may_run(shared: Store) -> None:
    for owner, name in (("ann", "b"), ("ann", "a"), ("bob", "x"), ("eve", "p"), ("eve", "own")):
        await shared.create(**a_command(name, owner=owner))
    await shared.set_access("ann", "a", grant=["bob", "cmd_1"], by="ann")
    await shared.set_admins("ann", "a", grant=["bob"], by="ann")
    await shared.set_admins("ann", "b", grant=["bob"], by="ann")
    await shared.set_access("bob", "x", grant=["cmd_1", PUBLIC, "bob"], by="bob")
    await shared.set_access("eve", "p", grant=[PUBLIC, "bob"], by="eve")
    assert await runnable(shared, "bob") == ["ann/a", "ann/b", "eve/p"]
    assert await runnable(shared, "cmd_1") == ["ann/a", "bob/x", "eve/p"]
    assert await runnable(shared, "eve") == ["bob/x"]
    assert await runnable(shared, "nobody") == ["bob/x", "eve/p"]
    assert await runnable(shared, PUBLIC) == ["bob/x", "eve/p"]
    (first, *_) = await shared.runnable("bob")
    (same,) = [one for one in await shared.list_commands("ann") if one.name == "a"]
    assert first == same


# Environment


async def test_set_and_unset(shared: Store) -> None:
    await shared.set_env(*ANN, put={"A": b"1", "B": b"\0\xff"}, by="ann")
    await shared.set_env(*ANN, put={"A": b"2", "C": b""}, remove=["B", "X"], by="eve")
    assert await env(shared) == {"A": b"2", "C": b""}
    assert all(type(value) is bytes for value in (await env(shared)).values())
    await shared.set_env(*ANN, put={}, remove=["X"], by="eve")
    assert (await lines(shared))[-2:] == [
        "ann env ann/hello set A B",
        "eve env ann/hello set A C, unset B",
    ]


async def test_the_environment_of_another_command_is_its_own(shared: Store) -> None:
    await shared.create(**a_command("second"))
    await shared.set_env(*ANN, put={"A": b"1"}, by="ann")
    await shared.set_env("ann", "second", put={"A": b"2"}, by="ann")
    await shared.set_env("ann", "second", put={}, remove=["A"], by="ann")
    assert await env(shared) == {"A": b"1"}


async def sealed(store: Store) -> list[tuple[Place, bytes]]:
    return [one async for one in store.sealed()]


async def test_every_sealed_value(shared: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await sealed(shared) == []
    wanted = []
    for owner, name in (ANN, ("bob", "a"), ("ann", "z")):
        if (owner, name) != ANN:
            await shared.create(**a_command(name, owner=owner))
        values = {f"V{number}": f"{owner}{name}{number}".encode() for number in range(behind.BATCH)}
        await shared.set_env(owner, name, put=values, by=owner)
        wanted += [(("env", owner, name, variable), value) for variable, value in values.items()]
    assert sorted(await sealed(shared)) == sorted(wanted)


async def test_reseal_while_they_are_read(shared: Store) -> None:
    await shared.set_env(*ANN, put={f"V{n}": b"old" for n in range(250)}, by="ann")
    count = 0
    async for place, value in shared.sealed():
        assert value == b"old"
        count += await shared.reseal([(place, value, b"new" + place[3].encode())])
    assert count == 250
    assert await env(shared) == {f"V{n}": f"newV{n}".encode() for n in range(250)}


async def test_reseal_only_what_still_is_as_it_was(shared: Store) -> None:
    await shared.set_env(*ANN, put={"A": b"1", "B": b"2", "C": b"3"}, by="ann")
    values: list[Any] = [
        (("env", *ANN, "A"), b"1", b"one"),
        (("env", *ANN, "B"), b"not", b"two"),
        (("env", *ANN, "X"), b"1", b"x"),
        (("env", "ann", "gone", "A"), b"1", b"x"),
        (("env", *ANN, "C"), b"3", b"three"),
    ]
    assert await shared.reseal(values) == 2
    assert await env(shared) == {"A": b"one", "B": b"2", "C": b"three"}
    assert await shared.reseal([]) == 0


async def test_names_are_never_sql(shared: Store) -> None:
    for hostile in ("' OR '1'='1", ":of_subject", "$1", "%"):
        assert await shared.runnable(hostile) == []
        await shared.set_env(*ANN, put={hostile: b"1"}, by=hostile)
        await shared.set_access(*ANN, revoke=[hostile], by=hostile)
        assert await env(shared) == {hostile: b"1"}
        await shared.set_env(*ANN, put={}, remove=[hostile], by="ann")
        with pytest.raises(CmdError):
            await shared.set_access(*ANN, grant=[hostile], by="ann")
