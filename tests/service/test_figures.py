"""What is counted, and that it stays as small as it is."""

from __future__ import annotations

import math

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cmdsvc.errors import BusyError, CmdError, EngineError, InternalError, NotFoundError
from cmdsvc.model import Door, Outcome, Reason, State
from cmdsvc.service.admission import Admission
from cmdsvc.service.figures import Figures
from cmdsvc.store import Backlog
from tests.fakes import FakeEngine

NOTHING = Backlog(0, 0, 0, None)

Told = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Store:
    """Only counts."""

    def __init__(self, backlog: Backlog | CmdError) -> None:
        self.told = backlog
        self.asked = 0

    async def backlog(self) -> Backlog:
        self.asked += 1
        if isinstance(self.told, CmdError):
            raise self.told
        return self.told


@pytest.fixture
def figures() -> Figures:
    return Figures("fake")


async def told(figures: Figures, backlog: Backlog | CmdError = NOTHING) -> Told:
    text = await figures.exposition(Store(backlog), Admission(1, 1, 1.0), FakeEngine())
    families = text_string_to_metric_families(text.decode())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def errors(found: Told) -> dict[str, float]:
    return {
        dict(labels)["part"]: value
        for (name, labels), value in found.items()
        if name == "cmdsvc_errors_total"
    }


async def test_a_run(figures: Figures):
    figures.ended(Door.HTTP, Outcome(3), 0.2, 0.004)
    figures.ended(Door.HTTP, Outcome(0), 0.2, None)
    found = await told(figures)
    labels = {("door", "http"), ("engine", "fake")}
    assert found["cmdsvc_runs_total", frozenset({*labels, ("outcome", "exit")})] == 2
    assert found["cmdsvc_run_seconds_count", frozenset(labels)] == 2
    assert found["cmdsvc_run_first_byte_seconds_count", frozenset(labels)] == 1
    bounds = {
        bound: found["cmdsvc_run_first_byte_seconds_bucket", frozenset({*labels, ("le", bound)})]
        for bound in ("0.0025", "0.005")
    }
    assert bounds == {"0.0025": 0, "0.005": 1}


async def test_all_that_can_be_counted_is_there_before(figures: Figures):
    def counters(found: Told) -> set[object]:
        return {series for series in found if series[0].endswith("_total")}

    before = counters(await told(figures))
    for door in Door:
        for reason in Reason:
            figures.ended(door, Outcome(1, reason), 1.0, 1.0)
        figures.refused(door, BusyError("no room"))
    for door in (Door.HOOK, Door.SCHEDULE):
        for state in (State.DONE, State.WAITING, State.FAILED):
            figures.attempted(door, state)
    figures.failed(EngineError("gone"))
    after = counters(await told(figures))
    assert {series for series in after if series[0].startswith("cmdsvc_")} <= before


class TestErrors:
    async def test_only_those_of_the_store_and_the_engine(self, figures: Figures):
        for error in (NotFoundError("no"), BusyError("later"), OSError(), ValueError()):
            figures.failed(error)
        assert errors(await told(figures)) == {"engine": 0, "store": 0}

    async def test_each_only_once(self, figures: Figures):
        engine, store = EngineError("gone"), InternalError("full")
        for error in (engine, store, engine, store):
            figures.failed(error)
        assert errors(await told(figures)) == {"engine": 1, "store": 1}

    async def test_the_cause_counts(self, figures: Figures):
        cause = InternalError("the disk is full")
        cause.__cause__ = OSError("of the system's own")
        error = BusyError("it cannot be stored now")
        error.__cause__ = cause
        figures.failed(error)
        assert errors(await told(figures)) == {"engine": 0, "store": 1}

    async def test_of_a_build(self, figures: Figures):
        with pytest.raises(EngineError), figures.building():
            raise EngineError("gone")
        found = await told(figures)
        assert errors(found) == {"engine": 1, "store": 0}
        labels = frozenset({("outcome", "failed"), ("engine", "fake")})
        assert found["cmdsvc_build_seconds_count", labels] == 1


class TestTheStore:
    async def test_that_does_not_answer(self, figures: Figures):
        """All else is told."""
        found = await told(figures, InternalError("damaged"))
        assert errors(found) == {"engine": 0, "store": 1}
        assert not [name for name, _ in found if name == "cmdsvc_deliveries"]
        assert math.isnan(found["cmdsvc_deliveries_oldest_seconds", frozenset()])

    async def test_is_not_asked_by_everybody(self, figures: Figures):
        store = Store(Backlog(2, 1, 0, None))
        for _ in range(10):
            await figures.exposition(store, Admission(1, 1, 1.0), FakeEngine())
        assert store.asked == 1
