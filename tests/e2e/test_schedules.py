"""`:hooks` and `:schedule` with the real ssh client, and what then runs by itself."""

from __future__ import annotations

import hmac
import json
import signal
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, TypeVar

import httpx
import pytest

from tests.e2e.service_lab import HELLO, PATIENCE, Said, Service

pytestmark = pytest.mark.any_engine

T = TypeVar("T")

TELLS = """#!cmd alpine
#!/bin/sh
echo "$HOOK_NAME $HOOK_EVENT $HOOK_ATTEMPT $(cat) $(cat body)"
test -z "$SCHEDULED_AT" || echo "at $SCHEDULED_AT"
test "$(cat body)" != later || exit 75
"""
OWN = HELLO + b"# /// cmd\n# schedule = '30 4 * * *'\n# ///\n"


@pytest.fixture
def command(service: Service, name: str) -> Iterator[str]:
    service.create(name, TELLS).ok()
    yield name
    service.ssh(":delete", name).ok()


def rows(said: Said) -> list[list[str]]:
    return [line.split("\t") for line in said.ok().lines]


def objects(said: Said) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(said.ok().text)
    return found


def until(look: Callable[[], T | None]) -> T:
    """What `look` finds once it does: what runs by itself tells nobody."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if (found := look()) is not None:
            return found
        time.sleep(0.2)
    raise TimeoutError


def post(service: Service, path: str, secret: str, body: bytes, **more: str) -> httpx.Response:
    """As GitHub sends it."""
    signature = hmac.digest(secret.encode(), body, "sha256").hex()
    headers = {"x-hub-signature-256": f"sha256={signature}", "x-github-event": "push", **more}
    return httpx.post(f"{service.url}{path}", content=body, headers=headers, timeout=PATIENCE)


def send(service: Service, command: str, secret: str, body: bytes) -> str:
    """Its delivery's id."""
    answer = post(service, f"/hook/alice/{command}/push", secret, body)
    assert answer.status_code == 202, answer.text
    delivery: str = answer.json()["id"]
    return delivery


class TestHooks:
    def test_the_secret_alone_and_where_it_is(self, service: Service, command: str):
        said = service.ssh(":hooks", command, "new", "push", "--scheme", "github").ok()
        (secret,) = said.lines
        assert len(secret) >= 43
        assert said.err.decode() == f"/hook/alice/{command}/push\n"
        rotated = service.ssh(":hooks", command, "rotate", "push").ok()
        assert rotated.lines != [secret]
        assert rotated.err == said.err

    def test_a_secret_that_is_given_is_not_repeated(self, service: Service, command: str):
        words = (":hooks", command, "new", "push", "--scheme", "token", "--secret", "-")
        said = service.ssh(*words, stdin=b"swordfish\n").ok()
        assert said.out == b""
        assert said.err.decode() == f"/hook/alice/{command}/push\n"
        said = service.ssh(":hooks", command, "rotate", "push", "--secret", "-", stdin=b"x").ok()
        assert said.out == b""
        service.ssh(*words[:3], "y", *words[4:], stdin=b"\n").failed(65, "the secret is empty")

    def test_listed(self, service: Service, command: str):
        assert service.ssh(":hooks", command).ok().out == b""
        service.ssh(":hooks", command, "new", "push", "--scheme", "github").ok()
        service.ssh(
            *(":hooks", command, "new", "a", "--scheme", "hmac", "--header", "X-Sig"),
            *("--encoding", "base64", "--algorithm", "sha1", "--retries", "3"),
            *("--retry", "any", "--ordered"),
        ).ok()
        first, second = rows(service.ssh(":hooks", command, "ls"))
        path = f"/hook/alice/{command}"
        options = "header=X-Sig encoding=base64 algorithm=sha1"
        assert first[:7] == ["a", "hmac", options, f"{path}/a", "3", "any", "yes"]
        assert second[:7] == ["push", "github", "", f"{path}/push", "5", "later", "no"]
        listed = objects(service.ssh(":hooks", command, "-j"))
        assert [one["name"] for one in listed] == ["a", "push"]
        service.ssh(":hooks", command, "rm", "a").ok()
        assert [row[0] for row in rows(service.ssh(":hooks", command))] == ["push"]

    def test_words_that_are_wrong(self, service: Service, command: str):
        def hooks(*words: str) -> Said:
            return service.ssh(":hooks", command, *words)

        hooks("new").failed(64, "which hook?")
        hooks("new", "x").failed(64, "--scheme")
        hooks("new", "x", "--scheme", "md5").failed(64, "invalid choice")
        hooks("new", "X/Y", "--scheme", "github").failed(64, "cannot be a name")
        hooks("new", "x", "--scheme", "hmac").failed(64, "--header")
        hooks("new", "x", "--scheme", "github", "--header", "X").failed(64, "no options")
        hooks("new", "x", "--scheme", "github", "--retries", "x").failed(64)
        hooks("new", "x", "--scheme", "github", "--retries", "101").failed(64, "out of range")
        hooks("new", "x", "--scheme", "standard", "--secret", "-").failed(65, "empty")
        hooks("ls", "x").failed(64, "ls lists all")
        hooks("rm", "x").failed(127, "has no hook x")
        hooks("rotate", "x").failed(127, "has no hook x")
        hooks("log", "x").failed(127, "has no hook x")
        hooks("log", "-n", "0").failed(64, "1 to 1000")
        hooks("replay").failed(64, "which delivery?")
        hooks("replay", "x", "--failed").failed(64, "which delivery?")
        hooks("replay", "x").failed(127, "no delivery x")
        hooks("ls", "--ordered").failed(64, "--ordered is not for ls")
        assert hooks("replay", "--failed").ok().err == b"0 to run again\n"
        service.ssh(":hooks", command, user="bob").failed(127, "no command")
        hooks("new", "x", "--scheme", "github").ok()
        hooks("new", "x", "--scheme", "github").failed(73)

    def test_of_an_admin(self, service: Service, command: str):
        service.ssh(":admins", command, "grant", "bob").ok()
        words = (":hooks", f"alice/{command}", "new", "push", "--scheme", "github")
        said = service.ssh(*words, user="bob").ok()
        assert said.err.decode() == f"/hook/alice/{command}/push\n"


