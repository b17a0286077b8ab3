"""A backup or a restore that is ended in the middle leaves nothing behind, and can be repeated."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.service_lab import HELLO, PATIENCE, Service

pytestmark = pytest.mark.any_engine

OUTPUTS = 100
"""Of a megabyte each, so that a copy takes a while."""


@pytest.fixture
def large(own_service: Service) -> Service:
    """A service that has run, with much in its store."""
    own_service.start()
    own_service.create("hello", HELLO).ok()
    own_service.stop()
    database = sqlite3.connect(own_service.home / "var" / "cmdsvc.db")
    with database:
        for number in range(OUTPUTS):
            database.execute(
                "insert into runs (id, server, command, version, user, door, started_at, ended_at,"
                " exit_status, reason, message, owner)"
                " values (?, 'x', 'alice/hello', 1, 'alice', 'ssh', 1, 2, 0, 'exit', '', 'alice')",
                (f"r{number}",),
            )
            database.execute(
                "insert into outputs values (?, 1, 1000000, 0, ?, x'')",
                (f"r{number}", os.urandom(1_000_000)),
            )
    database.close()
    return own_service


def ended(service: Service, number: int, folder: Path, *words: str, **settings: str) -> int:
    """Starts `cmdsvc` and ends it once it has put something into `folder`; its exit status."""
    # What this process ignores, as a job in the background does, its children would ignore as well.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "cmdsvc", *words],
        env=service.environment | settings, cwd=service.home, stderr=subprocess.PIPE,
    )  # fmt: skip
    signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + PATIENCE
    while not list(folder.glob(".cmdsvc-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(number)
    process.communicate(timeout=PATIENCE)
    return process.returncode


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ended_in_the_middle(large: Service, number: int, tmp_path: Path):
    out, new = tmp_path / "out", tmp_path / "new"
    out.mkdir()
    (out / "backup").write_text("of yesterday")
    assert ended(large, number, out, "backup", str(out / "backup")) == 130
    assert [path.name for path in out.iterdir()] == ["backup"]
    assert (out / "backup").read_text() == "of yesterday"

    large.cli("backup", str(out / "backup")).ok()
    elsewhere = {"CMDSVC_DATA_DIR": str(new)}
    assert ended(large, number, new, "restore", str(out / "backup"), **elsewhere) == 130
    assert not list(new.glob(".*"))
    large.cli("restore", str(out / "backup"), **elsewhere).ok()
    assert large.cli("user", "ls", **elsewhere).ok().text == "alice\t1\t1\t0\t\n"
