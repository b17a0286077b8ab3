"""Schedules: whose, when, once; what was missed, and what a clock does that is set."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cmdsvc.errors import BusyError, ForbiddenError, NotFoundError, UsageError
from cmdsvc.model import Door, Outcome, State
from tests.fakes import soon, turns
from tests.service.queue_lab import ANN, BOB, EVE, START, Lab, a_lab

OWN = b"#!cmd alpine\n#!/bin/sh\n# /// cmd\n# schedule = '30 4 * * *'\n# ///\n"
HOUR = 3600


def opened(folder: Path, **options: Any) -> AbstractAsyncContextManager[Lab]:
    return a_lab(f"sqlite+aiosqlite:///{folder}/store.db", folder, **options)


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with opened(tmp_path) as lab:
        yield lab


async def ticks(lab: Lab, command: str = "job") -> list[str]:
    """The moments that were put into the queue, oldest first."""
    return [delivery.event for delivery in await lab.listed(command)]


async def last(lab: Lab, command: str = "job") -> tuple[str, str]:
    found = await lab.store.schedule("ann", command)
    assert found is not None
    return (f"{found.last_at:%dT%H:%M}" if found.last_at else "", found.last)


async def every(lab: Lab, expression: str, zone: str = "UTC", **more: bool) -> None:
    await lab.schedules.set(ANN, "job", expression, zone, overlap=more.get("overlap", False))


async def finish(lab: Lab) -> None:
    """All that waits has run."""
    for delivery in await lab.store.claim(lab.clock(), lab.clock() + timedelta(hours=1), 100):
        await lab.store.end_attempt(delivery.id, delivery.attempt, State.DONE)


class TestSetting:
    async def test_it_is_shown(self, lab: Lab):
        assert await lab.schedules.planned(ANN, "job") is None
        planned = await lab.schedules.set(
            ANN, "job", "  30  4 * * *", "Europe/Vienna", overlap=True
        )
        assert planned.next_at == datetime(2026, 5, 5, 2, 30, tzinfo=UTC)
        assert await lab.schedules.planned(ANN, "job") == planned
        schedule = planned.schedule
        assert (schedule.expression, schedule.zone) == ("30 4 * * *", "Europe/Vienna")
        assert (schedule.own, schedule.overlap) == (True, True)

    async def test_the_owners_wins_over_the_scripts(self, lab: Lab):
        await lab.commands.edit(ANN, "job", OWN, lambda _: None)
        planned = await lab.schedules.planned(ANN, "job")
        assert planned is not None
        assert (planned.schedule.own, planned.schedule.expression) == (False, "30 4 * * *")
        await every(lab, "@hourly")
        planned = await lab.schedules.planned(ANN, "job")
        assert planned is not None
        assert (planned.schedule.own, planned.schedule.expression) == (True, "@hourly")
        assert await lab.schedules.remove(ANN, "job")
        assert not await lab.schedules.remove(ANN, "job")
        planned = await lab.schedules.planned(ANN, "job")
        assert planned is not None
        assert not planned.schedule.own

    @pytest.mark.parametrize(
        ("expression", "zone", "words"),
        [
            ("* * 31 2 *", "UTC", "never comes"),
            ("* * * *", "UTC", "five fields"),
            ("0 * * * * *", "UTC", "five fields"),
            ("@reboot", "UTC", "there are @"),
            ("61 * * * *", "UTC", "cannot be read"),
            ("$(id) * * * *", "UTC", "a field has"),
            ("* * * * *", "Europe/Nowhere", "no time zone"),
            ("* * * * *", "../../etc/passwd", "a zone is written"),
            ("* " * 500, "UTC", "longer than"),
        ],
    )
    async def test_words_that_are_wrong(self, lab: Lab, expression: str, zone: str, words: str):
        with pytest.raises(UsageError, match=words):
            await lab.schedules.set(ANN, "job", expression, zone, overlap=False)
        assert await lab.schedules.planned(ANN, "job") is None

    async def test_whose(self, lab: Lab):
        await lab.schedules.set(BOB, "ann/job", "@daily", "UTC", overlap=False)
        for ask in (
            lambda name: lab.schedules.set(EVE, name, "@daily", "UTC", overlap=False),
            lambda name: lab.schedules.remove(EVE, name),
            lambda name: lab.schedules.planned(EVE, name),
        ):
            with pytest.raises(ForbiddenError):
                await ask("ann/job")
            with pytest.raises(NotFoundError):
                await ask("ann/other")


class TestTheClock:
    async def test_its_time_comes(self, lab: Lab):
        await every(lab, "*/5 * * * *")
        for minutes in range(12):
            await lab.schedules.check()
            await finish(lab)
            lab.clock.time = START + timedelta(minutes=minutes)
        assert await ticks(lab) == ["2026-05-04T03:05:00Z", "2026-05-04T03:10:00Z"]
        assert await last(lab) == ("04T03:10", "begun")

    async def test_it_runs_as_its_owner(self, lab: Lab):
        await every(lab, "* * * * *")
        await lab.deliveries.start()
        lab.clock.forward(60)
        await lab.schedules.check()
        assert await lab.end() == (Door.SCHEDULE, State.DONE)
        seen = lab.scripted.env()
        assert (seen[b"CMD_USER"], seen[b"SCHEDULED_AT"]) == (b"ann", b"2026-05-04T03:03:00Z")
        assert b"HOOK_NAME" not in seen
        assert (await lab.scripted.job()).stdin == b""

    async def test_the_scripts_own(self, lab: Lab):
        await lab.commands.edit(ANN, "job", OWN, lambda _: None)
        now = datetime.now(UTC)
        lab.clock.time = now
        await lab.schedules.check()
        assert await ticks(lab) == []
        lab.clock.time = (now + timedelta(days=1)).replace(hour=4, minute=30, second=0)
        await lab.schedules.check()
        assert len(await ticks(lab)) == 1

    async def test_a_new_one_counts_from_then_on(self, lab: Lab):
        await every(lab, "0 3 * * *")
        await lab.schedules.check()
        assert await ticks(lab) == []
        assert await last(lab) == ("", "")

    async def test_what_is_changed_or_removed(self, lab: Lab):
        await every(lab, "0 4 * * *")
        await lab.schedules.check()
        await every(lab, "0 5 * * *")
        lab.clock.forward(HOUR)
        await lab.schedules.check()
        assert await ticks(lab) == []
        await lab.schedules.remove(ANN, "job")
        lab.clock.forward(HOUR)
        await lab.schedules.check()
        assert await ticks(lab) == []

    async def test_set_back_an_hour_nothing_runs_twice(self, lab: Lab):
        await every(lab, "*/30 * * * *")
        for minutes in (30, 60, 0, 30, 60, 90):
            lab.clock.time = START + timedelta(minutes=minutes)
            await lab.schedules.check()
            await finish(lab)
        assert [moment[11:16] for moment in await ticks(lab)] == ["03:30", "04:00", "04:30"]

    async def test_set_back_by_years_it_goes_on(self, lab: Lab):
        await every(lab, "0 * * * *")
        lab.clock.forward(20 * 366 * 86400)
        await lab.schedules.check()
        assert len(await ticks(lab)) == 1
        await finish(lab)
        lab.clock.time = START + timedelta(hours=2)
        await lab.schedules.check()
        lab.clock.forward(HOUR)
        await lab.schedules.check()
        assert (await ticks(lab))[1:] == ["2026-05-04T06:00:00Z"]

    async def test_by_itself(self, lab: Lab, monkeypatch: pytest.MonkeyPatch):
        """It is awake for what is set, and at its moment."""
        tick, dealt = lab.store.tick, asyncio.Event()

        async def noting(*args: Any, **more: Any) -> Any:
            ticked = await tick(*args, **more)
            dealt.set()
            return ticked

        monkeypatch.setattr(lab.store, "tick", noting)
        async with lab.schedules.working():
            await turns(50)
            lab.clock.time = START.replace(second=59, microsecond=500_000)
            lab.clock.goes()
            await every(lab, "* * * * *")
            await soon(dealt.wait())
        assert await ticks(lab) == ["2026-05-04T03:03:00Z"]
        assert lab.clock() < START.replace(minute=3, second=30)


class TestMissed:
    @pytest.mark.parametrize(
        ("expression", "hours", "moment", "became"),
        [
            ("0 4 * * *", 1.5, "04T04:00", "begun"),
            ("0 4 * * *", 1.9, "04T04:00", "begun"),
            ("0 4 * * *", 2.1, "04T04:00", "missed"),
            ("*/5 * * * *", 200, "12T11:00", "begun"),
            ("0 4 * * *", 24 * 100 + 1.5, "12T04:00", "begun"),
            ("0 4 * * *", 24 * 100 + 5, "12T04:00", "missed"),
        ],
    )
    async def test_the_last_runs_once_if_it_is_not_too_late(
        self, tmp_path: Path, expression: str, hours: float, moment: str, became: str
    ):
        async with opened(tmp_path) as lab:
            await every(lab, expression)
            clock = lab.clock
        clock.forward(hours * HOUR)
        async with opened(tmp_path, clock=clock) as lab:
            for _ in range(3):
                await lab.schedules.check()
            assert await last(lab) == (moment, became)
            assert len(await ticks(lab)) == (became == "begun")

    async def test_and_it_goes_on(self, tmp_path: Path):
        async with opened(tmp_path) as lab:
            await every(lab, "0 4 * * *")
            clock = lab.clock
        clock.forward(5 * HOUR)
        async with opened(tmp_path, clock=clock) as lab:
            await lab.schedules.check()
            clock.forward(20 * HOUR)
            await lab.schedules.check()
            assert await ticks(lab) == ["2026-05-05T04:00:00Z"]


class TestOverlap:
    async def test_it_is_skipped_while_the_one_before_goes_on(self, lab: Lab):
        await every(lab, "* * * * *")
        for became in ("begun", "skipped", "skipped"):
            lab.clock.forward(60)
            await lab.schedules.check()
            assert (await last(lab))[1] == became
        await finish(lab)
        lab.clock.forward(60)
        await lab.schedules.check()
        assert (await last(lab))[1] == "begun"
        assert len(await ticks(lab)) == 2

    async def test_unless_it_may(self, lab: Lab):
        await every(lab, "* * * * *", overlap=True)
        for _ in range(3):
            lab.clock.forward(60)
            await lab.schedules.check()
        assert len(await ticks(lab)) == 3

    async def test_a_failure_that_is_tried_again_goes_on(self, lab: Lab):
        await every(lab, "* * * * *")
        lab.scripted.plan = [Outcome(75)]
        await lab.deliveries.start()
        lab.clock.forward(60)
        await lab.schedules.check()
        assert await lab.end() == (Door.SCHEDULE, State.WAITING)
        lab.clock.forward(60)
        await lab.schedules.check()
        assert (await last(lab))[1] == "skipped"


class TestSeveral:
    async def test_two_servers_one_run(self, tmp_path: Path):
        async with (
            opened(tmp_path) as lab,
            opened(tmp_path, server="two", clock=lab.clock) as other,
        ):
            await every(lab, "* * * * *", overlap=True)
            for _ in range(5):
                for side in (lab, other):
                    await side.schedules.check()
                lab.clock.forward(60)
                await soon(asyncio.gather(lab.schedules.check(), other.schedules.check()))
            moments = await ticks(lab)
            assert len(moments) == len(set(moments)) == 5

    async def test_one_that_fails_does_not_hold_up_the_others(
        self, lab: Lab, monkeypatch: pytest.MonkeyPatch
    ):
        tick = lab.store.tick

        async def deaf(schedule: Any, *args: Any, **more: Any) -> Any:
            if schedule.command == "ann/job":
                raise BusyError("locked")
            return await tick(schedule, *args, **more)

        await every(lab, "* * * * *")
        await lab.schedules.set(ANN, "other", "* * * * *", "UTC", overlap=False)
        await lab.schedules.check()
        lab.clock.forward(120)
        monkeypatch.setattr(lab.store, "tick", deaf)
        await lab.schedules.check()
        assert (await ticks(lab, "job"), len(await ticks(lab, "other"))) == ([], 1)
        monkeypatch.setattr(lab.store, "tick", tick)
        await lab.schedules.check()
        assert await ticks(lab) == ["2026-05-04T03:04:00Z"]
