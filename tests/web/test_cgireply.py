"""A reply as a script shapes it (RFC 3875, 6)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmdsvc.web.cgireply import HEAD_MAX, MalformedError, head, split


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"A: 1\n\nbody", (b"A: 1\n", b"body")),
        (b"A: 1\r\n\r\nbody", (b"A: 1\r\n", b"body")),
        (b"A: 1\nB: 2\r\n\n\n", (b"A: 1\nB: 2\r\n", b"\n")),
        (b"A: 1\n", None),
        (b"A: 1\r\n\r", None),
        (b"", None),
        (b"a" * (HEAD_MAX + 1) + b"\n\n", None),
    ],
)
def test_where_the_body_begins(data: bytes, found: tuple[bytes, bytes] | None):
    assert split(data) == found


def test_an_empty_head_is_one():
    found = split(b"\nbody")
    assert found is not None
    assert found[1] == b"body"
    with pytest.raises(MalformedError):
        head(found[0])


@pytest.mark.parametrize(
    ("data", "status", "implied", "headers"),
    [
        (b"Content-Type: a/b\n", None, 200, [("content-type", "a/b")]),
        (b"Status: 404 Not Found\nX: 1\n", 404, 200, [("x", "1")]),
        (b"Status: 204\n", 204, 200, []),
        (b"Location: https://h/\n", None, 302, [("location", "https://h/")]),
        (b"Location: /p?q\r\nStatus: 303\r\n", 303, 302, [("location", "/p?q")]),
        (b"Set-Cookie: a=1\nSet-Cookie: b=2\n", None, 200,
         [("set-cookie", "a=1"), ("set-cookie", "b=2")]),
        (b"X:\t a b \t\n", None, 200, [("x", "a b")]),
        (b"X:\n", None, 200, [("x", "")]),
        (b"X: \xc3\xa9\n", None, 200, [("x", "\xc3\xa9")]),
    ],
)  # fmt: skip
def test_what_a_script_can_say(
    data: bytes, status: int | None, implied: int, headers: list[tuple[str, str]]
):
    found = head(data)
    assert (found.status, found.implied, list(found.headers)) == (status, implied, headers)


@pytest.mark.parametrize(
    "name",
    ["Connection", "Keep-Alive", "Proxy-Connection", "TE", "Trailer", "Transfer-Encoding",
     "Upgrade", "Content-Length", "Strict-Transport-Security", "Clear-Site-Data", "X-Cmd-Run-Id",
     "x-cmd-anything", "Date", "Server", "Alt-Svc", "Service-Worker-Allowed",
     "X-Content-Type-Options"],
)  # fmt: skip
def test_what_is_not_the_scripts_to_set(name: str):
    assert head(f"{name}: 5\nX: 1\n".encode()).headers == (("x", "1"),)


@pytest.mark.parametrize(
    "data",
    [b"hello\n", b"HTTP/1.1 200 OK\nX: 1\n", b"X : 1\n", b": 1\n", b"X: 1\rY: 2\n", b"X: a\0b\n",
     b" X: 1\n", b"X: 1\n folded\n", b"X: \x1b[2J\n", b"\xc3\xa9: 1\n", b"Status: 99\n",
     b"Status: 100\n", b"Status: 600\n", b"Status: 2000\n", b"Status: OK\n", b"Status: 200OK\n",
     b"Status: \xb2\xb2\xb2\n", b"Status:\n", b"Status: 200\nStatus: 200\n",
     b"Content-Type: a/b\nContent-Type: a/b\n", b"Location: /\nlocation: /\n", b"\n", b"\r\n"],
)  # fmt: skip
def test_what_is_malformed(data: bytes):
    with pytest.raises(MalformedError):
        head(data)


@given(st.binary(max_size=200))
def test_nothing_comes_through_that_ends_a_line(data: bytes):
    try:
        found = head(b"X: 1\n" + data)
    except MalformedError:
        return
    for name, value in found.headers:
        assert name.isascii()
        assert not set(name + value) & set("\r\n\0")
