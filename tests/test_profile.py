"""bench.profile's arithmetic: the phases of a run are all of it."""

from __future__ import annotations

import pytest

from bench.measure import Contestant
from bench.profile import LAST, Profile, rows

PHASES = (("a", "to a"), ("never", "to never"), ("b", "to b"))


def test_the_phases_add_up_and_what_was_not_marked_is_left_out():
    contestant = Contestant("us", "fresh", (), None, seconds=[0.010, 0.020, 0.030, 0.5])
    profile = Profile(contestant, "bubblewrap", PHASES, begun=[1.0, 2.0, 3.0, 4.0])
    marks = [("b", 1_000_000, 0)]  # of no run
    for begun, took in zip(profile.begun, contestant.seconds, strict=True):
        for name, part in (("b", 0.1), ("a", 0.25), ("a", 0.5), ("b", 0.75)):
            at = round((begun + took * part) * 1e9)
            marks.append((name, at, at // 2))
    found = rows(profile, marks)
    assert [row.what for row in found] == ["to a", "to b", LAST]
    assert sum(row.mean for row in found) == pytest.approx(25)  # the middle half: 20 and 30 ms
    assert [row.mean for row in found] == pytest.approx([6.25, 12.5, 6.25])
    assert [row.work for row in found] == [None, pytest.approx(6.25), None]
