"""What hostile requests get, and what they leave behind: nothing."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import struct
import time

import httpx
import pytest

from cmdsvc.web.connection import HEAD_TIME
from tests.e2e.http_lab import Web, problem, rest, status
from tests.e2e.raw_client import (
    AT_HAND,
    MARKS,
    Sleeper,
    descriptors,
    memory,
    peak_below,
    until,
)
from tests.e2e.service_lab import PATIENCE

pytestmark = pytest.mark.any_engine

MOST = 1 << 20


SETTINGS = {"CMDSVC_MAX_BODY": str(MOST)}


class TestNoHttp:
    """h11's own refusals."""

    @pytest.mark.parametrize(
        "data",
        [
            b"nonsense\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
            b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\na",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, x\r\n\r\n",
            b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        ],
    )
    def test_is_refused_and_the_connection_ended(self, web: Web, data: bytes):
        reply = web.raw(data)
        assert status(reply) in {400, 501}, reply
        head, _, body = reply.partition(b"\r\n\r\n")
        assert b"connection: close" in head.lower()
        assert body.count(b"\n") == 1
        assert b"bytearray" not in body

    def test_two_lengths_are_what_a_smuggler_sends(self, web: Web):
        inner = web.head("echo smuggled")
        head = web.head(
            "cat", f"Content-Length: {len(inner) + 5}", "Transfer-Encoding: chunked", method="POST"
        )
        reply = web.raw(head + b"0\r\n\r\n" + inner)
        assert status(reply) == 400
        assert reply.count(b"HTTP/1.1 ") == 1
        assert b"smuggled" not in reply

    def test_a_chunk_that_is_none_ends_the_run(self, web: Web):
        mark = next(MARKS)
        with web.socket() as sock:
            sock.sendall(
                web.head(f"cat; sleep {mark}", "Transfer-Encoding: chunked", method="POST")
                + b"2\r\nab\r\nXX\r\n"
            )
            assert status(rest(sock)) == 400

    def test_pipelined_requests_are_answered_in_their_order(self, web: Web):
        heads = [web.head(f"sleep 0.{3 - n}; echo {n}") for n in range(3)]
        last = web.head("echo 3", "Connection: close")
        reply = web.raw(b"".join([*heads, last]))
        assert reply.count(b"HTTP/1.1 200 ") == 4
        assert [reply.index(f"\r\n\r\n{n}\n".encode()) for n in range(4)] == sorted(
            reply.index(f"\r\n\r\n{n}\n".encode()) for n in range(4)
        )

    def test_a_thousand_pipelined_requests_take_no_memory(self, web: Web):
        with peak_below(web.service, 24), web.socket() as sock:
            sock.settimeout(2)
            head = web.head("sleep 2")
            with pytest.raises(TimeoutError):
                sock.sendall(head * 100_000)


class TestHead:
    def test_one_that_is_too_large(self, web: Web):
        for lines in ([f"X: {'a' * 70_000}"], [f"X{n}: a" for n in range(10_000)]):
            assert status(web.raw(web.head("echo", "Connection: close", *lines))) == 431
        head = web.head("a" * 70_000, "Connection: close")
        assert status(web.raw(head)) == 431

    def test_10_000_parameters(self, web: Web):
        query = "&".join(f"a{n}" for n in range(10_000))
        said = web.run('printf %s "$QUERY_STRING" | wc -c', query=query)
        assert said.text.strip() == str(len(query))

    @pytest.mark.parametrize("path", ["a%00b", "%00", "x?args=a%00"])
    def test_a_nul(self, web: Web, path: str):
        said = web.client.get(f"/run/alice/sh/{path}", headers={"accept": "application/json"})
        assert said.status_code == 400
        assert "NUL" in problem(said)["detail"]

    @pytest.mark.parametrize(
        "path", ["alice%00/sh", "alice/%FF", "alice%2Fsh/x", "%0A/sh", "a b/c"]
    )
    def test_names_that_are_none(self, web: Web, path: str):
        assert web.client.get(f"/run/{path}").status_code == 404

    def test_no_header_becomes_a_variable_that_programs_trust(self, web: Web):
        lines = ["Proxy: x", "proxy: x", "PROXY: x", "Proxy_: x", "Remote-User: x", "Path: /evil"]
        reply = web.raw(web.head("env", "Connection: close", *lines)).decode()
        assert "HTTP_PROXY" not in reply.upper().replace("HTTP_PROXY_CONNECTION", "")
        assert "REMOTE_USER=alice" in reply
        assert "\nPATH=/evil" not in reply


