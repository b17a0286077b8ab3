"""Keeping a service in order, as its operator does it: `:system`, notices, users, backups."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import transcript
from tests.e2e.service_lab import HELLO, PATIENCE, Said, Service

pytestmark = pytest.mark.any_engine

CHECKOUT = Path(__file__).parents[2]

JQ = b"#!cmd alpine jq bash\n#!/bin/sh\njq --version\n"
SLEEPER = b"#!cmd alpine\n#!/bin/sh\necho here\nexec sleep 600\n"


@pytest.fixture
def operated(own_service: Service) -> Service:
    """A running server; olga is its operator, alice a user."""
    own_service.add_user("olga", "--operator")
    own_service.start()
    return own_service


def until(true: Callable[[], bool]) -> None:
    """Asks again and again: what the server finds out by looking has no other sign."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def objects(said: Said) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(said.ok().out)
    return found


def layers(service: Service) -> dict[str, dict[str, object]]:
    listing = objects(service.ssh(":system", "df", "-j", user="olga"))
    return {str(one["name"]): one for one in listing if one["kind"] == "layer"}


class TestSystem:
    def test_it_is_for_operators(self, service: Service):
        for words in (["info"], ["df"], ["prune"], ["prune", "--dry-run"], ["log"], []):
            service.ssh(":system", *words).failed(77, ":system")

    def test_what_is_not_for_a_part_of_it(self, service: Service):
        service.ssh(":system", "info", "--dry-run").failed(64)
        service.ssh(":system", "df", "-n", "3").failed(64)
        service.ssh(":system", "everything").failed(64)

    def test_facts(self, operated: Service):
        facts = {f["name"]: f["value"] for f in objects(operated.ssh(":system", "-j", user="olga"))}
        assert facts["engine"] == operated.settings["CMDSVC_ENGINE"]
        assert facts["doors"] == "open"
        assert "none" in str(facts["networks"])
        assert facts["version"]
        before = operated.ssh(":system", user="olga").ok().text
        assert f"version\t{facts['version']}\n" in before

    def test_sizes_are_seen_on_a_narrow_terminal(self, operated: Service):
        operated.create("hello", HELLO).ok()
        (name,) = layers(operated)
        lines = operated.ssh(":system", "df", user="olga", options=("-tt",)).ok().lines
        assert lines[0].split() == ["NAME", "KIND", "COUNT", "OWN", "SHARED"]
        assert [line.split()[1] for line in lines if line.split()[0] == name[:12]] == ["layer"]

    def test_a_layer_goes_when_no_version_needs_it(self, operated: Service):
        operated.create("jq", JQ).ok()
        operated.create("hello", HELLO).ok()
        (name,) = [n for n, one in layers(operated).items() if int(str(one["own"])) > 100_000]
        assert layers(operated)[name]["count"] == 1
        assert int(str(layers(operated)[name]["shared"])) > 1_000_000

        operated.ssh(":edit", "jq", stdin=HELLO).ok()
        operated.ssh(":system", "prune", user="olga").ok()
        assert name in layers(operated), "one can go back to it"
        operated.ssh(":rollback", "jq").ok()
        assert operated.ssh("jq").ok().text.startswith("jq-")

        operated.ssh(":delete", "jq").ok()
        would = objects(operated.ssh(":system", "prune", "--dry-run", "-j", user="olga"))
        assert [one["name"] for one in would] == [name]
        assert name in layers(operated)
        said = operated.ssh(":system", "prune", user="olga").ok()
        assert said.lines == ["\t".join(map(str, would[0].values()))]
        assert said.err.startswith(b"freed ")
        assert name not in layers(operated)
        assert operated.ssh("hello").ok().out == b"hello\n"
        operated.create("jq", JQ).ok()
        assert operated.ssh("jq").ok().text.startswith("jq-")

    def test_what_runs_keeps_its_layer(self, operated: Service):
        operated.create("sleeper", SLEEPER.replace(b"alpine", b"alpine jq bash")).ok()
        run = operated.popen("sleeper")
        assert run.stdout is not None
        assert run.stdout.readline() == b"here\n"
        operated.ssh(":delete", "sleeper").ok()
        operated.ssh(":system", "prune", user="olga").ok()
        assert run.poll() is None
        (run_id,) = [line.split()[0] for line in operated.ssh(":runs").ok().lines]
        operated.ssh(":kill", run_id).ok()
        assert run.wait(PATIENCE) == 137
        run.communicate()
        operated.ssh(":system", "prune", user="olga").ok()
        assert not [n for n, one in layers(operated).items() if int(str(one["own"])) > 100_000]

    def test_the_record(self, operated: Service):
        operated.create("hello", HELLO).ok()
        operated.ssh(":delete", "hello").ok()
        operated.ssh(":system", "prune", user="olga").ok()
        log = objects(operated.ssh(":system", "log", "-j", "-n", "3", user="olga"))
        assert [(one["name"], one["action"], one["user"]) for one in log] == [
            ("", "prune", "olga"),
            ("alice/hello", "delete", "alice"),
            ("alice/hello", "create", "alice"),
        ]
        assert str(log[0]["at"]).endswith("Z")
        assert len(operated.ssh(":system", "log", "-n", "1", user="olga").ok().lines) == 1
        operated.ssh(":system", "log", "-n", "0", user="olga").failed(64)


