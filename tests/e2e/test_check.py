"""`cmdsvc check`, as a monitoring system calls it: on a service that works, and on one that does not."""

from __future__ import annotations

import signal
import sqlite3

import pytest

from cmdsvc import check
from tests.e2e.service_lab import HELLO, Said, Service

pytestmark = pytest.mark.any_engine


def wrong(said: Said, *words: str) -> None:
    """There is one error, with these words, and the exit status says so."""
    errors = [line for line in said.lines if line.startswith("error ")]
    assert (said.status, len(errors)) == (1, 1), said
    for word in words:
        assert word in errors[0], said


def test_before_the_first_start(own_service: Service):
    said = own_service.cli("check").ok()
    assert "the store will be made at the first start" in said.text
    assert not (own_service.home / "var" / "cmdsvc.db").exists()
    assert not (own_service.home / "keys" / "secret.key").exists()
    wrong(own_service.cli("check", "--quiet", "--running"), "no server runs on")


def test_while_it_runs_and_after(own_service: Service):
    own_service.start()
    own_service.create("hello", HELLO).ok()
    assert "ok " not in own_service.cli("check", "--quiet", "--running").ok().text
    assert "store: 1 commands, 0 runs" in own_service.cli("check").ok().text
    own_service.stop()
    assert "error " not in own_service.cli("check", "--quiet").ok().text
    wrong(own_service.cli("check", "-q", "--running"), "no server runs on")


def test_a_server_that_does_not_answer(own_service: Service):
    own_service.start()
    assert own_service.process is not None
    said = own_service.cli("check", "-q", CMDSVC_SSH_LISTEN="127.0.0.1:1")
    wrong(said, "none answers at 127.0.0.1:1")
    own_service.process.send_signal(signal.SIGSTOP)
    try:
        wrong(own_service.cli("check", "-q", "--running"), "none answers at")
    finally:
        own_service.process.send_signal(signal.SIGCONT)


def test_a_secret_key_that_is_lost(own_service: Service):
    own_service.start()
    own_service.create("hello", HELLO).ok()
    own_service.ssh(":env", "hello", "set", "A=1").ok()
    own_service.stop()
    key = own_service.home / "keys" / "secret.key"
    text = key.read_text()
    key.unlink()
    wrong(own_service.cli("check"), "secret.key is not there", "backup")
    assert not key.exists()
    key.write_text(text)
    key.chmod(0o600)
    own_service.cli("check").ok()


def test_a_store_that_is_none_or_newer(own_service: Service):
    own_service.start()
    own_service.stop()
    path = own_service.home / "var" / "cmdsvc.db"
    with sqlite3.connect(path) as database:
        database.execute("update alembic_version set version_num = 'r9999'")
    database.close()
    wrong(own_service.cli("check"), "newer version of this program")
    path.write_bytes(b"what is this" * 1000)
    wrong(own_service.cli("check"), "store")


def test_a_database_out_of_reach_and_its_password(own_service: Service):
    url = "postgresql+asyncpg://ann:xyz@zy@127.0.0.1:1/x?password=xyzzy"
    said = own_service.cli("check", CMDSVC_DATABASE_URL=url)
    wrong(said, "the database")
    assert "zy" not in said.text + said.err.decode()
    assert "postgresql+asyncpg://***@127.0.0.1:1/x?password=***" in said.text


@pytest.mark.parametrize(
    ("free", "level"), [(check.LITTLE, "ok"), (check.TOO_LITTLE, "warning"), (1 << 20, "error")]
)
def test_a_disk_that_fills(
    free: int, level: str, own_service: Service, monkeypatch: pytest.MonkeyPatch
):
    class Usage:
        def __init__(self, _path: object) -> None:
            self.free = free

    monkeypatch.setattr(check.shutil, "disk_usage", Usage)
    (found,) = check._disk(own_service.home / "not" / "there" / "yet")
    assert found.level == level
    assert f"{free >> 20}M are free" in found.what
