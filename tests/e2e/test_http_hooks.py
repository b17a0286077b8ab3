"""Webhooks, from the request to the run."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.e2e.http_lab import Web, problem, status
from tests.e2e.raw_client import peak_below, until

pytestmark = pytest.mark.any_engine

MOST = 1 << 20
SECRET = "not much of one"
SHOW = (
    "#!cmd alpine\n#!/bin/sh\n"
    'echo "$HOOK_NAME $HOOK_EVENT $REQUEST_METHOD $SCRIPT_NAME [$PATH_INFO] $QUERY_STRING"\n'
    'env | grep -c "not much" && echo leaked\ncmp /dev/stdin /cmd/body && wc -c </cmd/body\n'
)


SETTINGS = {"CMDSVC_MAX_BODY": str(MOST), "CMDSVC_MAX_WAITING": "3", "CMDSVC_DRAIN": "1s"}


@pytest.fixture(scope="module")
def web(web: Web) -> Web:
    web.service.create("show", SHOW).ok()
    for name, scheme in (("push", "github"), ("plain", "token"), ("basic", "basic")):
        secret = (f"user:{SECRET}" if scheme == "basic" else SECRET).encode()
        words = ("new", name, "--scheme", scheme, "--secret", "-")
        web.service.ssh(":hooks", "show", *words, stdin=secret).ok()
    return web


def signed(body: bytes, secret: str = SECRET, **more: str) -> dict[str, str]:
    digest = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return {"x-hub-signature-256": f"sha256={digest}", "x-github-event": "push", **more}


def post(web: Web, hook: str, body: bytes, headers: dict[str, str]) -> httpx.Response:
    return httpx.post(f"{web.service.url}/hook/alice/{hook}", content=body, headers=headers)


def soon(true: Callable[[], bool]) -> None:
    asyncio.run(until(true))


def delivery(web: Web, id_: str) -> dict[str, str]:
    listed = json.loads(web.service.ssh(":hooks", "show", "log", "-j").ok().text)
    [found] = [one for one in listed if id_ in one.values()]
    return dict(found)


def deliveries(web: Web) -> list[str]:
    """Their ids."""
    listed = web.service.ssh(":hooks", "show", "log", "-n", "1000").ok().lines
    return [line.split("\t")[0] for line in listed]


def test_one_that_is_signed_is_run(web: Web):
    body = json.dumps({"ref": "refs/heads/main"}).encode()
    said = post(web, "show/push?a=1", body, signed(body))
    assert said.status_code == 202
    id_ = said.json()["id"]
    soon(lambda: delivery(web, id_)["state"] == "done")
    output = web.service.ssh(":logs", delivery(web, id_)["run"]).ok().text.splitlines()
    assert output == ["push push POST /hook/alice/show/push [] a=1", "0", str(len(body))]
    again = post(web, "show/push?a=1", body, signed(body))
    assert (again.status_code, again.json()) == (202, {"id": id_})


@pytest.mark.parametrize(
    ("hook", "headers", "code"),
    [
        ("show/push", {}, 403),
        ("show/push", signed(b"other"), 403),
        ("show/push", signed(b"body", "wrong"), 403),
        ("show/plain", {"authorization": "Bearer wrong"}, 401),
        ("show/basic", {}, 401),
        ("show/none", signed(b"body"), 404),
        ("none/push", signed(b"body"), 404),
        ("show/push/more", signed(b"body"), 404),
        ("show", signed(b"body"), 404),
        ("show/%00", signed(b"body"), 404),
        ("show/%FF", signed(b"body"), 404),
        ("UPPER/push", signed(b"body"), 404),
    ],
)
def test_what_is_refused(web: Web, hook: str, headers: dict[str, str], code: int):
    said = post(web, hook, b"body", headers | {"accept": "application/json"})
    assert said.status_code == code
    problem(said)
    assert ("www-authenticate" in said.headers) == (code == 401)


def test_two_signatures(web: Web):
    head = (
        "POST /hook/alice/show/push HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"
        + "".join(f"X-Hub-Signature-256: {signed(b'')['x-hub-signature-256']}\r\n" for _ in "12")
        + "Content-Length: 0\r\n\r\n"
    )
    assert status(web.raw(head.encode())) == 403


def test_a_body_in_chunks(web: Web):
    body = b"chunked" * 1000

    def pieces() -> Iterator[bytes]:
        yield body[:10]
        yield body[10:]

    said = httpx.post(
        f"{web.service.url}/hook/alice/show/push", content=pieces(), headers=signed(body)
    )
    assert said.status_code == 202


def test_another_method(web: Web):
    said = httpx.get(f"{web.service.url}/hook/alice/show/push")
    assert (said.status_code, said.headers["allow"]) == (405, "POST")


def test_a_body_that_is_too_large_is_not_stored(web: Web):
    before = deliveries(web)
    body = bytes(MOST + 1)
    assert post(web, "show/push", body, signed(body)).status_code == 413
    said = httpx.post(
        f"{web.service.url}/hook/alice/show/push",
        content=(body[start : start + 65536] for start in range(0, len(body), 65536)),
        headers=signed(body),
    )
    assert said.status_code == 413
    assert deliveries(web) == before


def test_ping_is_answered(web: Web):
    said = post(web, "show/push", b"{}", signed(b"{}", **{"x-github-event": "ping"}))
    assert said.status_code == 200


def test_when_too_many_wait(web: Web):
    web.service.create("busy", "#!cmd alpine\n#!/bin/sh\nsleep 1000\n").ok()
    words = (":hooks", "busy", "new", "in", "--scheme", "token", "--secret", "-")
    web.service.ssh(*words, stdin=SECRET.encode()).ok()
    headers = {"authorization": f"Bearer {SECRET}"}
    codes = [post(web, "busy/in", str(n).encode(), headers) for n in range(20)]
    assert codes[0].status_code == 202
    assert codes[-1].status_code == 503
    assert int(codes[-1].headers["retry-after"]) > 0
    web.service.ssh(":delete", "busy").ok()


def test_bodies_that_come_at_once_are_bounded(web: Web):
    """What is being received has a limit for all, and half of it for an address."""
    half = [bytes(MOST // 2) for _ in range(12)]
    with peak_below(web.service, 16):
        held = [web.socket() for _ in half]
        socks = [sock.__enter__() for sock in held]
        head = b"POST /hook/alice/show/push HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n"
        for sock, data in zip(socks, half, strict=True):
            sock.sendall(head + data)
        refused = []
        for sock in socks:
            sock.settimeout(0.3)
            try:
                refused.append(status(sock.recv(1000)))
            except TimeoutError:
                continue
        for one in held:
            one.__exit__(None, None, None)
    assert set(refused) == {503}
    assert 7 <= len(refused) <= 10
    body = b"{}"
    soon(lambda: post(web, "show/push", body, signed(body)).status_code == 202)
