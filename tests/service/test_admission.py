"""How many runs go on at once, and who comes next."""

from __future__ import annotations

import asyncio

import pytest

from cmdsvc.errors import BusyError
from cmdsvc.service import admission
from cmdsvc.service.admission import Admission
from tests.fakes import soon, turns


class Line:
    """Callers who wait, by what they are called: their users, each with a number."""

    def __init__(self, slots: Admission) -> None:
        self.slots = slots
        self.order: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}

    def join(self, *names: str) -> None:
        for name in names:
            self.tasks[name] = asyncio.create_task(self._wait(name))

    async def _wait(self, name: str) -> None:
        await self.slots.wait(name[0])
        self.order.append(name)

    async def refused(self, name: str) -> str:
        with pytest.raises(BusyError) as caught:
            await soon(self.tasks[name])
        return str(caught.value)


async def test_where_there_is_room_nobody_waits():
    slots = Admission(3, 2, 0)
    assert slots.enter("a")
    assert slots.enter("a")
    assert not slots.enter("a")
    assert slots.enter("b")
    assert not slots.enter("c")
    assert slots.running == 3
    slots.leave("a")
    assert slots.enter("c")
    for user in "abc":
        slots.leave(user)
    assert slots.running == 0


async def test_whose_slots_are_taken_is_told_what_to_do():
    slots = Admission(2, 1, 0)
    slots.enter("a")
    line = Line(slots)
    line.join("a1")
    assert await line.refused("a1") == (
        "1 runs of yours go on, which is the limit; wait for one to end, or see :runs and :kill"
    )
    slots.enter("b")
    line.join("c1")
    assert await line.refused("c1") == "2 runs go on, which is the limit; try again in a moment"
    assert slots.refused == 2
    assert slots.waiting == 0
    assert slots.running == 2


async def test_who_waits_gets_the_next_slot():
    slots = Admission(1, 1, 60)
    slots.enter("a")
    line = Line(slots)
    line.join("b1", "a1")
    await turns()
    assert slots.waiting == 2
    slots.leave("a")
    assert not slots.enter("c")  # it is given away already
    await soon(line.tasks["b1"])
    slots.leave("b")
    await soon(line.tasks["a1"])
    assert line.order == ["b1", "a1"]
    assert (slots.running, slots.waiting) == (1, 0)


async def test_users_take_turns_however_long_their_lines_are():
    slots = Admission(1, 1, 60)
    slots.enter("x")
    line = Line(slots)
    line.join("a1", "a2", "a3", "a4", "b1", "b2", "c1")
    await turns()
    for user in ("x", "a", "b", "c", "a", "b", "a"):
        slots.leave(user)
        await turns()
    assert line.order == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


async def test_a_user_at_his_own_limit_holds_up_nobody():
    slots = Admission(2, 1, 60)
    slots.enter("a")
    slots.enter("b")
    line = Line(slots)
    line.join("a1", "c1")
    await turns()
    slots.leave("b")
    await soon(line.tasks["c1"])
    assert not line.tasks["a1"].done()
    slots.leave("a")
    await soon(line.tasks["a1"])


async def test_who_leaves_the_line_takes_no_slot():
    slots = Admission(1, 1, 60)
    slots.enter("a")
    line = Line(slots)
    line.join("b1", "c1")
    await turns()
    line.tasks["b1"].cancel()
    slots.leave("a")
    await soon(line.tasks["c1"])
    slots.leave("c")
    assert (slots.running, slots.waiting) == (0, 0)


async def test_who_leaves_just_when_it_is_his_turn_gives_it_back():
    slots = Admission(1, 1, 60)
    slots.enter("a")
    line = Line(slots)
    line.join("b1", "c1")
    await turns()
    slots.leave("a")
    line.tasks["b1"].cancel()
    await soon(line.tasks["c1"])
    slots.leave("c")
    await turns()
    assert (slots.running, slots.waiting) == (0, 0)


async def test_where_too_many_wait_the_longest_line_gives_way(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(admission, "WAITING", 3)
    slots = Admission(1, 1, 60)
    slots.enter("x")
    line = Line(slots)
    line.join("a1", "a2", "a3")
    await turns()
    line.join("a4")
    assert "1 runs go on" in await line.refused("a4")
    line.join("b1")
    await line.refused("a3")
    line.join("c1")
    await line.refused("a2")
    line.join("d1")
    await line.refused("d1")
    assert slots.waiting == 3
    for user in "xabc":
        slots.leave(user)
        await turns()
    assert line.order == ["a1", "b1", "c1"]


async def test_going_down_refuses_who_waits():
    slots = Admission(1, 1, 60)
    slots.enter("a")
    line = Line(slots)
    line.join("a1", "b1")
    await turns()
    slots.close()
    assert "shutting down" in await line.refused("a1")
    assert "shutting down" in await line.refused("b1")
    assert (slots.running, slots.waiting) == (1, 0)
