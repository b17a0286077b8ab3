"""Every ready-made command whose packages the offline kit has is built and run."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from cmdsvc.script import parse
from tests.e2e.service_lab import Service

FOLDER = Path(__file__).parents[2] / "builtins"
NAMES = sorted(path.stem for path in FOLDER.glob("*.cmd"))

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\n"

CALLS: dict[str, tuple[tuple[str, ...], bytes, int, str]] = {
    "digest": ((), b"x", 0, hashlib.sha256(b"x").hexdigest() + "\n"),
    "echo": (("a  b", "-n"), b"", 0, r"a  b -n\n"),
    "git-echo": ((), b"", 128, "(?s).*report-status.*"),
    "env": ((), b"", 0, r"(?s).*CMD_OWNER=cmd\n.*"),
    "headers": ((), b"", 64, ""),
    "http": ((), b"", 64, ""),
    "jq": (("-c", ".a"), b'{"a": [1, 2]}', 0, r"\[1,2\]\n"),
    "qr": (("hello",), b"", 0, "(?s).*\N{FULL BLOCK}.*"),
    "tls": ((), b"", 64, ""),
    "uuid": (("2",), b"", 0, UUID * 2),
    "whois": ((), b"", 64, ""),
}
"""Arguments, stdin, exit status, and what stdout is to match whole. Those that need the Internet
say how they are used; git's speaks its protocol (test_git.py)."""


def test_each_has_a_call_here():
    assert sorted(CALLS) == NAMES


@pytest.mark.parametrize("ready", NAMES)
def test_it_has_a_description_and_parses(ready: str):
    assert parse((FOLDER / f"{ready}.cmd").read_bytes()).metadata.description


@pytest.mark.parametrize("ready", NAMES)
def test_it_runs(service: Service, ready: str):
    args, stdin, status, out = CALLS[ready]
    said = service.ssh(f"cmd/{ready}", *args, stdin=stdin)
    assert said.status == status, said
    assert re.fullmatch(out, said.text), said


@pytest.mark.parametrize("ready", NAMES)
def test_its_source_makes_a_command_of_ones_own(service: Service, name: str, ready: str):
    source = service.ssh(":source", f"cmd/{ready}").ok().out
    service.create(name, source).ok()
    service.ssh(":delete", name).ok()
