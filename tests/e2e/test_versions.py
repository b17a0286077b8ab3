"""`:apply`, `:history`, `:rollback`: what a command was, and back to it."""

from __future__ import annotations

import json
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.service_lab import Service

pytestmark = pytest.mark.any_engine


def says(word: str) -> bytes:
    return f"#!cmd alpine\n#!/bin/sh\necho {word}\n".encode()


@pytest.fixture
def three(service: Service, name: str) -> str:
    """A command with three versions, the third its current one."""
    service.create(name, says("one")).ok()
    service.ssh(":edit", name, stdin=says("two")).ok()
    service.ssh(":edit", name, stdin=says("three")).ok()
    return name


def numbers(service: Service, name: str) -> list[tuple[int, bool]]:
    listed = json.loads(service.ssh(":history", name, "-j").ok().out)
    return [(v["version"], v["current"]) for v in listed]


class TestApply:
    def test_it_says_what_it_did(self, service: Service, name: str):
        for source, word in (
            (says("one"), "created"),
            (says("one"), "unchanged"),
            (says("two"), "updated"),
            (says("two"), "unchanged"),
            (says("one"), "updated"),
        ):
            said = service.ssh(":apply", name, stdin=source).ok()
            assert said.out == b""
            assert said.err.decode().splitlines()[-1] == f"{word} {name}"
            assert service.ssh(":source", name).ok().out == source
        assert numbers(service, name) == [(3, True), (2, False), (1, False)]
        assert service.ssh(":apply", name, "-", stdin=says("one")).ok().err == (
            f"unchanged {name}\n".encode()
        )
        assert service.ssh(name).ok().out == b"one\n"

    def test_what_cannot_be_used_changes_nothing(self, service: Service, name: str):
        service.ssh(":apply", name, stdin=b"no script").failed(65)
        service.ssh(":source", name).failed(127)
        service.ssh(":apply", name, stdin=says("one")).ok()
        service.ssh(":apply", name, stdin=b"#!cmd alpine no-such-package\n#!/bin/sh\n").failed(65)
        assert service.ssh(name).ok().out == b"one\n"
        assert numbers(service, name) == [(1, True)]

    @pytest.mark.parametrize("bad", ["UP", "a/b/c", "../x", ""])
    def test_a_bad_name(self, bad: str, service: Service):
        service.ssh(":apply", bad, stdin=says("x")).failed(64)

    def test_a_ready_made_name_can_be_ones_own(self, own_service: Service):
        own_service.start()
        ready = next(
            line.split("\t")[0].removeprefix("cmd/")
            for line in own_service.ssh(":ls", "-a").ok().lines
            if line.startswith("cmd/")
        )
        assert (
            own_service.ssh(":apply", ready, stdin=says("mine"))
            .ok()
            .err.endswith(f"created {ready}\n".encode())
        )
        assert own_service.ssh(ready).ok().out == b"mine\n"
        assert own_service.ssh(":history", f"cmd/{ready}").ok().lines[0].startswith("1\t")
        own_service.ssh(":apply", f"cmd/{ready}", stdin=says("x")).failed(77)
        own_service.ssh(":rollback", f"cmd/{ready}").failed(77)

    def test_of_another_only_where_he_says_so(self, service: Service, name: str):
        full = f"alice/{name}"
        service.ssh(":apply", full, stdin=says("x"), user="bob").failed(127)
        assert service.ssh(":apply", full, stdin=says("one")).ok().err == (
            f"created {name}\n".encode()
        )
        service.ssh(":apply", full, stdin=says("x"), user="bob").failed(127)
        service.ssh(":access", name, "grant", "bob").ok()
        service.ssh(":apply", full, stdin=says("x"), user="bob").failed(77)
        service.ssh(":admins", name, "grant", "bob").ok()
        service.ssh(":apply", full, stdin=says("bobs"), user="bob").ok()
        assert service.ssh(name).ok().out == b"bobs\n"
        authors = json.loads(service.ssh(":history", name, "-j").ok().out)
        assert [v["author"] for v in authors] == ["bob", "alice"]

    def test_several_at_once_agree(self, service: Service, name: str):
        clients = [service.popen(":apply", name) for _ in range(4)]
        said = [client.communicate(says("one"), timeout=60)[1] for client in clients]
        assert [client.returncode for client in clients] == [0] * 4
        words = [text.decode().splitlines()[-1].split()[0] for text in said]
        assert words.count("created") == 1, words
        assert service.ssh(name).ok().out == b"one\n"


