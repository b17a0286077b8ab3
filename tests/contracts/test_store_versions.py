"""Versions: their history, and back to one; on every store."""

from datetime import UTC, datetime

import pytest

from cmdsvc.errors import NotFoundError
from cmdsvc.model import Version, VersionInfo
from cmdsvc.store import Store
from tests.store.lab import LATER, NOW, a_command, lines

pytest_plugins = ("tests.store.backends",)

ANN = ("ann", "hello")


@pytest.fixture
async def three(store: Store) -> Store:
    """With a command of three versions."""
    await store.create(**a_command(source=b"1", description="first"))
    await store.add_version(**a_command(source=b"\0\xff", author="bob", created_at=LATER))
    await store.add_version(**a_command(source=b"333", digest="e" * 64))
    return store


async def test_history_newest_first(three: Store) -> None:
    assert await three.history(*ANN) == [
        VersionInfo(3, "ann", NOW, "e" * 64, 3, current=True),
        VersionInfo(2, "bob", LATER, "d" * 64, 2, current=False),
        VersionInfo(1, "ann", NOW, "d" * 64, 1, current=False),
    ]
    assert await three.history("ann", "gone") == []


async def test_one_version(three: Store) -> None:
    assert await three.version(*ANN, 2) == Version(2, b"\0\xff", "bob", LATER, "d" * 64)
    for number in (0, -1, 4, 2**31, 10**30):
        assert await three.version(*ANN, number) is None
    assert await three.version("ann", "gone", 1) is None


async def test_back_to_one(three: Store) -> None:
    before = datetime.now(UTC)
    back = await three.set_current(*ANN, 1, by="bob")
    assert back == await three.find(*ANN)
    assert back.description == "first"
    assert back.version == await three.version(*ANN, 1)
    assert await three.source(*ANN) == b"1"
    (listed,) = await three.list_commands("ann")
    assert (listed.version, listed.description) == (1, "first")
    assert before <= listed.updated_at <= datetime.now(UTC)
    assert [one.current for one in await three.history(*ANN)] == [False, False, True]
    assert (await lines(three))[-1] == "bob rollback ann/hello version 1"


async def test_numbers_are_not_used_again_after_going_back(three: Store) -> None:
    await three.set_current(*ANN, 1, by="ann")
    changed = await three.add_version(**a_command(source=b"4"))
    assert changed.version.number == 4
    assert [one.current for one in await three.history(*ANN)] == [True, False, False, False]


async def test_back_to_where_it_is(three: Store) -> None:
    before = await three.find(*ANN), await three.list_commands("ann"), await lines(three)
    assert await three.set_current(*ANN, 3, by="ann") == before[0]
    assert (await three.find(*ANN), await three.list_commands("ann"), await lines(three)) == before


@pytest.mark.parametrize("number", [0, -1, 4, 2**31, 2**63, 10**30])
async def test_back_to_one_that_is_not_there(three: Store, number: int) -> None:
    before = await lines(three)
    with pytest.raises(NotFoundError, match=f"ann/hello has no version {number}"):
        await three.set_current(*ANN, number, by="ann")
    with pytest.raises(NotFoundError, match="there is no command ann/gone"):
        await three.set_current("ann", "gone", 1, by="ann")
    assert await lines(three) == before


async def test_what_the_record_says(three: Store) -> None:
    await three.delete(*ANN, by="root")
    await three.delete(*ANN, by="root")
    assert await lines(three) == [
        "ann create ann/hello",
        "bob edit ann/hello version 2",
        "ann edit ann/hello version 3",
        "root delete ann/hello",
    ]
    at = [entry.at for entry in await three.entries()]
    assert at[1:] == [NOW, LATER, NOW]


async def test_layers_that_versions_need(three: Store) -> None:
    await three.create(**a_command("second"))
    assert await three.digests() == {"d" * 64: 3, "e" * 64: 1}
    await three.delete(*ANN, by="ann")
    assert await three.digests() == {"d" * 64: 1}


async def test_what_one_has_stored(three: Store) -> None:
    await three.create(**a_command("second", source=bytes(1000)))
    assert await three.stored("ann") == (2, 1006)
    assert await three.stored("bob") == (0, 0)