class TestSchedule:
    def test_set_shown_and_removed(self, service: Service, command: str):
        assert service.ssh(":schedule", command).ok().out == b""
        said = service.raw(f":schedule {command} set */5 4 * * mon --tz Europe/Vienna").ok()
        assert said.out == b""
        assert said.err.decode().startswith("next at 20")
        (row,) = rows(service.ssh(":schedule", command, "ls"))
        assert row[:4] == [command, "*/5 4 * * mon", "Europe/Vienna", "owner"]
        assert row[4] == said.err.decode().split()[-1]
        assert row[5:] == ["", "", "no"]
        service.ssh(":schedule", command, "set", "@daily", "--overlap").ok()
        (listed,) = objects(service.ssh(":schedule", command, "-j"))
        assert (listed["name"], listed["schedule"], listed["zone"]) == (command, "@daily", "UTC")
        assert listed["overlap"] is True
        service.ssh(":schedule", command, "rm").ok()
        assert service.ssh(":schedule", command).ok().out == b""
        assert service.ssh(":schedule", command, "rm").ok().err == b"none was set\n"

    def test_whose_it_is(self, service: Service, name: str):
        service.create(name, OWN).ok()
        assert rows(service.ssh(":schedule", name))[0][1:4] == ["30 4 * * *", "UTC", "script"]
        service.ssh(":schedule", name, "set", "0 5 * * *").ok()
        assert rows(service.ssh(":schedule", name))[0][1:4] == ["0 5 * * *", "UTC", "owner"]
        said = service.ssh(":schedule", name, "rm").ok()
        assert said.err == b"the script's own holds: 30 4 * * *\n"
        assert rows(service.ssh(":schedule", name))[0][3] == "script"
        service.ssh(":delete", name).ok()

    def test_words_that_are_wrong(self, service: Service, command: str):
        def schedule(*words: str) -> Said:
            return service.ssh(":schedule", command, *words)

        schedule("set").failed(64, "what is meant?")
        schedule("set", "* * 31 2 *").failed(64, "it never comes")
        schedule("set", "*/5 * * *").failed(64, "five fields")
        schedule("set", "@reboot").failed(64, "@daily")
        schedule("set", "0 0 * * * *").failed(64, "five fields")
        schedule("set", "@daily", "--tz", "Mars/Base").failed(64, "no time zone")
        schedule("ls", "@daily").failed(64)
        schedule("rm", "--tz", "UTC").failed(64, "for set")
        service.ssh(":schedule", command, user="bob").failed(127, "no command")
        service.create("wrong", HELLO + b"# /// cmd\n# schedule = 'x'\n# ///\n").failed(
            65, "line 5"
        )


