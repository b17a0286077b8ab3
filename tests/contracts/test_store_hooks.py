"""Hooks and what is sealed for them; on every store."""

from dataclasses import replace

import pytest

from cmdsvc.errors import ExistsError, NotFoundError
from cmdsvc.model import Hook, State
from cmdsvc.store import Place, Store
from cmdsvc.store.sql import sealed as behind
from tests.store.lab import LATER, NOW, a_command, a_hook, an_arrival, lines, query

pytest_plugins = ("tests.store.backends",)


@pytest.fixture
async def hello(store: Store) -> Store:
    await store.create(**a_command())
    return store


async def test_a_hook_comes_back(hello: Store) -> None:
    wanted = a_hook(
        scheme="hmac",
        options={"header": "X-Sig", "encoding": "base64", "word": "\N{SNOWMAN}"},
        retries=2,
        retry_any=True,
        ordered=True,
    )
    made = await hello.add_hook(wanted, by="bob")
    assert made.id > 0
    assert made == replace(wanted, id=made.id)
    assert await hello.hook("ann", "hello", "push") == made
    assert await hello.hook("ann", "hello", "pull") is None
    assert await hello.hook("bob", "hello", "push") is None
    other = await hello.add_hook(a_hook("a"), by="ann")
    assert await hello.hooks("ann", "hello") == [other, made]
    assert await hello.hooks("ann", "none") == []
    assert (await lines(hello))[-2:] == [
        "bob hook ann/hello push made: hmac",
        "ann hook ann/hello a made: github",
    ]


async def test_a_name_that_is_taken(hello: Store) -> None:
    made = await hello.add_hook(a_hook(), by="ann")
    with pytest.raises(ExistsError, match="ann/hello has a hook push already"):
        await hello.add_hook(a_hook(secret=b"other"), by="ann")
    assert await hello.hooks("ann", "hello") == [made]
    await hello.create(**a_command("second"))
    await hello.add_hook(a_hook(command="ann/second"), by="ann")


async def test_for_a_command_that_is_gone(hello: Store) -> None:
    with pytest.raises(NotFoundError, match="there is no command ann/none"):
        await hello.add_hook(a_hook(command="ann/none"), by="ann")


async def test_rotated(hello: Store) -> None:
    made = await hello.add_hook(a_hook(), by="ann")
    once = await hello.rotate_hook(made, b"second", LATER, by="bob")
    assert once == replace(made, secret=b"second", previous=b"\0sealed", rotated_at=LATER)
    # Whatever the caller knew: the one before is that which held.
    twice = await hello.rotate_hook(made, b"third", LATER, by="ann")
    assert twice == replace(once, secret=b"third", previous=b"second")
    assert await hello.hook("ann", "hello", "push") == twice
    assert (await lines(hello))[-2] == "bob hook ann/hello push rotated"
    await hello.remove_hook("ann", "hello", "push", by="ann")
    with pytest.raises(NotFoundError, match="ann/hello has no hook push"):
        await hello.rotate_hook(made, b"x", LATER, by="ann")


async def test_removed_with_its_deliveries(hello: Store, url: str) -> None:
    push, pull = [await hello.add_hook(a_hook(name), by="ann") for name in ("push", "pull")]
    for number in range(3):
        await hello.accept(an_arrival(f"d{number}", push), most=10)
        await hello.accept(an_arrival(f"e{number}", pull), most=10)
    taken = await hello.claim(NOW, LATER, 2)
    await hello.end_attempt(taken[0].id, 1, State.DONE)
    assert await hello.remove_hook("ann", "hello", "push", by="bob") is True
    assert await hello.remove_hook("ann", "hello", "push", by="bob") is False
    assert await hello.remove_hook("ann", "none", "push", by="bob") is False
    assert {one.hook for one in await hello.deliveries("ann", "hello")} == {"pull"}
    assert await query(url, "SELECT unfinished FROM commands") == [(3 - (taken[0].hook == "pull"),)]
    assert (await lines(hello))[-1] == "bob hook ann/hello push removed"


async def test_gone_with_the_command(hello: Store) -> None:
    made = await hello.add_hook(a_hook(), by="ann")
    await hello.accept(an_arrival("d", made), most=10)
    await hello.delete("ann", "hello", by="ann")
    assert await hello.hooks("ann", "hello") == []
    assert (await hello.usage())["deliveries"] == 0
    await hello.create(**a_command())
    assert await hello.hooks("ann", "hello") == []


# Sealed


async def all_of(store: Store) -> list[tuple[Place, bytes]]:
    return [one async for one in store.sealed()]


async def test_secrets_are_among_what_is_sealed(
    hello: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(behind, "BATCH", 2)
    await hello.set_env("ann", "hello", put={"push": b"value"}, by="ann")
    wanted: list[tuple[Place, bytes]] = [(("env", "ann", "hello", "push"), b"value")]
    for number in range(behind.BATCH + 1):
        made = await hello.add_hook(a_hook(f"h{number}", secret=b"%d" % number), by="ann")
        wanted.append((("hook", "ann", "hello", f"h{number}"), b"%d" % number))
    await hello.rotate_hook(made, b"new", LATER, by="ann")
    wanted.append((wanted[-1][0], b"new"))
    assert sorted(await all_of(hello)) == sorted(wanted)


async def test_both_secrets_are_sealed_anew(hello: Store) -> None:
    made = await hello.add_hook(a_hook(secret=b"1"), by="ann")
    await hello.set_env("ann", "hello", put={"push": b"1"}, by="ann")
    await hello.rotate_hook(made, b"2", LATER, by="ann")
    place: Place = ("hook", "ann", "hello", "push")
    assert await hello.reseal([(place, b"1", b"one"), (place, b"2", b"two")]) == 2
    assert await hello.reseal([(place, b"1", b"x"), (place, b"2", b"x")]) == 0
    found = await hello.hook("ann", "hello", "push")
    assert found is not None
    assert (found.secret, found.previous) == (b"two", b"one")
    command = await hello.find("ann", "hello")
    assert command is not None
    assert dict(command.env) == {"push": b"1"}


async def test_secrets_go_with_their_owner(hello: Store) -> None:
    await hello.ensure_user("bob")
    await hello.create(**a_command(owner="bob"))
    theirs = await hello.add_hook(a_hook(command="bob/hello"), by="bob")
    made = await hello.add_hook(a_hook(secret=b"1"), by="ann")
    await hello.rotate_hook(made, b"2", LATER, by="ann")
    places = []

    def reseal(place: Place, value: bytes) -> bytes:
        places.append((place, value))
        return value + b"!"

    assert await hello.rename_user("ann", "anna", by="", reseal=reseal)
    found = await hello.hook("anna", "hello", "push")
    assert isinstance(found, Hook)
    assert (found.command, found.secret, found.previous) == ("anna/hello", b"2!", b"1!")
    place = ("hook", "anna", "hello", "push")
    assert sorted(places) == [(place, b"1"), (place, b"2")]
    assert await hello.hook("bob", "hello", "push") == theirs


async def test_names_are_never_sql(hello: Store) -> None:
    for hostile in ("' OR '1'='1", ":of_hook", "$1", "%"):
        assert await hello.hook("ann", "hello", hostile) is None
        made = await hello.add_hook(a_hook(hostile, options={hostile: hostile}), by=hostile)
        assert await hello.hook("ann", "hello", hostile) == made
        assert await hello.remove_hook("ann", "hello", hostile, by=hostile)
