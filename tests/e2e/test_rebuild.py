"""A base that moves on: `cmdsvc pull`, `:edit` and `:apply --rebuild`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.service_lab import Service
from tests.kit import Kit
from tests.moving_base import Base

SOURCE = b"#!cmd alpine jq\n#!/bin/sh\ncat /etc/word; echo; jq -n 1; "
TOOL = SOURCE + b"read x\n"
OTHER = SOURCE + b"echo other\n"


@pytest.fixture
def base(tmp_path: Path, kit: Kit) -> Base:
    base = Base(tmp_path / "base.tar", kit)
    base.becomes("one")
    return base


@pytest.fixture
def moving(own_service: Service, base: Base) -> Iterator[Service]:
    """It has the command `tool`, made on the first base."""
    own_service.settings = {
        **own_service.settings,
        "CMDSVC_BASE_ALPINE": str(base.path),
        "CMDSVC_OPERATORS": "alice",
    }
    own_service.start()
    own_service.create("tool", TOOL).ok()
    yield own_service
    assert own_service.stop() == 0, own_service.log


def says(service: Service, name: str = "tool") -> str:
    return service.ssh(name, stdin=b"go\n").ok().lines[0]


def versions(service: Service, name: str = "tool") -> int:
    return len(json.loads(service.ssh(":history", name, "-j").ok().out))


def rebuilds(service: Service) -> list[str]:
    log = json.loads(service.ssh(":system", "log", "-j").ok().out)
    return [line["name"] for line in log if line["action"] == "rebuild"]


def last(err: bytes) -> str:
    return err.decode().splitlines()[-1]


def test_edit_after_a_pull(moving: Service, base: Base):
    base.becomes("two")
    running = moving.popen("tool")
    assert running.stdin is not None
    assert running.stdout is not None
    assert running.stdout.readline() == b"one\n"
    moving.cli("pull", "alpine").ok()
    assert says(moving) == "one", "a run never builds"
    assert last(moving.ssh(":apply", "tool", stdin=TOOL).ok().err) == "unchanged tool"
    assert says(moving) == "one"
    assert last(moving.ssh(":edit", "tool", stdin=OTHER).ok().err) == "tool is now version 2"
    assert says(moving) == "two"
    out, err = running.communicate(b"go\n", timeout=60)
    assert (out, err, running.returncode) == (b"1\n", b"", 0)
    assert rebuilds(moving) == []


@pytest.mark.any_engine
def test_create_after_a_pull(moving: Service, base: Base):
    base.becomes("two")
    moving.create("unpulled", OTHER).ok()
    assert says(moving, "unpulled") == "one"
    moving.cli("pull").ok()
    moving.create("pulled", OTHER).ok()
    assert {says(moving, name) for name in ("pulled", "unpulled", "tool")} == {"two"}


@pytest.mark.slow
def test_apply_with_rebuild(moving: Service, base: Base):
    said = moving.ssh(":apply", "--rebuild", "tool", stdin=TOOL).ok()
    assert "Installing jq" in said.err.decode()
    base.becomes("two")
    said = moving.ssh(":apply", "tool", "--rebuild", stdin=TOOL).ok()
    assert said.out == b""
    assert last(said.err) == "unchanged tool, rebuilt"
    assert says(moving) == "two"
    assert versions(moving) == 1
    base.becomes("three")
    said = moving.ssh(":apply", "tool", "--rebuild", stdin=OTHER).ok()
    assert last(said.err) == "updated tool, rebuilt"
    assert says(moving) == "three"
    base.becomes("four")
    said = moving.ssh(":apply", "new", "-", "--rebuild", stdin=OTHER).ok()
    assert last(said.err) == "created new, rebuilt"
    assert says(moving, "new") == says(moving) == "four"
    assert rebuilds(moving) == ["alice/new", *["alice/tool"] * 3]
    moving.ssh(":rollback", "tool").ok()
    assert says(moving) == "four"
    freed = moving.ssh(":system", "prune").ok().lines
    assert not [line for line in freed if "\tlayers\t" in line], "nothing was left behind"
    assert says(moving) == "four"


@pytest.mark.any_engine
def test_a_rebuild_that_fails(moving: Service, base: Base):
    base.becomes("two", apk=b"#!/bin/sh\necho no package today >&2\nexit 1\n")
    moving.ssh(":apply", "tool", "--rebuild", stdin=TOOL).failed(65, "no package today")
    moving.ssh(":edit", "tool", stdin=OTHER).failed(65, "no package today")
    assert says(moving) == "one"
    assert versions(moving) == 1
    base.path.unlink()
    moving.ssh(":apply", "tool", "--rebuild", stdin=TOOL).failed(65, "tarball")
    assert says(moving) == "one"
    assert rebuilds(moving) == []


@pytest.mark.any_engine
def test_who_may_rebuild(moving: Service):
    moving.add_user("bob")
    words = (":apply", "--rebuild", "alice/tool")
    moving.ssh(*words, stdin=TOOL, user="bob").failed(127)
    moving.ssh(":access", "tool", "grant", "bob").ok()
    moving.ssh(*words, stdin=TOOL, user="bob").failed(77)
    moving.ssh(":admins", "tool", "grant", "bob").ok()
    moving.ssh(*words, stdin=TOOL, user="bob").ok()
    assert rebuilds(moving) == ["alice/tool"]


@pytest.mark.any_engine
def test_several_rebuilds_at_once(moving: Service, base: Base):
    base.becomes("two")
    clients = [moving.popen(":apply", "--rebuild", "tool") for _ in range(4)]
    for client in clients:
        _, err = client.communicate(TOOL, timeout=100)
        assert client.returncode == 0, err
        assert last(err) == "unchanged tool, rebuilt"
    assert says(moving) == "two"
