"""How a request is refused."""

from __future__ import annotations

import json

import pytest

from cmdsvc.errors import (
    BusyError,
    CmdError,
    DataError,
    EngineError,
    ForbiddenError,
    NotFoundError,
    TooManyError,
    UsageError,
)
from cmdsvc.service.signatures import ChallengedError
from cmdsvc.web.problems import (
    accepts_json,
    body_of,
    headers_of,
    not_allowed,
    status_of,
    too_large,
    unauthorized,
)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UsageError("x"), 400),
        (unauthorized(), 401),
        (ForbiddenError("x"), 403),
        (NotFoundError("x"), 404),
        (not_allowed("PUT", ["GET"]), 405),
        (too_large(5), 413),
        (DataError("x"), 422),
        (TooManyError("x"), 429),
        (EngineError("x"), 502),
        (BusyError("x"), 503),
    ],
)
def test_each_as_text_and_as_a_document(error: CmdError, status: int):
    assert status_of(error) == status
    media, body = body_of(error, json_=False)
    assert media == "text/plain; charset=utf-8"
    assert body == f"{error}\n".encode()
    assert body.count(b"\n") == 1
    media, body = body_of(error, json_=True)
    assert media == "application/problem+json"
    document = json.loads(body)
    assert document["status"] == status
    assert document["detail"] == str(error)
    assert document["type"] == "about:blank"
    assert document["title"]


def test_what_is_said_beside_it():
    assert [name for name, _ in headers_of(unauthorized())] == ["www-authenticate"] * 2
    assert headers_of(not_allowed("PUT", ["GET", "HEAD"])) == [("allow", "GET, HEAD")]
    assert headers_of(ChallengedError("x", "Basic")) == [("www-authenticate", "Basic")]
    for busy in (BusyError("x"), TooManyError("x")):
        assert [name for name, _ in headers_of(busy)] == ["retry-after"]
    assert headers_of(NotFoundError("x")) == []


def test_a_method_is_repeated_as_one_line():
    said = str(not_allowed("X" * 100, ["GET"]))
    assert len(said) < 100


@pytest.mark.parametrize(
    ("accept", "json_"),
    [
        ("application/json", True),
        ("application/problem+json", True),
        ("text/html, application/json;q=0.9", True),
        ("APPLICATION/JSON", True),
        ("application/*", True),
        ("*/*", False),
        ("text/plain", False),
        ("text/html,application/xhtml+xml,*/*;q=0.8", False),
        ("application/json;q=0", False),
        ("", False),
    ],
)
def test_who_is_told_in_json(accept: str, json_: bool):
    assert accepts_json([(b"accept", accept.encode())]) is json_
    assert not accepts_json([])
