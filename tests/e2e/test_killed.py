"""`kill -9` between any two steps: after a restart nothing half-made is seen, and it can be repeated.

Of `rotate-key`: tests/service/test_secretkey.py.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.service_lab import HELLO, PATIENCE, Service

pytestmark = [pytest.mark.slow, pytest.mark.any_engine]

JQ = b"#!cmd alpine jq bash\n#!/bin/sh\njq --version\n"

CREATING = [
    "after check_new",
    "in the midst of the build",
    "after ensure",
    "after check_programs",
    "at INSERT INTO commands",
    "at UPDATE commands",
    "at SELECT commands.id, commands.last",
    "at INSERT INTO versions",
    "at INSERT INTO entries",
    "at COMMIT",
    "after create",
]
"""What lies between two steps of `:create`, in this order; at the last all of it is stored."""
PUTTING = ["put 1", "put 2", "put 3"]
"""What the embedded engine puts in place for it: the base, what it was made of, the layer."""
DELETING = [
    "at DELETE FROM commands",
    "at INSERT INTO entries",
    "at COMMIT",
    "after delete",
]

Mortal = Callable[[str, str], Service]


@pytest.fixture
def mortal(own_service: Service) -> Mortal:
    """Starts a server that kills itself; see tests/e2e/mortal.py. olga is its operator."""
    own_service.add_user("olga", "--operator")
    own_service.add_user("bob")

    def start(verb: str, point: str) -> Service:
        own_service.start("tests.e2e.mortal", verb, point)
        return own_service

    return start


def killed(service: Service) -> None:
    """It is, and another is started in its place."""
    process, service.process = service.process, None
    assert process is not None
    assert process.wait(PATIENCE) == -signal.SIGKILL
    assert process.stdout is not None
    process.stdout.close()
    service.start()


def objects(service: Service, *words: str, user: str = "alice") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(service.ssh(*words, "-j", user=user).ok().out)
    return found


def layers(service: Service) -> list[int]:
    """By how many versions each is needed, once what nobody needs was removed."""
    service.ssh(":system", "prune", user="olga").ok()
    listing = objects(service, ":system", "df", user="olga")
    return [one["count"] for one in listing if one["kind"] == "layer"]


def recorded(service: Service, action: str) -> int:
    log = objects(service, ":system", "log", "-n", "1000", user="olga")
    return sum(1 for one in log if one["action"] == action)


@pytest.mark.parametrize("point", [*CREATING, *PUTTING])
def test_create(point: str, mortal: Mortal, engine_name: str):
    if point in PUTTING and engine_name != "bubblewrap":
        pytest.skip("the other engine's own business")
    service = mortal("create", point)
    service.ssh(":create", "tool", stdin=JQ)
    killed(service)
    if point == "after create":
        service.create("tool", JQ).failed(73)
    else:
        assert service.ssh(":ls").ok().out == b""
        for words in (("tool",), (":source", "tool"), (":history", "tool"), (":env", "tool")):
            service.ssh(*words).failed(127)
        assert recorded(service, "create") == 0
        service.create("tool", JQ).ok()
    assert service.ssh("tool").ok().text.startswith("jq-")
    assert service.ssh(":source", "tool").ok().out == JQ
    assert [version["version"] for version in objects(service, ":history", "tool")] == [1]
    assert recorded(service, "create") == 1
    assert layers(service) == [1]


@pytest.mark.parametrize("point", DELETING)
def test_delete(point: str, mortal: Mortal):
    service = mortal("delete", point)
    service.create("tool", JQ).ok()
    service.ssh(":edit", "tool", stdin=JQ + b"# again\n").ok()
    service.ssh(":env", "tool", "set", "A=1").ok()
    service.ssh(":access", "tool", "grant", "bob").ok()
    service.ssh(":admins", "tool", "grant", "olga").ok()
    service.ssh("tool").ok()

    def seen() -> list[bytes]:
        asked = ("source tool", "history tool", "env tool --show", "access tool", "admins tool")
        listed = [service.ssh(":ls"), *(service.ssh(*f":{words}".split()) for words in asked)]
        return [said.ok().out for said in listed]

    before = seen()
    service.ssh(":delete", "tool")
    killed(service)
    if point == "after delete":
        assert service.ssh(":ls").ok().out == b""
        service.ssh("tool").failed(127)
    else:
        assert seen() == before
        assert service.ssh("alice/tool", user="bob").ok().text.startswith("jq-")
        assert recorded(service, "delete") == 0
        service.ssh(":delete", "tool").ok()
    assert recorded(service, "delete") == 1
    assert layers(service) == []
    service.create("tool", HELLO).ok()
    for words in (":env", ":access", ":admins"):
        assert service.ssh(words, "tool").ok().out == b""
    assert [version["version"] for version in objects(service, ":history", "tool")] == [1]
    service.ssh("alice/tool", user="bob").failed(127)


def test_the_points_are_all(mortal: Mortal):
    """Without one the server lives: what is above died where it was to."""
    service = mortal("create", "")
    service.create("tool", JQ).ok()
    assert service.process is not None
    assert service.process.poll() is None
