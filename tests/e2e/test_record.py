"""The record has whatever changes who may do what, and what is run: by whom, and in which order."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.e2e.service_lab import HELLO, Service

pytestmark = pytest.mark.any_engine


def test_every_kind_of_change(own_service: Service, tmp_path: Path):
    service = own_service
    service.add_user("olga", "--operator")
    service.start()
    one, two = service.key("one"), service.key("two")
    service.create("hello", HELLO).ok()
    service.ssh(":edit", "hello", stdin=HELLO + b"# 2\n").ok()
    service.ssh(":apply", "hello", stdin=HELLO + b"# 3\n").ok()
    service.ssh(":apply", "hello", stdin=HELLO + b"# 3\n").ok()
    service.ssh(":rollback", "hello", "1").ok()
    service.ssh(":env", "hello", "set", "A=sesame").ok()
    service.ssh(":env", "hello", "unset", "A").ok()
    service.cli("user", "add", "bob", f"{one}.pub").ok()
    service.ssh(":access", "hello", "grant", "bob").ok()
    service.ssh(":access", "hello", "revoke", "bob").ok()
    service.ssh(":admins", "hello", "grant", "bob").ok()
    service.ssh(":admins", "hello", "revoke", "bob").ok()
    token = service.ssh(":tokens", "new", "ci").ok().text.strip()
    service.ssh(":tokens", "rm", token).ok()
    service.ssh(":keys", "add", stdin=Path(f"{two}.pub").read_bytes()).ok()
    print_ = subprocess.run(
        ["ssh-keygen", "-lf", f"{two}.pub"], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    service.ssh(":keys", "rm", print_).ok()
    service.cli("user", "add", "bob", f"{two}.pub").ok()
    service.cli("user", "add", "bob", f"{two}.pub").ok()
    service.ssh(":delete", "hello").ok()
    service.ssh(":system", "prune", user="olga").ok()
    service.cli("notice", "soon", "--close").ok()
    service.cli("notice", "--clear").ok()
    service.cli("user", "rename", "bob", "bert").ok()
    service.cli("user", "rm", "bert", "--now").ok()
    text = service.ssh(":system", "log", "-n", "1000", "-j", user="olga").ok().text
    told = [(e["user"], e["action"], e["name"], e["detail"]) for e in json.loads(text)[::-1]]
    id_ = token.rpartition("_")[0]
    assert [entry for entry in told if entry[1] != "prune"] == [
        ("alice", "create", "alice/hello", ""),
        ("alice", "edit", "alice/hello", "version 2"),
        ("alice", "edit", "alice/hello", "version 3"),
        ("alice", "rollback", "alice/hello", "version 1"),
        ("alice", "env", "alice/hello", "set A"),
        ("alice", "env", "alice/hello", "unset A"),
        ("", "user-add", "bob", "1 new key"),
        ("alice", "grant", "alice/hello", "bob"),
        ("alice", "revoke", "alice/hello", "bob"),
        ("alice", "admin-grant", "alice/hello", "bob"),
        ("alice", "admin-revoke", "alice/hello", "bob"),
        ("alice", "token", id_, "ci"),
        ("alice", "token-rm", id_, ""),
        ("alice", "key-add", "alice", print_),
        ("alice", "key-rm", "alice", print_),
        ("", "key-add", "bob", "1 new key"),
        ("alice", "delete", "alice/hello", ""),
        ("", "notice", "", "closed: soon"),
        ("", "notice", "", "removed"),
        ("", "user-rename", "bob", "to bert"),
        ("", "user-rm", "bert", "with 0 commands"),
        ("", "user-oust", "bert", ""),
    ]
    assert [entry[0] for entry in told if entry[1] == "prune"] == ["olga"]
    assert "sesame" not in text
    assert token not in text