class TestNotice:
    def test_it_is_said_at_login_and_not_within_a_scripts_output(self, operated: Service):
        operated.create("hello", HELLO).ok()
        operated.cli("notice", "moving house at 18:00").ok()
        until(lambda: b"moving house at 18:00" in operated.ssh(":whoami").ok().err)
        assert b"moving house" in operated.raw("").ok().err
        assert b"moving house" not in operated.raw("").ok().out
        said = operated.ssh("hello").ok()
        assert (said.out, said.err) == (b"hello\n", b"")
        operated.cli("notice", "--clear").ok()
        until(lambda: operated.ssh(":whoami").ok().err == b"")

    def test_closed_doors(self, operated: Service):
        operated.create("hello", HELLO).ok()
        operated.create("sleeper", SLEEPER).ok()
        run = operated.popen("sleeper")
        assert run.stdout is not None
        assert run.stdout.readline() == b"here\n"
        operated.cli("notice", "back at noon", "--close").ok()
        until(lambda: operated.ssh("hello").status != 0)
        operated.ssh("hello").failed(75, "back at noon")
        operated.ssh(":run", "--detach", "hello").failed(75, "back at noon")
        assert operated.ssh(":source", "hello").ok().out == HELLO
        assert run.poll() is None
        run.terminate()
        run.communicate()
        operated.stop()
        operated.start()
        operated.ssh("hello").failed(75, "back at noon")
        assert (
            "closed" in operated.cli("notice").text or "no new runs" in operated.cli("notice").text
        )
        operated.cli("notice", "--clear").ok()
        until(lambda: operated.ssh("hello").status == 0)

    def test_words_that_are_none(self, own_service: Service):
        own_service.cli("notice", "--close").failed(64)
        own_service.cli("notice", "text", "--clear").failed(64)
        own_service.cli("notice", "x" * 501).failed(64)
        assert own_service.cli("notice").ok().text == "no notice, the doors are open\n"