@pytest.mark.slow
class TestByItself:
    def test_a_delivery(self, service: Service, command: str):
        (secret,) = service.ssh(":hooks", command, "new", "push", "--scheme", "github").ok().lines
        sent = [send(service, command, secret, body) for body in (b"now", b"later", b"now")]
        assert sent[0] == sent[2] != sent[1]

        def ended() -> list[dict[str, Any]] | None:
            listed = objects(service.ssh(":hooks", command, "log", "push", "-j"))
            return listed if all(one["exit_status"] is not None for one in listed) else None

        later, now = until(ended)
        assert (now["hook"], now["event"], now["state"], now["attempt"]) == (
            *("push", "push", "done", 1),
        )
        assert service.ssh(":logs", now["run"]).ok().text == "push push 1 now now\n"
        assert (later["state"], later["exit_status"]) == ("waiting", 75)
        assert later["due"] > later["received"]
        (run,) = (row for row in rows(service.ssh(":runs", command)) if row[0] == now["run"])
        assert run[3:5] == ["alice", "hook"]
        assert service.ssh(":hooks", command, "replay", now["name"]).ok().err == b"1 to run again\n"
        again = until(
            lambda: next(
                (one for one in ended() or [] if one["run"] != now["run"] and one != later), None
            )
        )
        assert again["name"] in {now["name"], later["name"]}

    def test_what_a_sender_is_told(self, service: Service, command: str):
        (secret,) = service.ssh(":hooks", command, "new", "push", "--scheme", "github").ok().lines
        path = f"/hook/alice/{command}/push"
        assert post(service, path, "wrong", b"{}").status_code == 403
        ping = post(service, path, secret, b"{}", **{"x-github-event": "ping"})
        assert (ping.status_code, ping.text) == (200, "pong\n")
        for other in (f"{path}x", f"/hook/alice/{command}x/push", f"/hook/eve/{command}/push"):
            answer = post(service, other, secret, b"{}")
            assert (answer.status_code, answer.text) == (404, "no such hook\n")
        service.ssh(":hooks", command, "new", "who", "--scheme", "basic").ok()
        asked = httpx.post(f"{service.url}/hook/alice/{command}/who", timeout=PATIENCE)
        assert asked.status_code == 401
        assert asked.headers["www-authenticate"] == 'Basic realm="hook", charset="UTF-8"'
        assert service.ssh(":hooks", command, "log").ok().out == b""

    def test_a_schedule(self, service: Service, command: str):
        service.ssh(":schedule", command, "set", "* * * * *").ok()
        (begun,) = until(lambda: rows(service.ssh(":hooks", command, "log", "-n", "1")) or None)
        assert begun[1] == ""
        assert abs((datetime.now(UTC) - _moment(begun[2])).total_seconds()) < 60
        run = until(
            lambda: next(
                (row for row in rows(service.ssh(":runs", command)) if row[4] == "schedule"), None
            )
        )
        said = until(
            lambda: found if (found := service.ssh(":logs", run[0]).text).count("\n") > 1 else None
        )
        assert said.splitlines()[-1] == f"at {begun[2]}"
        (row,) = rows(service.ssh(":schedule", command))
        assert row[5:7] == [begun[2], "begun"]

    def test_a_server_that_is_killed(self, own_service: Service):
        """What it was at is done by the next."""
        service = own_service
        service.start()
        service.create("slow", "#!cmd alpine\n#!/bin/sh\necho begun; exec sleep 1000\n").ok()
        (secret,) = service.ssh(":hooks", "slow", "new", "push", "--scheme", "github").ok().lines
        delivery = send(service, "slow", secret, b"{}")
        going = until(
            lambda: next((row for row in rows(service.ssh(":runs")) if row[8] == "running"), None)
        )
        assert service.stop(signal.SIGKILL) == -signal.SIGKILL
        service.start()
        assert rows(service.ssh(":runs"))[-1][0] == going[0]
        again = until(
            lambda: next((row for row in rows(service.ssh(":runs")) if row[8] == "running"), None)
        )
        assert again[0] != going[0]
        (row,) = rows(service.ssh(":hooks", "slow", "log"))
        assert (row[0], row[4], row[5]) == (delivery, "running", "2")
        service.ssh(":kill", again[0]).ok()
        (row,) = until(
            lambda: (
                [row for row in rows(service.ssh(":hooks", "slow", "log")) if row[4] == "failed"]
                or None
            )
        )
        assert row[9] == "killed by alice"

    def test_a_server_that_goes_down(self, own_service: Service):
        """What it could not bring to its end waits for the next, and is no failure."""
        service = own_service
        service.settings = {**service.settings, "CMDSVC_DRAIN": "200ms"}
        service.start()
        service.create("slow", "#!cmd alpine\n#!/bin/sh\necho begun; exec sleep 1000\n").ok()
        service.ssh(":hooks", "slow", "new", "push", "--scheme", "github", "--retries", "0").ok()
        (secret,) = service.ssh(":hooks", "slow", "rotate", "push").ok().lines
        send(service, "slow", secret, b"{}")
        until(
            lambda: next((row for row in rows(service.ssh(":runs")) if row[8] == "running"), None)
        )
        assert service.stop() == 0
        service.start()
        (row,) = until(
            lambda: (
                [row for row in rows(service.ssh(":hooks", "slow", "log")) if row[4] == "running"]
                or None
            )
        )
        assert row[5] == "1"
        assert service.stop() == 0


def _moment(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
