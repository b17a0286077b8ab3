"""Which token a request has."""

from __future__ import annotations

import base64

import pytest

from cmdsvc.web.credentials import Given, given
from cmdsvc.web.problems import RequestError


def basic(text: str) -> bytes:
    return b"Basic " + base64.b64encode(text.encode())


@pytest.mark.parametrize(
    ("value", "token", "scheme"),
    [
        (b"Bearer cmd_a", "cmd_a", "Bearer"),
        (b"bearer   cmd_a ", "cmd_a", "Bearer"),
        (b"BEARER cmd_a", "cmd_a", "Bearer"),
        (basic("cmd_a:"), "cmd_a", "Basic"),
        (basic("cmd_a"), "cmd_a", "Basic"),
        (basic("cmd_a:anything:at all"), "cmd_a", "Basic"),
        (basic(":cmd_a"), "", "Basic"),
        (b"Basic ???", "", "Basic"),
        (b"Basic", "", "Basic"),
        (b"Bearer", "", "Bearer"),
        (b"Digest username=x", "", "Bearer"),
        (b"cmd_a", "", "Bearer"),
        (b"", "", "Bearer"),
        (b"Bearer \xff", "\xff", "Bearer"),
    ],
)
def test_of_the_header(value: bytes, token: str, scheme: str):
    assert given([(b"authorization", value)], b"") == Given(token, scheme)


def test_of_the_query():
    assert given([], b"a=1&access_token=cmd_a") == Given("cmd_a", "Bearer")
    assert given([], b"access%5ftoken=cmd%5Fa") == Given("cmd_a", "Bearer")
    assert given([], b"access_token=") == Given("", "Bearer")


def test_nothing_is_nobody():
    assert given([(b"x-token", b"cmd_a")], b"token=cmd_a") is None


def test_the_same_one_twice_is_one():
    headers = [(b"authorization", basic("cmd_a:"))]
    assert given(headers, b"access_token=cmd_a") == Given("cmd_a", "Basic")


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ([b"Bearer cmd_a"], b"access_token=cmd_b"),
        ([b"Bearer cmd_a", b"Bearer cmd_b"], b""),
        ([b"Bearer cmd_a", basic("cmd_b:")], b""),
        ([], b"access_token=cmd_a&access_token=cmd_b"),
        ([b"Digest x"], b"access_token=cmd_a"),
    ],
)
def test_two_different_ones_are_refused(headers: list[bytes], query: bytes):
    with pytest.raises(RequestError) as caught:
        given([(b"authorization", value) for value in headers], query)
    assert caught.value.status == 400
    assert "cmd_" not in str(caught.value)