class TestUsers:
    def test_removed_while_the_server_runs(self, operated: Service):
        operated.create("hello", HELLO).ok()
        assert "alice\t1\t1\t0\t" in operated.cli("user", "ls").ok().text
        assert operated.cli("user", "rm", "alice").ok().text == "alice is removed\n"
        until(lambda: operated.ssh(":whoami").status == 255)  # the keys are looked at every second
        listing = operated.cli("user", "ls").ok().lines
        assert listing == ["olga\t1\t0\t0\toperator"]
        operated.cli("user", "rm", "alice").failed(127, "no user alice")
        operated.add_user("alice")
        until(lambda: operated.ssh(":whoami").status == 0)
        operated.ssh("hello").failed(127)
        operated.create("hello", HELLO).ok()

    def test_at_once(self, operated: Service):
        operated.create("sleeper", SLEEPER).ok()
        run = operated.popen("sleeper")
        assert run.stdout is not None
        assert run.stdout.readline() == b"here\n"
        operated.cli("user", "rm", "alice", "--now").ok()
        assert run.wait(PATIENCE) == 137
        _, err = run.communicate()
        assert b"killed" in err

    def test_renamed_with_all_that_is_theirs(self, operated: Service):
        operated.create("secret", b"#!cmd alpine\n#!/bin/sh\necho $WORD\n").ok()
        operated.ssh(":env", "secret", "set", "WORD=xyzzy").ok()
        operated.ssh(":access", "secret", "grant", "olga").ok()
        token = operated.ssh(":tokens", "new").ok().text.strip()
        operated.cli("user", "rename", "alice", "olga").failed(73)
        operated.cli("user", "rename", "alice", "alicia").ok()
        key = operated.key("alice")
        until(lambda: b"alicia" in operated.ssh(":whoami", key=key).out)
        assert operated.ssh("secret", key=key).ok().out == b"xyzzy\n"
        assert operated.ssh("alicia/secret", user="olga").ok().out == b"xyzzy\n"
        operated.ssh("alice/secret", user="olga").failed(127)
        assert len(operated.ssh(":runs", key=key).ok().lines) == 2
        assert token.rpartition("_")[0] in operated.ssh(":tokens", key=key).ok().text
        operated.cli("user", "rename", "alice", "other").failed(127)
        operated.cli("user", "rename", "alicia", "cmd").failed(64)

    def test_a_list_as_json(self, own_service: Service):
        (alice,) = objects(own_service.cli("user", "ls", "-j"))
        assert alice == {
            "name": "alice",
            "keys": 1,
            "commands": 0,
            "tokens": 0,
            "operator": False,
        }


@pytest.fixture
def elsewhere(own_service: Service, tmp_path: Path) -> Service:
    """Another machine, with nothing on it."""
    home = tmp_path / "elsewhere"
    home.mkdir()
    os.link(own_service.key("alice"), home / "id_alice")
    return Service(home, dict(own_service.settings))


