"""The run API, as its callers see it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.http_lab import Web, problem
from tests.e2e.service_lab import HELLO, PATIENCE, Service


@pytest.fixture(scope="module")
def web(web: Web) -> Web:
    web.create("any", 'methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]')
    web.create("open", "public = true", 'cors = ["https://a.example"]')
    web.create("cgi", 'response = "cgi"', "cors = true")
    web.create("json", 'content_type = "application/json"')
    return web


def test_on_each_engine(service: Service, name: str):
    """The same road whatever runs it."""
    web = Web(service)
    service.create(name, '#!cmd alpine\n#!/bin/sh\necho "$@"; cat; exit 3').ok()
    service.ssh(":access", name, "grant", web.token).ok()
    with web.client as client:
        said = client.post(f"/run/alice/{name}/a%2Fb?args=c+d", content=b"body")
    assert (said.status_code, said.content) == (500, b"a/b c d\nbody")
    assert said.headers["x-cmd-exit-status"] == "3"


class TestPlain:
    def test_status_0(self, web: Web):
        said = web.run("echo out; echo err >&2")
        assert (said.status_code, said.content) == (200, b"out\n")
        assert said.headers["x-cmd-exit-status"] == "0"
        assert said.headers["x-content-type-options"] == "nosniff"
        assert said.headers["content-type"] == "text/plain; charset=utf-8"
        assert said.headers["content-length"] == "4"
        listed = web.service.ssh(":runs", "-j").ok()
        assert said.headers["x-cmd-run-id"] in listed.text

    def test_another_status(self, web: Web):
        said = web.run("echo some; exit 42")
        assert (said.status_code, said.content) == (500, b"some\n")
        assert said.headers["x-cmd-exit-status"] == "42"

    def test_a_signal(self, web: Web):
        assert web.run("kill -9 $$").headers["x-cmd-exit-status"] == "137"

    def test_time(self, web: Web):
        web.create("slow", metadata=('timeout = "300ms"',))
        said = web.run("echo begun; sleep 60", "slow")
        assert (said.status_code, said.content) == (504, b"begun\n")
        assert said.headers["x-cmd-exit-status"] == "124"
        said = web.run("sleep 60", "slow", headers={"accept": "application/json"})
        assert "timed out" in problem(said)["detail"]

    def test_head_is_get_without_a_body(self, web: Web):
        said = web.run("echo $REQUEST_METHOD", method="HEAD")
        assert (said.status_code, said.content) == (200, b"")
        assert said.headers["content-length"] == "5"

    @pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
    def test_methods(self, web: Web, method: str):
        assert web.run("echo $REQUEST_METHOD", "any", method=method).text == f"{method}\n"

    def test_a_method_that_is_not_for_it(self, web: Web):
        said = web.run("echo", method="PUT")
        assert said.status_code == 405
        assert said.headers["allow"] == "GET, HEAD, POST"

    def test_its_type(self, web: Web):
        assert web.run("echo {}", "json").headers["content-type"] == "application/json"

    def test_bytes_in_and_out(self, web: Web):
        data = os.urandom(700_000)
        said = web.run("cat", method="POST", content=data)
        assert said.content == data
        assert "content-length" in said.headers

    def test_a_body_in_chunks_as_it_comes(self, web: Web):
        def pieces() -> Iterator[bytes]:
            yield b"one\n"
            yield b"two\n"

        said = web.run('cat; echo "${CONTENT_LENGTH-none}"', method="POST", content=pieces())
        assert said.text == "one\ntwo\nnone\n"

    def test_what_is_held_back_and_what_is_not(self, web: Web):
        said = web.run("head -c 1048576 /dev/zero; exit 1")
        assert said.status_code == 500
        assert len(said.content) == 1 << 20
        said = web.run("head -c 3000000 /dev/zero")
        assert said.status_code == 200
        assert len(said.content) == 3_000_000
        assert said.headers["transfer-encoding"] == "chunked"
        assert "x-cmd-run-id" in said.headers

    def test_a_large_reply_that_fails_is_cut_off(self, web: Web):
        with pytest.raises(httpx.RemoteProtocolError):
            web.run("head -c 3000000 /dev/zero; exit 1")

    def test_curl_sees_that_too(self, web: Web):
        url = web.service.url + web.url("head -c 3000000 /dev/zero; exit 1")
        for version in ("--http1.1", "--http1.0"):
            done = subprocess.run(
                ["curl", "-sS", version, "-u", f"{web.token}:", "-o", "/dev/null", url],
                capture_output=True,
                timeout=PATIENCE,
                check=False,
            )
            assert done.returncode in {18, 56}, done

    def test_arguments(self, web: Web):
        script = "shift; printf '[%s]' \"$@\""
        said = web.client.get(f"{web.url(script)}/a%2Fb/%0Ac//?args=d+%20e")
        assert said.text == "[a/b][\nc][][d][e]"

    def test_arguments_that_are_not_text(self, web: Web):
        script = 'shift; printf %s "$1" | od -An -tx1'
        said = web.client.get(f"{web.url(script)}/%FF%FE")
        assert said.text.split() == ["ff", "fe"]


class TestMetaVariables:
    def test_of_a_request(self, web: Web):
        said = web.client.post(
            f"{web.url('env')}/x%2Fy?q=%41&access_token={web.token}&b",
            headers={"x-more": "1", "proxy": "http://evil", "cookie": "c=1", "x_under": "1",
                     "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"},
            content=b"12345",
        )  # fmt: skip
        env = dict(line.split("=", 1) for line in said.text.splitlines())
        port = web.service.url.rpartition(":")[2]
        expected = {
            "AUTH_TYPE": "Bearer", "CONTENT_LENGTH": "5", "GATEWAY_INTERFACE": "CGI/1.1",
            "PATH_INFO": "/env/x/y", "QUERY_STRING": "q=%41&b", "REMOTE_ADDR": "127.0.0.1",
            "REMOTE_USER": "alice", "CMD_TOKEN": web.token[:12], "REQUEST_METHOD": "POST",
            "REQUEST_URI": "/run/alice/sh/env/x%2Fy?q=%41&b", "SCRIPT_NAME": "/run/alice/sh",
            "SERVER_NAME": "127.0.0.1", "SERVER_PORT": port, "SERVER_PROTOCOL": "HTTP/1.1",
            "REQUEST_SCHEME": "http", "HTTP_X_MORE": "1", "HTTP_COOKIE": "c=1",
            "TRACEPARENT": f"00-{'a' * 32}-{'b' * 16}-01", "CMD_NAME": "sh",
        }  # fmt: skip
        assert {key: env.get(key) for key in expected} == expected
        for absent in ("HTTPS", "HTTP_PROXY", "HTTP_AUTHORIZATION", "PATH_TRANSLATED",
                       "HTTP_X_UNDER", "CONTENT_TYPE"):  # fmt: skip
            assert absent not in env
        assert web.token not in said.text

    def test_no_credential_is_in_the_log(self, web: Web):
        web.client.get(f"/run/alice/sh/true?access_token={web.token}")
        assert web.token not in web.service.log


class TestWhoAsks:
    def test_by_each_way(self, web: Web):
        url = web.service.url + web.url("echo $AUTH_TYPE")
        assert httpx.get(url, auth=(web.token, "")).text == "Basic\n"
        assert httpx.get(f"{url}?access_token={web.token}").text == "Bearer\n"
        assert httpx.get(url, headers=web.bearer()).text == "Bearer\n"

    @pytest.mark.parametrize("path", ["sh", "no-such", "open/../sh", "UPPER"])
    def test_nobody_and_a_wrong_token_are_told_the_same_of_everything(self, web: Web, path: str):
        said = {}
        for headers in ({}, {"authorization": "Bearer cmd_00000000_" + "0" * 32}):
            reply = httpx.get(f"{web.service.url}/run/alice/{path}", headers=headers)
            assert reply.status_code == 401
            assert reply.headers.get_list("www-authenticate") == [
                'Bearer realm="cmdsvc"',
                'Basic realm="cmdsvc", charset="UTF-8"',
            ]
            said[str(headers)] = reply.text
        assert len(set(said.values())) == 2

    def test_a_token_that_does_not_reach_it(self, web: Web):
        other = web.bearer(web.new_token())
        there = httpx.get(f"{web.service.url}/run/alice/sh", headers=other)
        absent = httpx.get(f"{web.service.url}/run/alice/hs", headers=other)
        assert there.status_code == absent.status_code == 404
        assert there.text.replace("alice/sh", "alice/hs") == absent.text

    def test_public_means_nobody_too(self, web: Web):
        url = f"{web.service.url}/run/alice/open/echo%20%22$USER.$REMOTE_USER.$AUTH_TYPE%22"
        assert httpx.get(url).text == "..\n"
        assert httpx.get(url, headers=web.bearer()).text == "alice.alice.Bearer\n"
        assert httpx.get(url, headers=web.bearer("cmd_x")).status_code == 401
        other = web.bearer(web.new_token())  # which is granted nothing
        assert httpx.get(url, headers=other).text == "alice.alice.Bearer\n"

    def test_a_token_that_was_removed(self, web: Web):
        token = web.new_token()
        web.service.ssh(":access", "sh", "grant", token).ok()
        url = web.service.url + web.url("echo hi")
        assert httpx.get(url, headers=web.bearer(token)).status_code == 200
        web.service.ssh(":tokens", "rm", token[:12]).ok()
        assert httpx.get(url, headers=web.bearer(token)).status_code == 401

    def test_two_different_tokens(self, web: Web):
        assert web.run("echo", query="access_token=cmd_other").status_code == 400

    def test_ready_made_commands(self, web: Web):
        names = web.service.ssh(":ls", "-a").ok().text
        assert "cmd/" in names
        assert web.client.get("/run/cmd/no-such").status_code == 404


class TestCors:
    def preflight(self, web: Web, command: str, origin: str) -> httpx.Response:
        return httpx.options(
            f"{web.service.url}/run/alice/{command}",
            headers={"origin": origin, "access-control-request-method": "POST",
                     "access-control-request-headers": "authorization,content-type"},
        )  # fmt: skip

    def test_a_page_that_may(self, web: Web):
        said = self.preflight(web, "open", "https://a.example")
        assert said.status_code == 204
        assert said.headers["access-control-allow-origin"] == "https://a.example"
        assert "POST" in said.headers["access-control-allow-methods"]
        assert said.headers["access-control-allow-headers"] == "authorization,content-type"
        said = web.run("echo hi", "open", headers={"origin": "https://a.example"})
        assert said.headers["access-control-allow-origin"] == "https://a.example"
        assert "Origin" in said.headers["vary"]
        assert "X-Cmd-Run-Id" in said.headers["access-control-expose-headers"]

    def test_all_may(self, web: Web):
        assert self.preflight(web, "cgi", "null").headers["access-control-allow-origin"] == "*"

    def test_a_page_that_may_not(self, web: Web):
        refused = [
            self.preflight(web, "open", "https://b.example"),
            self.preflight(web, "sh", "https://a.example"),
            self.preflight(web, "no-such", "https://a.example"),
        ]
        assert [said.status_code for said in refused] == [401] * 3
        assert len({said.text for said in refused}) == 1
        said = web.run("echo hi", "open", headers={"origin": "https://b.example"})
        assert "access-control-allow-origin" not in said.headers
        assert said.headers["vary"] == "Origin"


class TestShaped:
    def test_headers_and_a_body(self, web: Web):
        said = web.run("printf 'Status: 418 Tea\\nContent-Type: a/b\\nX-A: 1\\nX-Cmd-B: 2\\n\\nhi'",
                       "cgi")  # fmt: skip
        assert (said.status_code, said.text) == (418, "hi")
        assert said.headers["content-type"] == "a/b"
        assert said.headers["x-a"] == "1"
        assert "x-cmd-b" not in said.headers

    def test_a_redirect(self, web: Web):
        said = web.run("printf 'Location: https://h.example/\\r\\n\\r\\n'", "cgi")
        assert (said.status_code, said.headers["location"]) == (302, "https://h.example/")

    @pytest.mark.parametrize(
        ("script", "code"),
        [
            ("echo hello", 502),
            ("true", 502),
            ("exit 1", 500),
            ("printf 'X: 1\\n\\nhi'; exit 1", 500),
            ("printf 'Location: /\\n\\n'; exit 1", 500),
            ("printf 'Status: 404\\n\\nhi'; exit 1", 404),
            ("head -c 200000 /dev/zero", 502),
            ("printf 'Status: 204\\n\\nhi'", 204),
            ("printf 'Status: 304\\n\\n'; head -c 2000000 /dev/zero", 304),
            ("printf 'A: 1\\n\\n'; head -c 2000000 /dev/zero", 200),
        ],
    )
    def test_what_becomes_of_it(self, web: Web, script: str, code: int):
        assert web.run(script, "cgi").status_code == code
        assert web.run("printf 'X: 1\\n\\nhi'", "cgi").text == "hi"  # on the same connection


class TestStream:
    def test_as_it_comes(self, web: Web):
        with web.client.stream(
            "GET", web.url("echo one; sleep 0.3; echo two", query="stream")
        ) as r:
            assert r.headers["transfer-encoding"] == "chunked"
            assert "x-cmd-run-id" in r.headers
            pieces = list(r.iter_raw())
        assert pieces == [b"one\n", b"two\n"]

    def test_one_that_fails_is_cut_off_and_one_that_wrote_nothing_is_told(self, web: Web):
        with pytest.raises(httpx.RemoteProtocolError):
            web.run("echo some; exit 1", query="stream")
        assert web.run("exit 1", query="stream").status_code == 500

    def test_events(self, web: Web):
        said = web.run(
            "echo one; sleep 0.05; echo two >&2; exit 5",
            query="stream",
            headers={"accept": "text/event-stream"},
        )
        assert said.headers["content-type"].startswith("text/event-stream")
        *output, (name, _, data) = web.events(said)
        assert [(n, d) for n, _, d in output] == [("stdout", "one\n"), ("stderr", "two\n")]
        assert name == "exit"
        assert data.startswith('{"exit_status":5,')

    def test_events_of_bytes(self, web: Web):
        said = web.run(
            "printf '\\377'", query="stream=base64", headers={"accept": "text/event-stream"}
        )
        assert web.events(said)[0][2] == "/w=="

    def test_who_comes_again_by_itself_does_not_run_it_again(self, web: Web):
        before = len(web.service.ssh(":runs", "-n", "1000").ok().lines)
        for last in ("4", "end"):
            headers = {"accept": "text/event-stream", "last-event-id": last}
            assert web.run("echo", query="stream", headers=headers).status_code == 204
        assert len(web.service.ssh(":runs", "-n", "1000").ok().lines) == before


class TestDetached:
    def begin(self, web: Web, script: str, **more: str) -> str:
        said = web.run(script, method="POST", query="detach", **more)
        assert said.status_code == 202
        document = said.json()
        assert said.headers["location"] == document["url"] == f"/runs/{document['id']}"
        assert document["state"] == "running"
        return str(document["url"])

    def test_from_its_begin_to_its_end(self, web: Web):
        url = self.begin(web, "cat; echo err >&2; exit 3", content="left\n")
        said = web.client.get(f"{url}?stream", headers={"accept": "text/event-stream"})
        events = web.events(said)
        assert ("stdout", "left\n") in [(name, data) for name, _, data in events]
        assert json.loads(events[-1][2])["exit_status"] == 3
        document = web.client.get(url).json()
        assert document["command"] == "alice/sh"
        assert (document["state"], document["exit_status"]) == ("failed", 3)
        assert document["started_at"] < document["ended_at"]
        assert web.client.get(f"{url}/output").text == "left\n"
        assert web.client.get(f"{url}/output?stderr").text == "err\n"

    def test_by_preference(self, web: Web):
        said = web.run("echo", method="POST", headers={"prefer": "wait=5, Respond-Async"})
        assert said.status_code == 202
        assert said.headers["preference-applied"] == "respond-async"

    def test_who_comes_again_gets_the_rest(self, web: Web):
        url = self.begin(web, "echo one; sleep 0.1; echo two; sleep 0.1; echo thr€e")
        accept = {"accept": "text/event-stream"}
        whole = web.events(web.client.get(f"{url}?stream", headers=accept))
        for n in range(len(whole)):
            last = {"last-event-id": whole[n][1]}
            said = web.client.get(f"{url}?stream", headers=accept | last)
            if n == len(whole) - 1:
                assert said.status_code == 204
                continue
            text = "".join(d for name, _, d in web.events(said) if name == "stdout")
            assert text == "".join(d for name, _, d in whole[n + 1 :] if name == "stdout")

    def test_its_bytes_as_they_come(self, web: Web):
        url = self.begin(web, "echo one; echo two")
        assert web.client.get(f"{url}?stream").text == "one\ntwo\n"
        url = self.begin(web, "echo one; exit 1")
        with pytest.raises(httpx.RemoteProtocolError):
            web.client.get(f"{url}?stream")

    def test_its_end(self, web: Web):
        url = self.begin(web, "echo begun; sleep 1000")
        assert web.client.delete(url).status_code == 204
        document = web.client.get(url).json()
        assert (document["exit_status"], document["reason"]) == (137, "killed")
        assert web.client.delete(url).status_code == 204

    def test_it_is_the_tokens_own(self, web: Web):
        url = self.begin(web, "sleep 1000")
        other = web.bearer(web.new_token())
        for method, path in (("GET", url), ("GET", f"{url}/output"), ("DELETE", url)):
            assert httpx.request(method, web.service.url + path).status_code == 401
            assert web.client.request(method, path, headers=other).status_code == 404
        assert web.client.get("/runs/0000000000000000").status_code == 404
        assert web.client.get("/runs/..%2F").status_code == 404
        assert web.client.put(url).headers["allow"] == "GET, HEAD, DELETE"
        assert web.client.delete(url).status_code == 204

    def test_nobody_has_none(self, web: Web):
        assert httpx.post(f"{web.service.url}/run/alice/open/true?detach").status_code == 401


class TestIdempotency:
    def test_the_same_request_is_answered_the_same(self, web: Web, name: str):
        more = {"headers": {"idempotency-key": name}, "content": b"x" * 600_000}
        first = web.run("wc -c; date +%N; exit 3", method="POST", **more)
        again = web.run("wc -c; date +%N; exit 3", method="POST", **more)
        assert first.status_code == again.status_code == 500
        assert first.content == again.content
        for header in ("x-cmd-run-id", "x-cmd-exit-status", "content-type"):
            assert first.headers[header] == again.headers[header]
        assert "idempotent-replayed" in again.headers

    @pytest.mark.parametrize("change", ["body", "query", "method", "path"])
    def test_another_request_is_refused(self, web: Web, name: str, change: str):
        key = {"headers": {"idempotency-key": name}}
        assert web.run("cat", "any", method="POST", content=b"1", **key).status_code == 200
        said = web.run(
            "cat " if change == "path" else "cat",
            "any",
            method="PUT" if change == "method" else "POST",
            query="x" if change == "query" else "",
            content=b"2" if change == "body" else b"1",
            **key,
        )
        assert said.status_code == 422

    def test_another_token_has_its_own_keys(self, web: Web, name: str):
        other = web.new_token()
        web.service.ssh(":access", "sh", "grant", other).ok()
        key = {"idempotency-key": name}
        first = web.run("date +%N", headers=key)
        second = web.run("date +%N", headers=key | web.bearer(other))
        assert first.headers["x-cmd-run-id"] != second.headers["x-cmd-run-id"]

    async def test_one_under_way_and_one_whose_client_leaves(self, web: Web, name: str):
        """What goes on under a key goes on without its client: who asks again is answered."""
        key = {"idempotency-key": name}
        url = web.url("sleep 1; echo done")
        async with httpx.AsyncClient(
            base_url=web.service.url, headers=web.bearer(), timeout=PATIENCE
        ) as client:
            with pytest.raises(httpx.ReadTimeout):
                await client.get(url, headers=key, timeout=0.5)
            said = await client.get(url, headers=key)
            assert said.status_code == 409
            while said.status_code == 409:
                await asyncio.sleep(0.1)
                said = await client.get(url, headers=key)
            assert (said.status_code, said.text) == (200, "done\n")

    def test_what_was_not_run_is_not_answered_for(self, web: Web, name: str):
        key = {"idempotency-key": name}
        assert web.run("echo", "no-such", headers=key).status_code == 404
        assert web.run("echo", headers=key).status_code == 200

    def test_an_answer_that_is_too_large_is_not_kept(self, web: Web, name: str):
        key = {"idempotency-key": name}
        first = web.run("head -c 2000000 /dev/zero", headers=key)
        assert len(first.content) == 2_000_000
        again = web.run("head -c 2000000 /dev/zero", headers=key)
        assert again.status_code == 409
        assert first.headers["x-cmd-run-id"] in again.text

    def test_over_a_detached_one(self, web: Web, name: str):
        key = {"idempotency-key": name}
        first = web.run("echo", method="POST", query="detach", headers=key)
        again = web.run("echo", method="POST", query="detach", headers=key)
        assert first.json() == again.json()
        assert first.headers["location"] == again.headers["location"]

    @pytest.mark.parametrize("key", ["", "x" * 256])
    def test_what_is_no_key(self, web: Web, key: str):
        assert web.run("echo", headers={"idempotency-key": key}).status_code == 400


class TestAbout:
    def test_health(self, web: Web):
        assert httpx.get(f"{web.service.url}/healthz").text == "ok\n"
        assert httpx.get(f"{web.service.url}/readyz").text == "ready\n"
        assert httpx.post(f"{web.service.url}/readyz").status_code == 405

    def test_nothing_else(self, web: Web):
        for path in ("/", "/favicon.ico", "/run", "/hook/a/b/c/d", "/run%2Falice/sh/echo"):
            said = web.client.get(path, headers={"accept": "application/json"})
            assert said.status_code == 404
            problem(said)

    def test_a_whole_url_in_the_request(self, web: Web):
        head = web.head("echo hi", "Connection: close")
        reply = web.raw(head.replace(b"GET /", b"GET " + web.service.url.encode() + b"/", 1))
        assert reply.startswith(b"HTTP/1.1 200 ")


async def test_many_at_once(web: Web):
    async with httpx.AsyncClient(
        base_url=web.service.url, headers=web.bearer(), timeout=PATIENCE
    ) as client:
        data = os.urandom(200_000)
        digest = hashlib.sha256(data).hexdigest()
        said = await asyncio.gather(
            *(client.post(web.url("sha256sum"), content=data) for _ in range(20))
        )
    assert {reply.text.split()[0] for reply in said} == {digest}


def test_hello(web: Web):
    web.service.create("hello", HELLO).ok()
    web.service.ssh(":access", "hello", "grant", web.token).ok()
    assert web.client.get("/run/alice/hello").text == "hello\n"