class TestHistory:
    def test_newest_first_one_line_each(self, service: Service, three: str):
        lines = [line.split("\t") for line in service.ssh(":history", three).ok().text.splitlines()]
        assert [line[0] for line in lines] == ["3", "2", "1"]
        for (version, created, author, digest, size, current), word in zip(
            lines, ("three", "two", "one"), strict=True
        ):
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", created)
            assert author == "alice"
            assert re.fullmatch(r"[0-9a-f]{12}", digest)
            assert int(size) == len(says(word))
            assert current == ("*" if version == "3" else "")

    def test_as_objects(self, service: Service, three: str):
        newest = json.loads(service.ssh(":history", three, "-j").ok().out)[0]
        assert newest.keys() == {
            *("name", "version", "created", "author", "digest", "bytes", "current")
        }
        assert (newest["name"], newest["version"], newest["current"]) == (three, 3, True)
        assert newest["bytes"] == len(says("three"))

    def test_what_changed_between_two(self, service: Service, three: str, tmp_path: Path):
        said = service.ssh(":history", three, "--diff", "1", "3").ok()
        assert (
            said.out
            == (
                f"--- alice/{three} version 1\n+++ alice/{three} version 3\n"
                "@@ -1,3 +1,3 @@\n #!cmd alpine\n #!/bin/sh\n-echo one\n+echo three\n"
            ).encode()
        )
        (tmp_path / "file").write_bytes(says("one"))
        subprocess.run(["patch", "-s", "file"], cwd=tmp_path, input=said.out, check=True)
        assert (tmp_path / "file").read_bytes() == says("three")
        assert service.ssh(":history", three, "--diff", "2", "2").ok().out == b""

    @pytest.mark.parametrize(
        "words",
        [
            ["--diff", "1"],
            ["--diff", "1", "9"],
            ["--diff", "0", "1"],
            ["--diff", "-1", "1"],
            ["--diff", "a", "b"],
            ["--diff", "1", "99999999999999999999"],
        ],
        ids=str,
    )
    def test_a_difference_that_is_none(self, words: list[str], service: Service, three: str):
        service.ssh(":history", three, *words).failed(64)

    def test_it_is_not_for_everyone(self, service: Service, three: str):
        full = f"alice/{three}"
        for words in (
            (":history", full),
            (":history", full, "--diff", "1", "2"),
            (":source", full, "--version", "1"),
            (":rollback", full),
        ):
            service.ssh(*words, user="bob").failed(127)
        service.ssh(":access", three, "grant", "bob").ok()
        for words in ((":history", full), (":source", full, "--version", "1"), (":rollback", full)):
            service.ssh(*words, user="bob").failed(77)
        assert numbers(service, three)[0] == (3, True)

    def test_of_what_is_not_there(self, service: Service, name: str):
        service.ssh(":history", name).failed(127, name)
        service.ssh(":rollback", name).failed(127, name)


class TestSource:
    def test_of_each_version(self, service: Service, three: str):
        for number, word in enumerate(("one", "two", "three"), 1):
            said = service.ssh(":source", three, "--version", str(number)).ok()
            assert said.out == says(word)
        assert service.ssh(":source", three).ok().out == says("three")

    @pytest.mark.parametrize("number", ["4", "0", "-1", "x", "9999999999999999999999"])
    def test_of_one_that_is_not_there(self, number: str, service: Service, three: str):
        service.ssh(":source", three, "--version", number).failed(64)


