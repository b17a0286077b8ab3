"""What the pages show is what happens."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests import transcript
from tests.e2e.service_lab import Service

DOCS = Path(__file__).parents[2] / "docs"

SAYS = '#!cmd alpine\n#!/bin/sh\necho "{}, $CMD_USER"\n'


def test_sharing(own_service: Service, tmp_path: Path):
    for user in ("bob", "carol"):
        own_service.add_user(user)
    shutil.copy(own_service.key("bob"), tmp_path / "bob")
    (tmp_path / "news.sh").write_text(SAYS.format("nothing new"))
    (tmp_path / "better.sh").write_text(SAYS.format("a little"))
    own_service.start()
    assert transcript.run((DOCS / "sharing.md").read_text(), own_service, tmp_path) == 19
    assert (tmp_path / "echo.sh").read_text().startswith("#!cmd alpine\n")


def test_tokens(own_service: Service, tmp_path: Path):
    (tmp_path / "deploy.sh").write_text('#!cmd alpine\n#!/bin/sh\necho "deployed for $CMD_USER"\n')
    own_service.start()
    assert transcript.run((DOCS / "tokens.md").read_text(), own_service, tmp_path) == 10


@pytest.mark.any_engine
def test_http(own_service: Service, tmp_path: Path):
    own_service.start()
    assert transcript.run((DOCS / "http.md").read_text(), own_service, tmp_path) == 31


@pytest.mark.any_engine
def test_webhooks(own_service: Service, tmp_path: Path):
    own_service.start()
    page = (DOCS / "webhooks.md").read_text()
    by_itself = "hooks deploy log"
    assert transcript.run(page, own_service, tmp_path, by_itself=by_itself) == 22


@pytest.mark.any_engine
@pytest.mark.slow
def test_schedules(own_service: Service, tmp_path: Path):
    own_service.start()
    page = (DOCS / "schedules.md").read_text()
    by_itself = "hooks report log"
    assert transcript.run(page, own_service, tmp_path, by_itself=by_itself) == 14