class TestBody:
    def test_too_large_by_what_it_says(self, web: Web):
        """Nothing of it is asked for, and nothing runs."""
        head = web.head("cat", f"Content-Length: {MOST + 1}", "Expect: 100-continue", method="POST")
        with web.socket() as sock:
            sock.sendall(head)
            reply = sock.recv(1 << 16)
        assert status(reply) == 413
        assert b"100 Continue" not in reply
        assert b"x-cmd-run-id" not in reply

    def test_it_is_asked_for_where_it_is_wanted(self, web: Web):
        head = web.head("cat", "Content-Length: 3", "Expect: 100-continue", method="POST")
        with web.socket() as sock:
            sock.sendall(head)
            assert sock.recv(1 << 16).startswith(b"HTTP/1.1 100 ")
            sock.sendall(b"abc")
            assert status(sock.recv(1 << 16)) == 200

    def test_too_large_as_it_comes(self, web: Web):
        pieces = (bytes(1 << 16) for _ in range(17))
        said = web.run("wc -c", method="POST", content=pieces)
        assert said.status_code == 413
        said = web.run("wc -c", method="POST", content=(bytes(1 << 16) for _ in range(16)))
        assert (said.status_code, said.text.strip()) == (200, str(MOST))

    @pytest.mark.parametrize("query", ["detach", "", "stream"])
    def test_too_large_in_each_way(self, web: Web, query: str, name: str):
        key = {"idempotency-key": name} if not query else {}
        pieces = (bytes(1 << 16) for _ in range(17))
        said = web.run("wc -c", method="POST", query=query, content=pieces, headers=key)
        assert said.status_code == 413

    def test_one_that_nobody_reads(self, web: Web):
        said = web.run("exec <&-; echo done", method="POST", content=bytes(MOST))
        assert (said.status_code, said.text) == (200, "done\n")
        assert web.run("echo again").text == "again\n"

    def test_who_is_refused_may_go_on_sending_for_a_while(self, web: Web):
        """And is cut off after as much as anybody may send."""
        with web.socket() as sock:
            sock.sendall(web.head("cat", f"Content-Length: {1 << 30}", method="POST"))
            assert status(sock.recv(1 << 16)) == 413
            with pytest.raises(ConnectionError):
                sock.sendall(bytes(1 << 28))


class TestClientsThatLeave:
    """The sandbox is gone within a second."""

    async def gone_soon(self, asleep: Sleeper) -> None:
        before = time.monotonic()
        await asleep.gone()
        assert time.monotonic() - before < 1.5

    async def leave(self, web: Web, data: bytes, mark: str, *, reset: bool = False) -> None:
        asleep = Sleeper(mark)
        with web.socket() as sock:
            sock.sendall(data)
            await asleep.there()
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self.gone_soon(asleep)

    async def test_in_mid_run(self, web: Web):
        mark = next(MARKS)
        await self.leave(web, web.head(f"sleep {mark}"), mark)

    async def test_by_a_reset(self, web: Web):
        mark = next(MARKS)
        await self.leave(web, web.head(f"sleep {mark}"), mark, reset=True)

    async def test_in_mid_body(self, web: Web):
        mark = next(MARKS)
        head = web.head(f"sleep {mark}", "Content-Length: 1000000", method="POST")
        await self.leave(web, head + b"some", mark)

    @pytest.mark.parametrize("reset", [True, False])
    async def test_with_a_body_that_nobody_reads(self, web: Web, reset: bool):
        """The server has stopped reading, and hears of it nevertheless."""
        mark = next(MARKS)
        head = web.head(f"sleep {mark}", f"Content-Length: {MOST}", method="POST")
        await self.leave(web, head + bytes(400_000), mark, reset=reset)

    async def test_with_another_request_behind(self, web: Web):
        mark = next(MARKS)
        await self.leave(web, web.head(f"sleep {mark}") + web.head("echo"), mark)

    async def test_in_mid_reply(self, web: Web):
        mark = next(MARKS)
        await self.leave(web, web.head(f"sleep {mark} & exec cat /dev/zero"), mark)

    async def test_from_a_stream_of_events(self, web: Web):
        mark = next(MARKS)
        head = web.head(f"echo; sleep {mark}", "Accept: text/event-stream", query="stream")
        await self.leave(web, head, mark)

    async def test_who_only_looks_on_leaves_without_it(self, web: Web):
        mark = next(MARKS)
        url = web.run(f"sleep {mark}", method="POST", query="detach").json()["url"]
        head = web.head("", "Accept: text/event-stream")
        with web.socket() as sock:
            sock.sendall(head.replace(web.url("").encode(), f"{url}?stream".encode()))
            assert status(sock.recv(1 << 16)) == 200
        await until(lambda: f"method=GET path={url} " in web.service.log)
        assert web.client.get(url).json()["state"] == "running"
        assert web.client.delete(url).status_code == 204


