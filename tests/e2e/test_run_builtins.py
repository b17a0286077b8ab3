"""Runs without a caller, what ran, what it wrote, and its end; with the real ssh client."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import transcript
from tests.e2e.service_lab import Said, Service
from tests.e2e.test_runs import Terminal

pytestmark = pytest.mark.any_engine

ID = re.compile(r"[0-9a-v]{16}")
WAITS = 'printf "%s\\n" begun; exec cat'
"""Shell text that goes on until its stdin ends: of a detached run that is at once."""
ENDLESS = 'printf "%s\\n" begun; exec sleep 1000'


@pytest.fixture(scope="module")
def sh(service: Service) -> Iterator[str]:
    """A command of alice's that runs its first argument as shell text; bob may run it."""
    name = "sh-for-run-builtins"
    service.create(name, '#!cmd alpine\n#!/bin/sh\neval "$1"\n').ok()
    service.ssh(":access", name, "grant", "bob").ok()
    yield name
    service.ssh(":delete", name)


def detach(service: Service, *words: str, user: str = "alice") -> str:
    said = service.ssh(":run", "--detach", *words, user=user).ok()
    assert said.err == b""
    (run_id,) = said.lines
    assert ID.fullmatch(run_id)
    return run_id


def rows(said: Said) -> list[list[str]]:
    return [line.split("\t") for line in said.ok().lines]


class TestDetached:
    def test_the_id_alone_then_its_output(self, service: Service, sh: str):
        run_id = detach(service, sh, "echo out; echo err >&2; exit 3")
        said = service.ssh(":logs", run_id, "-f").ok()
        assert (said.out, said.err) == (b"out\n", b"err\n")
        assert service.ssh(":logs", run_id).ok() == said

    def test_it_goes_on_without_its_caller_and_has_no_stdin(self, service: Service, sh: str):
        run_id = detach(service, sh, "n=$(wc -c); echo $n; tty; echo $CMD_RUN_ID")
        said = service.ssh(":logs", run_id, "-f").ok()
        assert said.lines == ["0", "not a tty", run_id]

    def test_following_a_run_that_goes_on(self, service: Service, sh: str):
        run_id = detach(service, sh, ENDLESS)
        follower = service.popen(":logs", "-f", run_id)
        try:
            assert follower.stdout is not None
            assert follower.stdout.readline() == b"begun\n"
            assert service.ssh(":logs", run_id).ok().out == b"begun\n"
            service.ssh(":kill", run_id).ok()
            out, err = follower.communicate(timeout=60)
            assert out == b""
            assert err == f"cmdsvc: {sh}: killed by alice\n".encode()
            assert follower.returncode == 0
        finally:
            follower.kill()
            follower.communicate()

    def test_too_much_output_is_cut_from_its_middle(self, service: Service, sh: str):
        run_id = detach(service, sh, "echo first; head -c 5000000 /dev/zero; echo last")
        service.ssh(":logs", "-f", run_id).ok()
        said = service.ssh(":logs", run_id).ok()
        assert said.out.startswith(b"first\n")
        assert said.out.endswith(b"\0last\n")
        assert len(said.out) <= 1 << 20
        left_out = 5_000_011 - len(said.out)
        assert said.err == f"... {left_out} bytes left out ...\n".encode()

    def test_what_does_not_begin_has_no_id(self, service: Service):
        service.ssh(":run", "--detach", "no-such-command").failed(127, "no-such-command")

    def test_it_is_ended_when_the_server_stops_and_kept(self, own_service: Service, name: str):
        own_service.settings["CMDSVC_DRAIN"] = "200ms"  # type: ignore[index]
        own_service.start()
        own_service.create(name, f"#!cmd alpine\n#!/bin/sh\n{ENDLESS}\n").ok()
        run_id = detach(own_service, name)
        follower = own_service.popen(":logs", "-f", run_id)
        try:
            assert follower.stdout is not None
            assert follower.stdout.readline() == b"begun\n"
        finally:
            follower.kill()
            follower.communicate()
        assert own_service.stop() == 0
        own_service.start()
        said = own_service.ssh(":logs", run_id).ok()
        assert said.out == b"begun\n"
        assert (
            said.err
            == f"cmdsvc: {name}: the server stopped while this ran; start it again\n".encode()
        )
        (row,) = rows(own_service.ssh(":runs"))
        assert (row[0], row[-2:]) == (run_id, ["70", "lost"])

    def test_after_a_crash_it_is_lost(self, own_service: Service, name: str):
        own_service.start()
        own_service.create(name, f"#!cmd alpine\n#!/bin/sh\n{ENDLESS}\n").ok()
        run_id = detach(own_service, name)
        own_service.stop(signal.SIGKILL)
        own_service.start()
        (row,) = rows(own_service.ssh(":runs"))
        assert (row[0], row[-2:]) == (run_id, ["70", "lost"])
        said = own_service.ssh(":logs", "-f", run_id).ok()
        assert said.out == b""


