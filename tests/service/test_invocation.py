"""What a script finds in its environment, and what a run is called."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from types import MappingProxyType

import pytest

from cmdsvc import __version__
from cmdsvc.errors import DataError
from cmdsvc.model import Command, Door, Identity, Run, Terminal, Version, Via
from cmdsvc.script import Script, parse
from cmdsvc.service import invocation
from cmdsvc.service.invocation import ENV_MAX, Request, environment, run_id

NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
HELLO = b"#!cmd alpine\n#!/bin/sh\n"
COMMAND = Command("bob", "hello", "", Version(3, HELLO, "bob", NOW, "d" * 64))
RUN = Run("r1", "bob/hello", 3, "ann", Door.SSH, NOW)
REQUEST = Request(Identity("ann", Via.KEY), Door.SSH, "bob/hello", [], {}, "192.0.2.7")

OWN = {
    b"PATH": b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    b"HOME": b"/cmd",
    b"USER": b"ann",
    b"REMOTE_ADDR": b"192.0.2.7",
    b"SERVER_SOFTWARE": f"cmdsvc/{__version__}".encode(),
    b"CMD_NAME": b"hello",
    b"CMD_OWNER": b"bob",
    b"CMD_USER": b"ann",
    b"CMD_RUN_ID": b"r1",
    b"CMD_VERSION": b"3",
}


def script(*accepted: str) -> Script:
    names = ", ".join(f'"{name}"' for name in accepted)
    return parse(HELLO + f"# /// cmd\n# accept_env = [{names}]\n# ///\n".encode())


def env_of(
    sent: Mapping[bytes, bytes],
    *accepted: str,
    terminal: Terminal | None = None,
    owners: Mapping[bytes, bytes] = MappingProxyType({}),
) -> dict[bytes, bytes]:
    request = replace(REQUEST, env=sent, terminal=terminal)
    return environment(RUN, request, COMMAND, script(*accepted), owners)


class TestEnvironment:
    def test_nothing_sent(self):
        assert env_of({}) == OWN | {b"LANG": b"C.UTF-8"}

    def test_a_terminal(self):
        assert env_of({}, terminal=Terminal("xterm", 80, 24))[b"TERM"] == b"xterm"
        assert b"TERM" not in env_of({})

    @pytest.mark.parametrize("name", [b"LANG", b"TERM", b"COLORTERM", b"LC_ALL", b"LC_TIME"])
    def test_what_any_caller_may_set(self, name: bytes):
        terminal = Terminal("xterm", 80, 24)
        assert env_of({name: b"x"}, terminal=terminal)[name] == b"x"

    @pytest.mark.parametrize("name", [b"FOO", b"foo", b"TERMINAL", b"LANGUAGE", b"XLC_ALL", b""])
    def test_what_it_may_not(self, name: bytes):
        assert env_of({name: b"x"}, "Foo") == OWN | {b"LANG": b"C.UTF-8"}

    def test_what_the_script_accepts(self):
        sent = {b"FOO": b"1", b"BAR": b"2", b"BAZ": b"3"}
        assert env_of(sent, "FOO", "BAZ") == OWN | {
            b"LANG": b"C.UTF-8",
            b"FOO": b"1",
            b"BAZ": b"3",
        }

    @pytest.mark.parametrize("name", [b"FOO", b"LANG", b"LC_ALL", b"TERM"])
    def test_nothing_that_is_sent_overrides_the_owners(self, name: bytes):
        terminal = Terminal("xterm", 80, 24)
        env = env_of({name: b"forged"}, "FOO", terminal=terminal, owners={name: b"true"})
        assert env[name] == b"true"

    @pytest.mark.parametrize("name", sorted(OWN))
    def test_nor_do_the_owners_override_the_services(self, name: bytes):
        assert env_of({}, owners={name: b"forged"})[name] == OWN[name]

    def test_values_are_bytes_of_any_kind(self):
        value = bytes(range(1, 256))
        assert env_of({b"FOO": value}, "FOO")[b"FOO"] == value
        assert env_of({b"FOO": b""}, "FOO")[b"FOO"] == b""

    @pytest.mark.parametrize("name", sorted(OWN))
    def test_the_services_own_always_win(self, name: bytes):
        assert env_of({name: b"forged"}) == OWN | {b"LANG": b"C.UTF-8"}
        with pytest.raises(DataError, match="not for a caller to set"):
            script(name.decode())

    @pytest.mark.parametrize("name", [b"SSH_AUTH_SOCK", b"LD_PRELOAD", b"BASH_ENV", b"IFS"])
    def test_what_nobody_may_set(self, name: bytes):
        assert name not in env_of({name: b"x"})
        with pytest.raises(DataError, match="not for a caller to set"):
            script(name.decode())

    @pytest.mark.parametrize(
        ("name", "value"), [(b"LC_A=B", b"x"), (b"LC_\0A", b"x"), (b"LANG", b"a\0b")]
    )
    def test_what_no_environment_can_hold(self, name: bytes, value: bytes):
        assert env_of({name: value}) == OWN | {b"LANG": b"C.UTF-8"}

    def test_its_size_is_bounded(self):
        fits = ENV_MAX - len(b"FOO") - 2
        assert env_of({b"FOO": b"x" * fits}, "FOO")[b"FOO"] == b"x" * fits
        assert b"FOO" not in env_of({b"FOO": b"x" * (fits + 1)}, "FOO")

    def test_the_size_of_many(self):
        sent = {f"LC_{n:03}".encode(): b"x" * 1000 for n in range(200)}
        taken = env_of(sent)
        assert len(taken.keys() & sent.keys()) == ENV_MAX // (1000 + len("LC_000") + 2)
        assert taken.items() >= OWN.items()


class TestRunId:
    def test_its_form(self):
        assert re.fullmatch(r"[0-9a-v]{16}", run_id())

    def test_later_ones_sort_later(self, monkeypatch: pytest.MonkeyPatch):
        times = [0, 0.001, 1.5, 1e9, 1.7e9, 1.7e9 + 0.001, 1.7e9 + 0.032, 1e11]
        ids = []
        for now in times:
            monkeypatch.setattr(invocation.time, "time", lambda now=now: now)
            ids.append(run_id())
        monkeypatch.undo()
        assert ids == sorted(ids)

    def test_those_of_one_moment_differ(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(invocation.time, "time", lambda: 1.7e9)
        ids = {run_id() for _ in range(100)}
        monkeypatch.undo()
        assert len(ids) == 100
        assert len({found[:9] for found in ids}) == 1  # the time is what they have in common
