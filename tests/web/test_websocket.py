"""Which pages are the service's own, and which requests ask for a WebSocket."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cmdsvc.web.asked import Asked
from cmdsvc.web.forwarded import Proxies
from cmdsvc.web.websocket import is_ours, wanted


async def unused(*_: Any) -> Any:
    raise AssertionError


def asked(
    *headers: tuple[bytes, bytes],
    scheme: str = "http",
    method: str = "GET",
    version: str = "1.1",
    proxy: str = "192.0.2.1",
) -> Asked:
    scope = {
        "method": method,
        "http_version": version,
        "headers": headers,
        "query_string": b"",
        "state": {"line": SimpleNamespace()},
        "raw_path": b"/run/alice/sh",
        "scheme": scheme,
        "client": ("127.0.0.1", 1234),
        "server": ("127.0.0.1", 8022),
    }
    return Asked(scope, unused, unused, Proxies([proxy]))


@pytest.mark.parametrize(
    ("host", "origin", "ours"),
    [
        (b"cmd.example", "https://cmd.example", True),
        (b"cmd.example", "HTTPS://CMD.example", True),
        (b"cmd.example:8443", "https://cmd.example:8443", True),
        (b"[::1]:8022", "http://[::1]:8022", True),
        (b"cmd.example", "https://cmd.example:8443", False),
        (b"cmd.example:8443", "https://cmd.example", False),
        (b"cmd.example", "https://cmd.example.evil.example", False),
        (b"cmd.example", "https://evil.example", False),
        (b"cmd.example", "https://evil.example/cmd.example", False),
        (b"cmd.example", "https://x@cmd.example", False),
        (b"cmd.example", "null", False),
        (b"cmd.example", "cmd.example", False),
        (b"cmd.example", "", False),
    ],
)
def test_pages_of_the_address_that_was_asked(host: bytes, origin: str, ours: bool):
    assert is_ours(origin, asked((b"host", host))) is ours


def test_the_address_that_a_proxy_was_asked():
    said = [
        (b"host", b"backend:8022"),
        (b"x-forwarded-for", b"192.0.2.7"),
        (b"x-forwarded-proto", b"https"),
        (b"x-forwarded-host", b"cmd.example"),
    ]
    assert is_ours("https://cmd.example", asked(*said, proxy="127.0.0.1"))
    assert not is_ours("https://cmd.example:8022", asked(*said, proxy="127.0.0.1"))
    assert not is_ours("https://cmd.example", asked(*said))


def test_what_asks_for_one():
    both = [(b"connection", b"keep-alive, UPGRADE"), (b"upgrade", b"h2c, WebSocket")]
    assert wanted(asked(*both))
    assert not wanted(asked(both[0]))
    assert not wanted(asked(both[1]))
    assert not wanted(asked(*both, method="POST"))
    assert not wanted(asked(*both, version="1.0"))