class TestSlowClients:
    @pytest.mark.slow
    async def test_a_head_that_comes_by_the_byte(self, web: Web):
        head = web.head("echo")
        begun = time.monotonic()
        reader, writer = await asyncio.open_connection(*web.service.url[7:].split(":"))
        try:
            reply = asyncio.create_task(reader.read())
            for byte in head[:-1]:
                if reply.done():
                    break
                writer.write(bytes([byte]))
                await asyncio.sleep(HEAD_TIME / 50)
            assert status(await asyncio.wait_for(reply, 10)) == 408
        finally:
            writer.close()
        assert time.monotonic() - begun < HEAD_TIME + 3

    @pytest.mark.slow
    def test_who_says_nothing(self, web: Web):
        begun = time.monotonic()
        with web.socket() as sock:
            assert rest(sock) == b""
        assert HEAD_TIME - 1 < time.monotonic() - begun < HEAD_TIME + 3

    async def test_one_that_never_reads_costs_no_memory(self, web: Web):
        with peak_below(web.service, 24), web.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.sendall(web.head("exec cat /dev/zero"))
            for _ in range(20):
                assert web.run("echo hi").text == "hi\n"

    async def test_one_that_reads_slowly_gets_all(self, web: Web):
        with web.socket() as sock:
            sock.sendall(web.head("head -c 5000000 /dev/zero", "Connection: close"))
            await asyncio.sleep(0.5)
            reply = await asyncio.to_thread(rest, sock)
        assert reply.endswith(b"\r\n0\r\n\r\n")
        assert len(reply) > 5_000_000


def test_nothing_is_left_of_hundreds_of_broken_requests(web: Web):
    def broken(n: int) -> None:
        with web.socket() as sock:
            match n % 5:
                case 0:
                    sock.sendall(b"GET")
                case 1:
                    sock.sendall(web.head("sleep 1000"))
                case 2:
                    sock.sendall(web.head("cat", "Content-Length: 99", method="POST"))
                case 3:
                    sock.sendall(web.head("exec yes"))
                case 4:
                    sock.sendall(web.head("x", query="detach").replace(b"Bearer", b"Basic"))

    for n in range(50):
        broken(n)
    web.run("echo")
    before = memory(web.service, "VmRSS"), descriptors(web.service)
    for n in range(300):
        broken(n)
    assert web.run("echo").status_code in {200, 429, 503}
    asyncio.run(until(lambda: descriptors(web.service) <= before[1] + AT_HAND))
    assert memory(web.service, "VmRSS") - before[0] < 20


def test_random_bytes(web: Web):
    for n in range(100):
        seed = hashlib.sha512(str(n).encode()).digest()
        with web.socket() as sock:
            sock.sendall(seed * 20 + b"\r\n\r\n")
            assert status(rest(sock)) in {0, 400, 501}
    assert web.run("echo fine").text == "fine\n"


@pytest.mark.parametrize("accept", ["text/event-stream", "*/*"])
async def test_a_run_that_is_stopped_from_elsewhere(web: Web, accept: str):
    """Who reads its output is told, or cut off."""
    async with httpx.AsyncClient(
        base_url=web.service.url, headers=web.bearer(), timeout=PATIENCE
    ) as client:
        url = web.url("echo begun; sleep 1000", query="stream")
        async with client.stream("GET", url, headers={"accept": accept}) as reply:
            run = reply.headers["x-cmd-run-id"]
            assert (await client.delete(f"/runs/{run}")).status_code == 204
            if accept == "*/*":
                with pytest.raises(httpx.RemoteProtocolError):
                    await reply.aread()
            else:
                await reply.aread()
                assert '"exit_status":137' in reply.text