class TestBackup:
    def test_there_and_back(self, operated: Service, elsewhere: Service, tmp_path: Path):
        operated.create("secret", b"#!cmd alpine\n#!/bin/sh\necho $WORD\n").ok()
        operated.ssh(":env", "secret", "set", "WORD=xyzzy").ok()
        assert operated.ssh("secret").ok().out == b"xyzzy\n"
        file = tmp_path / "backup"
        operated.cli("backup", str(file), "--keys").ok()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        operated.create("later", HELLO).ok()

        elsewhere.cli("restore", str(file), "--keys").ok()
        elsewhere.start()
        try:
            assert elsewhere.ssh("secret").ok().out == b"xyzzy\n"
            assert elsewhere.ssh(":ls").ok().text.startswith("secret\t")
            assert len(elsewhere.ssh(":ls").ok().lines) == 1
            assert len(elsewhere.ssh(":runs").ok().lines) == 2
        finally:
            elsewhere.stop()
        elsewhere.cli("restore", str(file)).failed(73, "there is a store already")
        assert oct((elsewhere.home / "keys" / "secret.key").stat().st_mode)[-3:] == "600"

    def test_keys_are_apart(self, operated: Service, elsewhere: Service, tmp_path: Path):
        operated.create("hello", HELLO).ok()
        file = tmp_path / "backup"
        operated.cli("backup", str(file)).ok()
        assert b"PRIVATE KEY" not in file.read_bytes()
        elsewhere.cli("restore", str(file), "--keys").failed(65, "no keys")
        said = elsewhere.cli("restore", str(file)).ok()
        assert "secret.key back" in said.text
        assert not (elsewhere.home / "keys").exists()

    def test_another_key_is_not_replaced(
        self, operated: Service, elsewhere: Service, tmp_path: Path
    ):
        file = tmp_path / "backup"
        operated.cli("backup", str(file), "--keys").ok()
        (elsewhere.home / "keys").mkdir()
        (elsewhere.home / "keys" / "secret.key").write_text("mine")
        elsewhere.cli("restore", str(file), "--keys").failed(73, "secret.key")
        assert (elsewhere.home / "keys" / "secret.key").read_text() == "mine"
        assert not (elsewhere.home / "var" / "cmdsvc.db").exists()

    def test_what_is_no_whole_backup(self, operated: Service, elsewhere: Service, tmp_path: Path):
        file = tmp_path / "backup"
        operated.create("hello", HELLO).ok()
        operated.cli("backup", str(file), "--keys").ok()
        whole = file.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        for data in (b"", b"hello", whole[: len(whole) // 2], whole[:-4096], bytes(flipped)):
            if data == whole[:-4096] and not any(whole[-4096:]):
                continue  # a tar file's end is empty
            file.write_bytes(data)
            elsewhere.cli("restore", str(file)).failed(65, "not a whole backup")
        file.write_bytes((operated.home / "var" / "cmdsvc.db").read_bytes())
        elsewhere.cli("restore", str(file)).failed(65, "not a whole backup")
        elsewhere.cli("restore", str(tmp_path / "nothing")).failed(70, "No such file")
        left = {path.name for path in (elsewhere.home / "var").iterdir()}
        assert left <= {"lock"}

    def test_a_server_that_runs_is_not_restored_over(self, operated: Service, tmp_path: Path):
        file = tmp_path / "backup"
        operated.cli("backup", str(file)).ok()
        operated.cli("restore", str(file)).failed(70, "another server runs")

    def test_where_it_cannot_be_written(self, operated: Service, tmp_path: Path):
        operated.cli("backup", str(tmp_path / "no" / "folder")).failed(70, "No such file")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    where = tmp_path / "disk"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2M", "none", where], check=True)
    yield where
    subprocess.run(["umount", "-l", where], check=True)


@pytest.mark.root
def test_a_disk_that_is_full_when_a_version_is_stored(own_service: Service, small_disk: Path):
    path = small_disk / "store.db"
    own_service.settings = {
        **own_service.settings,
        "CMDSVC_DATABASE_URL": f"sqlite+aiosqlite:///{path}",
    }
    own_service.start()
    own_service.create("hello", HELLO).ok()
    free = os.statvfs(small_disk)
    filler = small_disk / "filler"
    filler.write_bytes(bytes((free.f_bavail - 8) * free.f_bsize))
    large = HELLO + b"#" * 200_000
    for words in ((":create", "large"), (":edit", "hello"), (":apply", "hello")):
        said = own_service.ssh(*words, stdin=large).failed(70, "no space is left")
        assert len([line for line in said.err.splitlines() if line.startswith(b"cmdsvc:")]) == 1
    own_service.ssh("large").failed(127)
    assert own_service.ssh(":source", "hello").ok().out == HELLO
    filler.unlink()
    own_service.ssh(":edit", "hello", stdin=large).ok()
    own_service.create("large", large).ok()
    assert own_service.stop() == 0


def test_the_page_is_true(operated: Service, tmp_path: Path):
    page = (CHECKOUT / "docs" / "operating.md").read_text()
    operated.create("old", JQ, user="olga").ok()
    operated.create("kept", HELLO, user="olga").ok()
    operated.ssh(":edit", "kept", stdin=HELLO + b"# again\n", user="olga").ok()
    operated.cli("user", "rm", "alice").ok()
    (tmp_path / "carol.pub").write_bytes(operated.key("carol").with_suffix(".pub").read_bytes())
    assert transcript.run(page, operated, tmp_path, user="olga") == 21


def test_check_for_who_looks_every_few_minutes(own_service: Service):
    said = own_service.cli("check", "--quiet")
    assert said.status == 0, said
    assert "CMDSVC_" not in said.text.replace("CMDSVC_BASE", "")
    assert not [line for line in said.lines if line.startswith("ok")]
    said = own_service.cli("check", "-q", CMDSVC_TIMEOUT="never")
    assert said.status == 1
    assert said.text.startswith("error   CMDSVC_TIMEOUT")