class TestOptions:
    def test_an_attached_run_is_like_any_other(self, service: Service, sh: str):
        said = service.ssh(":run", sh, "cat; echo err >&2; exit 7", stdin=b"in")
        assert (said.out, said.err, said.status) == (b"in", b"err\n", 7)

    def test_words_behind_the_name_are_the_commands(self, service: Service, sh: str):
        script = "shift; for a; do printf '<%s>' \"$a\"; done"
        words = ("--detach", "--help", "--timeout", "--", "-x", "", "a b")
        said = service.ssh(":run", sh, f'set -- x "$@"; {script}', *words).ok()
        assert said.text.endswith("".join(f"<{word}>" for word in words))
        many = ["x"] * 5000
        assert service.ssh(":run", "--", sh, 'echo "$#"', *many).ok().out == b"5001\n"

    def test_a_time_limit_is_lowered(self, service: Service, sh: str):
        service.ssh(":run", "--timeout", "300ms", sh, "sleep 1000").failed(124, sh, "0.3 s")
        service.ssh(":run", "--timeout=300ms", sh, "sleep 1000").failed(124, sh, "0.3 s")

    @pytest.mark.parametrize(
        "words",
        [
            (),
            ("--detach",),
            ("--timeout",),
            ("--timeout", "soon", "x"),
            ("--timeout", "0", "x"),
            ("--timeout", "-1", "x"),
            ("--timeout", "1h", "{sh}", "true"),
            ("--detach", "--timeout", "11m", "{sh}", "true"),
            ("--nope", "{sh}"),
            ("-d", "{sh}"),
            ("--det", "{sh}"),
            ("Upper",),
            (":ls",),
        ],
    )
    def test_what_cannot_be_asked(self, service: Service, sh: str, words: tuple[str, ...]):
        said = service.ssh(":run", *(word.format(sh=sh) for word in words))
        said.failed(64)
        assert said.out == b""

    def test_help(self, service: Service):
        text = service.ssh(":run", "--detach", "--help").ok().text
        assert ":run [--detach] [--timeout DURATION] NAME [ARG ...]" in text
        for verb in (":runs", ":logs", ":kill", ":top"):
            assert verb in service.ssh(verb, "--help").ok().text

    def test_on_a_terminal(self, service: Service, sh: str):
        terminal = Terminal(service, f":run {sh} 'stty size; tty'")
        try:
            terminal.until(b"33 111\r\n/dev/")
            assert terminal.wait() == 0
        finally:
            terminal.close()


class TestKeepOutput:
    def test_asked_for_by_the_script(self, service: Service, name: str):
        service.create(
            name,
            "#!cmd alpine\n#!/bin/sh\n# /// cmd\n# keep_output = true\n# ///\n"
            "echo out; echo err >&2; exit 4\n",
        ).ok()
        said = service.ssh(name)
        assert (said.out, said.err, said.status) == (b"out\n", b"err\n", 4)
        ((run_id, *_),) = rows(service.ssh(":runs", name))
        kept = service.ssh(":logs", run_id).ok()
        assert (kept.out, kept.err) == (b"out\n", b"err\n")

    def test_else_it_is_said_that_there_is_nothing(self, service: Service, sh: str):
        service.ssh(sh, "echo out").ok()
        (row, *_) = rows(service.ssh(":runs", sh, "-n", "1"))
        said = service.ssh(":logs", row[0]).ok()
        assert said.out == b""
        assert b"no output of it is kept" in said.err

    def test_another_value(self, service: Service, name: str):
        source = "#!cmd alpine\n#!/bin/sh\n# /// cmd\n# keep_output = 1\n# ///\n"
        service.create(name, source).failed(65, "line 4", "true or false")