class TestRollback:
    def test_to_the_one_before_and_on(self, service: Service, three: str):
        assert service.ssh(":rollback", three).ok().err == f"{three} is now version 2\n".encode()
        assert service.ssh(three).ok().out == b"two\n"
        assert service.ssh(":source", three).ok().out == says("two")
        assert numbers(service, three) == [(3, False), (2, True), (1, False)]
        service.ssh(":rollback", three).ok()
        assert service.ssh(three).ok().out == b"one\n"
        service.ssh(":rollback", three).failed(64, "no version before 1")
        assert service.ssh(three).ok().out == b"one\n"

    def test_to_any_and_forth_again(self, service: Service, three: str):
        service.ssh(":rollback", three, "1").ok()
        assert service.ssh(three).ok().out == b"one\n"
        service.ssh(":rollback", three, "3").ok()
        assert service.ssh(three).ok().out == b"three\n"
        assert service.ssh(":rollback", three, "3").ok().err.endswith(b"is now version 3\n")

    @pytest.mark.parametrize("number", ["4", "0", "-1", "x", "", "9999999999999999999999"])
    def test_to_one_that_is_not_there(self, number: str, service: Service, three: str):
        service.ssh(":rollback", three, number).failed(64)
        assert numbers(service, three) == [(3, True), (2, False), (1, False)]

    def test_numbers_are_never_used_again(self, service: Service, three: str):
        service.ssh(":rollback", three, "1").ok()
        assert b"version 4" in service.ssh(":edit", three, stdin=says("four")).ok().err
        assert numbers(service, three) == [(4, True), (3, False), (2, False), (1, False)]
        assert service.ssh(":source", three, "--version", "3").ok().out == says("three")
        service.ssh(":rollback", three).ok()
        assert service.ssh(three).ok().out == b"three\n"

    def test_apply_compares_with_what_is_current(self, service: Service, three: str):
        service.ssh(":rollback", three, "1").ok()
        assert service.ssh(":apply", three, stdin=says("one")).ok().err.startswith(b"unchanged")
        assert service.ssh(":apply", three, stdin=says("three")).ok().err.startswith(b"updated")
        assert numbers(service, three)[0] == (4, True)

    def test_a_run_knows_its_version(self, service: Service, name: str):
        source = b'#!cmd alpine\n#!/bin/sh\necho "$CMD_VERSION"\n'
        service.create(name, source).ok()
        service.ssh(":edit", name, stdin=source + b"\n").ok()
        assert service.ssh(name).ok().out == b"2\n"
        service.ssh(":rollback", name).ok()
        assert service.ssh(name).ok().out == b"1\n"

    def test_no_package_source_is_needed(self, own_service: Service):
        own_service.start()
        with_package = b"#!cmd alpine jq\n#!jq\n"
        own_service.create("tool", with_package).ok()
        own_service.ssh(":edit", "tool", stdin=says("plain")).ok()
        own_service.stop()
        own_service.settings = {
            **own_service.settings,
            "CMDSVC_ALPINE_MIRROR": "http://127.0.0.1:9/none",
        }
        own_service.start()
        own_service.ssh(":rollback", "tool").ok()
        assert own_service.ssh("tool", "-c", ".a", stdin=b'{"a":1}').ok().out == b"1\n"
        other = b"#!cmd alpine jq bash\n#!jq\n"
        assert own_service.ssh(":apply", "tool", stdin=other).status == 75


def test_two_edits_at_once_both_become_versions(service: Service, three: str):
    words = ("left", "right")
    clients = [service.popen(":edit", three) for _ in words]
    for client, word in zip(clients, words, strict=True):  # both are there before one is whole
        assert client.stdin is not None
        client.stdin.write(says(word))
        client.stdin.flush()
    service.ssh(":whoami").ok()
    with ThreadPoolExecutor() as pool:
        said = list(pool.map(lambda client: client.communicate(timeout=60), clients))
    assert [client.returncode for client in clients] == [0, 0], said
    assert [number for number, _ in numbers(service, three)] == [5, 4, 3, 2, 1]
    sources = {service.ssh(":source", three, "--version", str(n)).ok().out for n in (4, 5)}
    assert sources == {says("left"), says("right")}
    assert service.ssh(three).ok().out in (b"left\n", b"right\n")
