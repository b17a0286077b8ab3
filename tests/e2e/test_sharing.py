"""Who may do what, told as it happens: owner, admin, grantee, stranger, operator, token."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.e2e.service_lab import HELLO, Said, Service

pytestmark = pytest.mark.any_engine

TOKEN = r"cmd_[0-9a-v]{8}_[0-9a-v]{32}\n"


@pytest.fixture
def hello(service: Service, name: str) -> str:
    """A command of alice's."""
    service.create(name, HELLO).ok()
    return name


@pytest.fixture
def token(service: Service) -> Iterator[str]:
    """A token of alice's."""
    text = service.ssh(":tokens", "new", "for a test").ok().text.strip()
    yield text
    service.ssh(":tokens", "rm", text)


def by_token(service: Service, token: str, *words: str) -> Said:
    return service.ssh(*words, user=token, options=("-o", "PubkeyAuthentication=no"))


def test_a_stranger_is_told_what_is_told_of_what_is_not_there(service: Service, hello: str):
    known = service.ssh(f"alice/{hello}", user="bob").failed(127)
    unknown = service.ssh("alice/frobnicate-xyz", user="bob").failed(127)
    assert known.err.replace(hello.encode(), b"X") == unknown.err.replace(b"frobnicate-xyz", b"X")
    near = service.ssh(f"alice/{hello}x", user="bob").failed(127)
    assert b"did you mean" not in near.err


def test_a_grantee_may_run_it_and_nothing_else(service: Service, hello: str):
    service.ssh(":access", hello, "grant", "bob").ok()
    assert service.ssh(f"alice/{hello}", user="bob").ok().out == b"hello\n"
    assert service.ssh(":access", hello).ok().lines == ["bob"]
    assert f"alice/{hello}\t" in service.ssh(":ls", "-a", user="bob").ok().text
    for words in (
        (":source", f"alice/{hello}"),
        (":edit", f"alice/{hello}"),
        (":delete", f"alice/{hello}"),
        (":access", f"alice/{hello}", "grant", "bob"),
        (":admins", f"alice/{hello}", "grant", "bob"),
        (":env", f"alice/{hello}"),
        (":history", f"alice/{hello}"),
    ):
        service.ssh(*words, user="bob", stdin=HELLO).failed(77, words[0])
    service.ssh(":access", hello, "revoke", "bob").ok()
    service.ssh(f"alice/{hello}", user="bob").failed(127)


def test_an_admin_may_do_all_but_delete_and_admins(service: Service, hello: str):
    service.ssh(":admins", hello, "grant", "bob").ok()
    assert service.ssh(":admins", hello).ok().lines == ["bob"]
    full = f"alice/{hello}"
    changed = HELLO.replace(b"hello", b"by bob")
    service.ssh(":edit", full, stdin=changed, user="bob").ok()
    assert service.ssh(hello).ok().out == b"by bob\n"
    assert service.ssh(":source", full, user="bob").ok().out == changed
    service.ssh(":access", full, "grant", "public", user="bob").ok()
    service.ssh(":delete", full, user="bob").failed(77)
    service.ssh(":admins", full, user="bob").failed(77)
    service.ssh(":admins", hello, "revoke", "bob").ok()
    service.ssh(":edit", full, stdin=HELLO, user="bob").failed(77)  # public: he knows of it


def test_cmd_io_let_anybody_edit_and_delete(service: Service, hello: str):
    """Its `:edit` and `:delete` never asked who it was."""
    service.ssh(
        ":edit", f"alice/{hello}", stdin=b"#!cmd alpine\n#!/bin/sh\n:\n", user="bob"
    ).failed(127)
    service.ssh(":delete", f"alice/{hello}", user="bob").failed(127)
    assert service.ssh(hello).ok().out == b"hello\n"


def test_cmd_io_asked_for_the_owners_rights_instead_of_the_callers(service: Service, hello: str):
    """`ssh bob@... alice/NAME` was checked as if alice had asked."""
    service.ssh(f"alice/{hello}", user="bob").failed(127)
    service.ssh(":source", f"alice/{hello}", user="bob").failed(127)
    service.ssh(":access", f"alice/{hello}", "grant", "bob", user="bob").failed(127)


def test_granting_twice_is_once_and_an_unknown_one_grants_nothing(service: Service, hello: str):
    service.ssh(":access", hello, "grant", "bob").ok()
    service.ssh(":access", hello, "grant", "bob").ok()
    assert service.ssh(":access", hello).ok().lines == ["bob"]
    service.ssh(":access", hello, "grant", "public", "nobody-at-all").failed(127, "nobody-at-all")
    assert service.ssh(":access", hello).ok().lines == ["bob"]
    service.ssh(":access", hello, "grant", "UPPER").failed(64)
    service.ssh(":access", hello, "grant").failed(64)
    service.ssh(":access", hello, "revoke", "alice").failed(64, "alice")
    service.ssh(":admins", hello, "revoke", "alice").failed(64, "alice")
    assert json.loads(service.ssh(":access", hello, "-j").ok().out) == [{"name": "bob"}]