class TestRuns:
    def test_the_columns(self, service: Service, sh: str, name: str):
        service.ssh(sh, "exit 5")
        (row,) = rows(service.ssh(":runs", sh, "-n", "1"))
        assert ID.fullmatch(row[0])
        assert row[1:5] == [f"alice/{sh}", "1", "alice", "ssh"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", row[5])
        assert float(row[6]) >= 0
        assert row[7:] == ["5", "exit"]

    def test_json(self, service: Service, sh: str):
        run_id = detach(service, sh, ENDLESS)
        listing = json.loads(service.ssh(":runs", sh, "-j", "-n1").ok().out)
        assert listing[0] | {"started": "", "seconds": 0} == {
            "name": run_id,
            "command": f"alice/{sh}",
            "version": 1,
            "user": "alice",
            "door": "ssh",
            "started": "",
            "seconds": 0,
            "exit_status": None,
            "reason": "running",
        }
        service.ssh(":kill", run_id).ok()
        listing = json.loads(service.ssh(":runs", sh, "--json", "-n", "1").ok().out)
        assert (listing[0]["exit_status"], listing[0]["reason"]) == (137, "killed")

    def test_whose(self, service: Service, sh: str, name: str):
        service.create(name, "#!cmd alpine\n#!/bin/sh\n", user="bob").ok()
        service.ssh(name, user="bob").ok()
        service.ssh(f"alice/{sh}", "true", user="bob").ok()
        seen = rows(service.ssh(":runs", user="bob"))
        assert {row[3] for row in seen if row[1] in {f"bob/{name}", f"alice/{sh}"}} == {"bob"}
        assert seen[0][1] == f"alice/{sh}"
        assert [row[1] for row in rows(service.ssh(":runs", name, user="bob"))] == [f"bob/{name}"]
        assert rows(service.ssh(":runs", sh, "-n", "1"))[0][3] == "bob"
        assert all(row[1] != f"bob/{name}" for row in rows(service.ssh(":runs", "-n", "1000")))
        service.ssh(":runs", f"bob/{name}").failed(127, f"bob/{name}")
        service.ssh(":runs", "no-such-command").failed(127)

    @pytest.mark.parametrize("number", ["0", "-1", "1001", "x", "9" * 30])
    def test_a_number_that_is_none(self, service: Service, number: str):
        service.ssh(":runs", "-n", number).failed(64)


class TestOthers:
    def test_a_run_that_is_not_ones_own(self, service: Service, sh: str):
        """What one may not see is answered like what does not exist, word for word."""
        run_id = detach(service, sh, ENDLESS)
        nothing = "0" * 16
        for verb in (":logs", ":kill"):
            told = service.ssh(verb, run_id, user="bob").failed(127)
            not_there = service.ssh(verb, nothing, user="bob").failed(127)
            assert told.err.replace(run_id.encode(), nothing.encode()) == not_there.err
        assert rows(service.ssh(":runs", sh, "-n", "1"))[0][-1] == "running"
        service.ssh(":kill", run_id).ok()

    def test_who_administers_a_command_sees_and_ends_its_runs(self, service: Service, sh: str):
        run_id = detach(service, f"alice/{sh}", ENDLESS, user="bob")
        assert service.ssh(":logs", run_id).ok().out in {b"", b"begun\n"}
        service.ssh(":kill", run_id).ok()
        said = service.ssh(":logs", run_id, user="bob").ok()
        assert b"killed by alice" in said.err

    def test_the_caller_of_a_killed_run_is_told(self, service: Service, sh: str):
        client = service.popen(f"alice/{sh}", WAITS, user="bob")
        try:
            assert client.stdout is not None
            assert client.stdout.readline() == b"begun\n"
            ((run_id, *_),) = rows(service.ssh(":runs", sh, "-n", "1"))
            said = service.ssh(":kill", run_id).ok()
            assert said.err == f"killed {run_id}\n".encode()
            _, err = client.communicate(timeout=60)
            assert client.returncode == 137
            assert err == f"cmdsvc: alice/{sh}: killed by alice\n".encode()
        finally:
            client.kill()
            client.communicate()
        said = service.ssh(":kill", run_id).ok()
        assert said.err == f"{run_id} has ended already\n".encode()


class TestLimits:
    @pytest.fixture
    def small(self, own_service: Service, name: str) -> Service:
        own_service.settings.update(  # type: ignore[attr-defined]
            CMDSVC_MAX_RUNS_PER_USER="1", CMDSVC_QUEUE_WAIT="100ms", CMDSVC_MAX_COMMANDS="1"
        )
        own_service.start()
        own_service.create(name, f"#!cmd alpine\n#!/bin/sh\n{WAITS}\n").ok()
        return own_service

    def test_beyond_the_limit_one_waits_a_moment(self, small: Service, name: str):
        client = small.popen(name)
        try:
            assert client.stdout is not None
            assert client.stdout.readline() == b"begun\n"
            small.ssh(name).failed(75, name, "the limit", ":kill")
            small.ssh(":run", "--detach", name).failed(75)
            client.communicate(b"", timeout=60)
            assert small.ssh(name).ok().out == b"begun\n"
        finally:
            client.kill()
            client.communicate()

    def test_too_many_commands(self, small: Service, name: str):
        small.create(f"{name}-2", "#!cmd alpine\n#!/bin/sh\n").failed(75, ":delete")
        small.ssh(":delete", name).ok()
        small.create(f"{name}-2", "#!cmd alpine\n#!/bin/sh\n").ok()


class TestTop:
    @pytest.fixture
    def operated(self, own_service: Service, name: str) -> Service:
        own_service.settings["CMDSVC_OPERATORS"] = "alice"  # type: ignore[index]
        own_service.add_user("bob")
        own_service.start()
        own_service.create(name, f"#!cmd alpine\n#!/bin/sh\n{ENDLESS}\n", user="bob").ok()
        return own_service

    def test_only_for_operators(self, service: Service):
        service.ssh(":top").failed(77, "operators")

    def test_once(self, operated: Service, name: str):
        run_id = detach(operated, name, user="bob")
        follower = operated.popen(":logs", "-f", run_id, user="bob")
        assert follower.stdout is not None
        assert follower.stdout.readline() == b"begun\n"
        follower.kill()
        follower.communicate()
        listing = json.loads(operated.ssh(":top", "-j").ok().out)
        (run,) = (entry for entry in listing if entry["kind"] == "run")
        assert (run["name"], run["command"], run["user"]) == (run_id, f"bob/{name}", "bob")
        assert run["memory"] > 0
        assert run["cpu_seconds"] >= 0
        assert run["output"] == len("begun\n")
        resources = {e["name"]: e for e in listing if e["kind"] == "resource"}
        known = {"runs", "builds", "connections", "http", "memory", "outputs", "stored"}
        assert set(resources) == known
        assert (resources["runs"]["use"], resources["runs"]["limit"]) == (1, 100)
        assert resources["connections"]["use"] >= 1
        table = rows(operated.ssh(":top"))
        assert table[0][:4] == [run_id, "run", f"bob/{name}", "bob"]
        assert [row[0] for row in table[1:]] == list(resources)
        operated.ssh(":kill", run_id).ok()  # an operator ends any run

    def test_live_on_a_terminal(self, operated: Service, name: str):
        run_id = detach(operated, name, user="bob")
        for key in (b"q", b"\x03"):
            terminal = Terminal(operated, ":top")
            try:
                terminal.until(b"\x1b[?1049h")
                terminal.until(run_id.encode())
                terminal.until(b"\x1b[H")  # the next picture
                terminal.type(key)
                terminal.until(b"\x1b[?1049l")
                assert terminal.wait() == 0
            finally:
                terminal.close()
        operated.ssh(":kill", run_id).ok()


REPORT = "#!cmd alpine\n#!/bin/sh\necho counting\necho 'report: 3 lines'\n"
CHATTER = "#!cmd alpine\n#!/bin/sh\n# /// cmd\n# keep_output = true\n# ///\nseq 100000 499999\n"
WAIT = "#!cmd alpine\n#!/bin/sh\nexec sleep 1000\n"


def test_the_page_shows_what_happens(own_service: Service, tmp_path: Path):
    own_service.start()
    for name, source in (("report", REPORT), ("chatter", CHATTER), ("wait", WAIT)):
        own_service.create(name, source).ok()
    page = (Path(__file__).parents[2] / "docs" / "runs.md").read_text()
    assert transcript.run(page, own_service, tmp_path) > 10
