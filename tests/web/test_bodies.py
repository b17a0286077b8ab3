"""Bodies that are needed whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmdsvc.errors import BusyError
from cmdsvc.web.bodies import IN_MEMORY, Held, Room


def test_room_for_all_and_for_each():
    room = Room(100)
    room.take("a", 50)
    with pytest.raises(BusyError):
        room.take("a", 1)
    room.take("b", 50)
    with pytest.raises(BusyError):
        room.take("c", 1)
    room.give_back("a", 50)
    room.take("c", 50)
    room.give_back("b", 50)
    room.give_back("c", 50)
    room.take("a", 50)


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.mark.parametrize("size", [0, 1, IN_MEMORY - 1, IN_MEMORY, 3 * IN_MEMORY])
async def test_a_body_is_what_came(size: int, tmp_path: Path):
    room = Room(10 * IN_MEMORY)
    held = Held(room, "a", tmp_path)
    body = bytes(n % 251 for n in range(size))
    for start in range(0, size, 50_000):
        await held.add(body[start : start + 50_000])
    for _ in range(2):
        assert b"".join([piece async for piece in held.pieces()]) == body
    assert held.size == size
    held.close()
    held.close()
    assert names(tmp_path) == []
    room.take("a", 5 * IN_MEMORY)


async def test_what_finds_no_room_leaves_none_taken(tmp_path: Path):
    room = Room(100)
    held = Held(room, "a", tmp_path)
    await held.add(bytes(40))
    with pytest.raises(BusyError):
        await held.add(bytes(20))
    held.close()
    room.take("a", 50)


async def test_a_full_disk_is_try_later(tmp_path: Path):
    room = Room(10 * IN_MEMORY)
    held = Held(room, "a", tmp_path / "gone")
    with pytest.raises(BusyError, match="cannot be kept"):
        await held.add(bytes(2 * IN_MEMORY))
    held.close()
    room.take("a", 5 * IN_MEMORY)
