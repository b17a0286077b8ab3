"""What the options of a keys file's lines mean."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import asyncssh
import pytest

from cmdsvc.ssh.restrictions import FREE, Restrictions, parse_line, patterns

KEY = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().strip()


def given(options: str) -> Restrictions:
    line = parse_line(f"{options} {KEY} a comment")
    assert line.options == options
    return line.restrictions


def test_none():
    line = parse_line(f"  {KEY} a comment\r\n")
    assert (line.restrictions, line.options) == (FREE, "")
    assert line.key.get_comment() == "a comment"


@pytest.mark.parametrize(
    ("options", "meant"),
    [
        ("restrict", Restrictions(pty=False, agent_forwarding=False)),
        ("restrict,pty", Restrictions(agent_forwarding=False)),
        ("pty,restrict", Restrictions(pty=False, agent_forwarding=False)),
        ("restrict,agent-forwarding", Restrictions(pty=False)),
        ("no-pty", Restrictions(pty=False)),
        ("NO-PTY", Restrictions(pty=False)),
        ("no-agent-forwarding", Restrictions(agent_forwarding=False)),
        ("no-port-forwarding,no-X11-forwarding,no-user-rc,port-forwarding", FREE),
        ("no-touch-required", FREE),
        ("verify-required", Restrictions(verify=True)),
        ('command="http \\"a b\\" c"', Restrictions(command='http "a b" c')),
        ('command=""', Restrictions(command="")),
        ('no-pty,command="a, b"', Restrictions(pty=False, command="a, b")),
    ],
)
def test_options(options: str, meant: Restrictions):
    assert given(options) == meant


@pytest.mark.parametrize(
    ("pattern", "address", "admitted"),
    [
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.7", "192.0.2.70", False),
        ("192.0.2.0/24", "192.0.2.70", True),
        ("192.0.2.*", "192.0.2.70", True),
        ("192.0.2.?", "192.0.2.70", False),
        ("192.0.2.*", "192x0y2.70", False),
        ("*", "192.0.2.70", True),
        ("*,!192.0.2.7", "192.0.2.7", False),
        ("*,!192.0.2.7", "192.0.2.8", True),
        ("!192.0.2.7", "192.0.2.8", False),
        ("192.0.2.1,192.0.2.2", "192.0.2.2", True),
        ("2001:db8::/32", "2001:db8::5", True),
        ("2001:db8:*", "2001:db8::5", True),
        ("***************1", "0" * 60, False),
    ],
)
def test_addresses(pattern: str, address: str, admitted: bool):
    assert patterns(pattern).admits(address) is admitted
    assert given(f'from="{pattern}"').sources == patterns(pattern)


@pytest.mark.parametrize("pattern", ["", "a.example.org", "192.0.2.1,", "[a-z]", "!", "10.0.0.1/8"])
def test_what_is_no_address(pattern: str):
    with pytest.raises(ValueError):
        patterns(pattern)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("20300102Z", datetime(2030, 1, 2, tzinfo=UTC)),
        ("203001020304Z", datetime(2030, 1, 2, 3, 4, tzinfo=UTC)),
        ("20300102030405Z", datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)),
    ],
)
def test_expiry(text: str, moment: datetime):
    found = given(f'expiry-time="{text}"')
    assert found.expires_at == moment.timestamp()
    assert found.refusal("192.0.2.1", moment.timestamp() - 1) == ""
    assert found.refusal("192.0.2.1", moment.timestamp()) == "expired"


def test_expiry_in_local_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        found = given('expiry-time="20300102"').expires_at
        assert found == datetime(2030, 1, 1, 15, tzinfo=UTC).timestamp()
    finally:
        monkeypatch.undo()
        time.tzset()