def test_public_is_everyone_who_is_identified(service: Service, hello: str, token: str):
    service.ssh(":access", hello, "grant", "public").ok()
    assert service.ssh(f"alice/{hello}", user="bob").ok().out == b"hello\n"
    assert by_token(service, token, f"alice/{hello}").ok().out == b"hello\n"
    stranger = service.key("stranger")
    assert service.ssh(f"alice/{hello}", key=stranger).status == 255


def test_a_token_runs_what_it_is_granted_and_nothing_else(
    service: Service, hello: str, name: str, token: str
):
    other = f"{name}-other"
    service.create(other, HELLO).ok()
    by_token(service, token, hello).failed(127)  # its maker's own rights are not its
    service.ssh(":access", hello, "grant", token).ok()
    assert by_token(service, token, hello).ok().out == b"hello\n"
    assert by_token(service, token, f"alice/{hello}").ok().out == b"hello\n"
    by_token(service, token, other).failed(127)
    assert b"did you mean" not in by_token(service, token, f"{other}s").failed(127).err
    for words in ((":ls",), (":create", "x"), (":help",), (":whoami",), (":tokens",)):
        by_token(service, token, *words).failed(77, words[0])
    listed = service.ssh(":access", hello).ok().lines
    assert listed == [token.rpartition("_")[0]]


def test_a_token_is_shown_once_and_listed_by_its_id(service: Service):
    made = service.ssh(":tokens", "new", "nightly", "--ttl", "1h").ok()
    assert re.fullmatch(TOKEN, made.text)
    assert made.err == b""
    text = made.text.strip()
    id_ = text.rpartition("_")[0]
    entries = {e["name"]: e for e in json.loads(service.ssh(":tokens", "-j").ok().out)}
    assert entries[id_]["description"] == "nightly"
    assert entries[id_]["expires"] != ""
    assert text not in service.ssh(":tokens").ok().text
    for words in (["ls", id_], ["ls", "--ttl", "1h"], ["rm"], ["new", "--now"], ["--now"]):
        service.ssh(":tokens", *words).failed(64, "; ")
    service.ssh(":tokens", "rm", id_, user="bob").failed(127)
    service.ssh(":tokens", "rm", id_).ok()
    assert id_ not in service.ssh(":tokens").ok().text


def test_a_removed_or_expired_token_does_not_log_in(service: Service, hello: str):
    text = service.ssh(":tokens", "new").ok().text.strip()
    service.ssh(":access", hello, "grant", text).ok()
    assert by_token(service, text, hello).ok().out == b"hello\n"
    service.ssh(":tokens", "rm", text).ok()
    assert by_token(service, text, hello).status == 255
    assert service.ssh(hello, user=text, key=service.key("alice")).status == 255, "by another way"
    assert service.ssh(":access", hello).ok().lines == []
    short = service.ssh(":tokens", "new", "--ttl", "1ms").ok().text.strip()
    assert by_token(service, short, hello).status == 255
    service.ssh(":tokens", "new", "--ttl", "never").failed(64, "--ttl")


def test_a_wrong_token_is_refused_and_soon_not_listened_to(own_service: Service):
    own_service.start()
    text = own_service.ssh(":tokens", "new").ok().text.strip()
    wrong = f"{text[:-1]}{'0' if text[-1] != '0' else '1'}"
    for _ in range(31):
        assert by_token(own_service, wrong, "echo", "x").status == 255
    assert by_token(own_service, text, "echo", "x").status == 255  # too many from this address
    assert "failed logins" in own_service.log
    assert text not in own_service.log


def test_deleting_leaves_the_name_free_and_grants_nothing(service: Service, hello: str):
    service.ssh(":access", hello, "grant", "bob").ok()
    service.ssh(":delete", hello).ok()
    service.create(hello, HELLO).ok()
    assert service.ssh(":access", hello).ok().lines == []
    service.ssh(f"alice/{hello}", user="bob").failed(127)


def test_an_operator_is_like_anybody_but_may_delete(own_service: Service, name: str):
    own_service.add_user("olga", "--operator")
    own_service.start()
    own_service.create(name, HELLO).ok()
    own_service.ssh(f"alice/{name}", user="olga").failed(127)
    own_service.ssh(":source", f"alice/{name}", user="olga").failed(127)
    own_service.ssh(":delete", f"alice/{name}", user="olga").ok()
    own_service.ssh(name).failed(127)
