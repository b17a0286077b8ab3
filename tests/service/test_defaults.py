"""What the defaults leave room for."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmdsvc.config import Settings
from cmdsvc.model import Identity, Network, Via
from cmdsvc.service.builds import Builds
from cmdsvc.service.commands import Commands, Policy
from cmdsvc.service.figures import Figures
from cmdsvc.service.readymade import ReadyMade
from cmdsvc.store import open_store
from tests.fakes import FakeEngine

ANN = Identity("ann", Via.KEY)
COMMANDS = 250
"""That a user may well have."""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(f"CMDSVC_{name.upper()}", raising=False)
    return Settings()


async def test_commands_of_a_user(settings: Settings, tmp_path: Path):
    policy = Policy(
        settings.limits,
        settings.max_source,
        settings.bases,
        frozenset(Network),
        settings.max_commands,
        settings.max_stored,
    )
    store = await open_store(f"sqlite+aiosqlite:///{tmp_path}/store.db")
    try:
        builds = Builds(FakeEngine(), settings.limits, Figures("fake"))
        commands = Commands(store, builds, ReadyMade({}), policy)
        source = b"#!cmd alpine\n#!/bin/sh\n" + b"#" * 4096
        for number in range(COMMANDS):
            await commands.create(ANN, f"c{number}", source, lambda _: None)
        assert len(await commands.list(ANN, all_=False)) == COMMANDS
    finally:
        await store.aclose()


def test_as_large_as_they_may_be(settings: Settings):
    assert COMMANDS * settings.max_source <= settings.max_stored
