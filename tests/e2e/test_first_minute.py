"""The seed's example, and what a newcomer types next."""

from __future__ import annotations

import json

import pytest

from tests.e2e.service_lab import HELLO, Service

SEED = b"""
#!cmd alpine bash curl jq
#!/bin/bash
curl -s "${1}" | jq -r "${2}"
"""
"""The example of 2017, with the empty line that it begins with."""


@pytest.fixture
def hello(service: Service, name: str) -> str:
    service.create(name, HELLO).ok()
    return name


def test_create_then_run(service: Service, hello: str):
    said = service.ssh(hello).ok()
    assert (said.out, said.err) == (b"hello\n", b"")


def test_the_example_of_2017_is_taken_to_the_letter(service: Service, name: str):
    made = service.create(name, SEED).ok()
    assert f"created {name}" in made.err.decode()
    assert service.ssh(":source", name).ok().out == SEED
    # A file: URL is fetched without a network, which the engine may not have.
    said = service.ssh(name, "file:///run/cmd/main", ".", stdin=b"").out
    assert said == b""  # not JSON: jq says so on stderr, and prints nothing


def test_a_build_shows_the_package_manager_at_work(service: Service, name: str):
    said = service.create(name, "#!cmd alpine jq hello-noarch\n#!jq\n").ok()
    assert "Installing" in said.err.decode()
    assert service.ssh(name, "-c", ".a", stdin=b'{"a": [1]}').ok().out == b"[1]\n"


def test_without_a_command_there_is_help(service: Service, hello: str):
    said = service.raw("").ok()
    assert hello in said.text
    assert ":create" in said.text


@pytest.mark.parametrize(
    "verb", [":help", ":create", ":edit", ":source", ":ls", ":delete", ":rm", ":whoami"]
)
def test_every_builtin_has_help_with_an_example(service: Service, verb: str):
    said = service.ssh(verb, "--help").ok()
    assert "usage: :" in said.text
    assert "example:\n  ssh HOST :" in said.text


def test_ls_is_tab_separated_without_a_header_and_json_when_asked(service: Service, hello: str):
    rows = [line.split("\t") for line in service.ssh(":ls").ok().lines]
    assert [row[0] for row in rows].count(hello) == 1
    assert "NAME" not in {row[0] for row in rows}
    listed = {entry["name"]: entry for entry in json.loads(service.ssh(":ls", "-j").ok().out)}
    assert listed[hello]["version"] == 1
    everything = service.ssh(":ls", "-a").ok().text
    assert "cmd/http\t" in everything


def test_ls_is_a_table_on_a_terminal(service: Service, hello: str):
    said = service.ssh(":ls", options=("-tt",)).ok()
    assert said.lines[0].startswith("NAME")
    assert hello in said.text


def test_edit_makes_a_version_that_runs_at_once(service: Service, hello: str):
    source = HELLO.replace(b"hello", b"goodbye $CMD_VERSION")
    assert "version 2" in service.ssh(":edit", hello, stdin=source).ok().err.decode()
    assert service.ssh(hello).ok().out == b"goodbye 2\n"
    assert service.ssh(":source", hello).ok().out == source


@pytest.mark.parametrize("verb", [":delete", ":rm"])
def test_delete(service: Service, name: str, verb: str):
    service.create(name, HELLO).ok()
    service.ssh(verb, name).ok()
    service.ssh(name).failed(127, name)
    service.ssh(verb, name).failed(127, name)


def test_whoami_is_by_key_and_not_by_claim(service: Service):
    said = service.ssh(":whoami", user="alice").ok()
    assert said.text.split("\t")[0] == "alice"
    claimed = service.ssh(":whoami", user="bob", key=service.key("alice")).ok()
    assert claimed.text.split("\t")[0] == "alice"


def test_users_have_names_of_their_own(service: Service, hello: str):
    service.ssh(hello, user="bob").failed(127, hello)
    service.ssh(f"alice/{hello}", user="bob").failed(127)
    service.create(hello, HELLO.replace(b"hello", b"of bob"), user="bob").ok()
    assert service.ssh(hello, user="bob").ok().out == b"of bob\n"
    assert service.ssh(hello).ok().out == b"hello\n"
    assert service.ssh(f"alice/{hello}").ok().out == b"hello\n"


def test_ready_made_commands_are_there(service: Service):
    assert service.ssh("cmd/echo", "a", "b c").ok().out == b"a b c\n"
    assert service.ssh("echo", "-n", "x").ok().out == b"-n x\n"
    assert service.ssh(":source", "cmd/echo").ok().out.startswith(b"#!cmd alpine\n")
