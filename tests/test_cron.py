"""When expressions of crontab(5) come: in zones, over daylight saving, or never."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from cmdsvc.cron import NICKNAMES, parse

VIENNA = "Europe/Vienna"
"""From 2:00 to 3:00 on 29 March 2026 (1:00 UTC), from 3:00 to 2:00 on 25 October (1:00 UTC)."""
LORD_HOWE = "Australia/Lord_Howe"
"""Half an hour: from 2:00 to 2:30 on 4 October 2026 (3rd, 15:30 UTC), from 2:00 to 1:30 on 5 April."""


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def times(expression: str, zone: str, since: str, count: int) -> list[str]:
    cron, moment, found = parse(expression, zone), at(since), []
    for _ in range(count):
        moment = cron.after(moment)
        found.append(f"{moment:%d %H:%M}")
    return found


class TestReading:
    @pytest.mark.parametrize(
        ("expression", "expected"),
        [
            ("*/20 * * * *", ["01 00:20", "01 00:40", "01 01:00"]),
            ("0 4 * * mon", ["05 04:00", "12 04:00", "19 04:00"]),
            ("0 0 1 JAN,feb *", ["01 00:00", "01 00:00", "01 00:00"]),
            ("5-7 9 * * *", ["01 09:05", "01 09:06", "01 09:07"]),
            ("0 12 13 * 5", ["02 12:00", "09 12:00", "13 12:00"]),
            ("@daily", ["02 00:00", "03 00:00", "04 00:00"]),
            ("@Hourly", ["01 01:00", "01 02:00", "01 03:00"]),
            ("0 0 * * 7", ["04 00:00", "11 00:00", "18 00:00"]),
        ],
    )
    def test_what_it_means(self, expression: str, expected: list[str]):
        assert times(expression, "UTC", "2026-01-01", 3) == expected

    @pytest.mark.parametrize("nickname", NICKNAMES)
    def test_nicknames(self, nickname: str):
        assert parse(nickname).after(at("2026-01-01")) == parse(NICKNAMES[nickname]).after(
            at("2026-01-01")
        )

    @pytest.mark.parametrize(
        ("expression", "words"),
        [
            ("* * 31 2 *", "it never comes"),
            ("0 0 30 2 *", "it never comes"),
            ("0 0 31 4,6,9,11 *", "it never comes"),
            ("", "five fields"),
            ("@reboot", "there are"),
            ("@", "there are"),
            ("* * * * * *", "five fields"),
            ("60 * * * *", "cannot be read"),
            ("* 24 * * *", "cannot be read"),
            ("* * 0 * *", "cannot be read"),
            ("* * * 13 *", "cannot be read"),
            ("* * * * 8", "cannot be read"),
            ("*/0 * * * *", "cannot be read"),
            ("5-1 * * * *", "cannot be read"),
            ("a * * * *", "cannot be read"),
            ("L * * * \N{ARABIC-INDIC DIGIT ONE}", "a field has"),
            ("* * * * *" + " " * 300, "longer than"),
        ],
    )
    def test_what_cannot_be(self, expression: str, words: str):
        with pytest.raises(ValueError, match=words):
            parse(expression)

    @pytest.mark.parametrize(
        "zone", ["", "Europe", "../UTC", "/etc/localtime", "Europe/Nowhere", "x" * 500, "a\0b", "."]
    )
    def test_zones_that_are_none(self, zone: str):
        with pytest.raises(ValueError, match=r"zone"):
            parse("* * * * *", zone)

    def test_a_leap_day(self):
        assert parse("0 0 29 2 *").after(at("2026-01-01")) == at("2028-02-29")


class TestDaylightSaving:
    def test_what_is_skipped_runs_at_the_jump(self):
        assert times("30 2 * * *", VIENNA, "2026-03-28T12:00", 2) == ["29 01:00", "30 00:30"]
        assert times("*/20 2 * * *", VIENNA, "2026-03-28T12:00", 2) == ["29 01:00", "30 00:00"]

    def test_what_is_repeated_runs_once(self):
        assert times("30 2 * * *", VIENNA, "2026-10-24T12:00", 2) == ["25 00:30", "26 01:30"]
        assert times("0,30 2 * * *", VIENNA, "2026-10-24T12:00", 3) == [
            "25 00:00",
            "25 00:30",
            "26 01:00",
        ]

    def test_what_runs_every_hour_goes_on(self):
        for since in ("2026-03-28T23:30", "2026-10-24T23:30"):
            day = int(since[8:10]) + 1
            hours = [f"{day:02} {hour:02}:00" for hour in range(4)]
            assert times("0 * * * *", VIENNA, since, 4) == hours
            halves = [f"{day:02} 0{n // 2}:{30 * (n % 2):02}" for n in range(6)]
            assert times("*/30 * * * *", VIENNA, since, 6) == halves

    @pytest.mark.parametrize("zone", [VIENNA, LORD_HOWE, "America/New_York", "Asia/Kolkata"])
    @pytest.mark.parametrize("expression", ["45 1 * * *", "15 2 * * *", "30 2 * * *", "0 3 * * *"])
    def test_once_a_day_all_year(self, zone: str, expression: str):
        cron = parse(expression, zone)
        moment = cron.after(at("2026-01-01T12:00"))
        for _ in range(364):
            following = cron.after(moment)
            assert timedelta(hours=22) < following - moment < timedelta(hours=40)
            moment = following
        assert at("2026-12-31T12:00") < moment < at("2027-01-02T12:00")

    def test_asked_within_the_hour_that_is_repeated(self):
        cron = parse("30 2 * * *", VIENNA)
        for minutes in range(31, 120):  # after its time, in either pass
            moment = at("2026-10-25T00:00") + timedelta(minutes=minutes)
            assert cron.after(moment) == at("2026-10-26T01:30")


class TestLast:
    @pytest.mark.parametrize(
        ("expression", "after", "until", "expected"),
        [
            ("0 4 * * *", "2026-05-01T04:00", "2026-05-02T03:59", None),
            ("0 4 * * *", "2026-05-01T03:59", "2026-05-01T04:00", "2026-05-01T04:00"),
            ("0 4 * * *", "2026-05-01", "2026-08-09T10:00", "2026-08-09T04:00"),
            ("* * * * *", "2000-01-01", "2026-08-09T10:00:30", "2026-08-09T10:00"),
            ("* 3 * * *", "2020-01-01", "2026-08-09T23:00", "2026-08-09T03:59"),
            ("0 0 29 2 *", "2000-01-01", "2026-01-01", "2024-02-29"),
            ("0 4 * * *", "2026-05-02", "2026-05-01", None),
        ],
    )
    def test_between(self, expression: str, after: str, until: str, expected: str | None):
        found = parse(expression).last(at(after), at(until))
        assert found == (None if expected is None else at(expected))
