"""A command at the other end of a WebSocket."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.e2e.http_lab import Web
from tests.e2e.raw_client import MARKS, Sleeper, until
from tests.e2e.service_lab import PATIENCE, Service
from tests.e2e.ws_lab import Talk, opened, talking

SETTINGS = {"CMDSVC_QUEUE_WAIT": "0"}


@pytest.fixture(scope="module")
def web(web: Web) -> Web:
    web.create("open", "public = true")
    web.create("pages", 'cors = ["https://a.example"]')
    web.create("post", 'methods = ["POST"]')
    web.create("slow", metadata=('timeout = "300ms"',))
    return web


async def messages(ws: ClientConnection) -> AsyncIterator[str | bytes]:
    """To its end, whatever that is."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            yield await ws.recv()


async def refused(web: Web, status: int, script: str = "echo", **more: Any) -> InvalidStatus:
    with pytest.raises(InvalidStatus) as caught:
        async with opened(web, script, **more):
            pass
    assert caught.value.response.status_code == status
    return caught.value


async def test_on_each_engine(service: Service, name: str):
    web = Web(service)
    web.create(name)
    script = "cat; echo err >&2; stty size; exit 3"
    async with opened(web, script, name, subprotocols=["cmdsvc.v1"]) as ws:
        talk = Talk(ws)
        await ws.send(b"body\n")
        await talk.eof()
        assert await talk.end() == 1000
    assert talk.exit == {"type": "exit", "exit_status": 3}
    assert talk.out == b"body\n"
    assert talk.err.startswith(b"err\n")
    async with opened(web, "stty size; cat", name, "tty&cols=100&rows=30") as ws:
        assert await ws.recv() == "30 100\r\n"
        await ws.send("\x04")
        async for _ in messages(ws):
            pass
        assert ws.close_code == 1000
    web.client.close()


class TestV1:
    async def test_stdin_and_both_outputs(self, web: Web):
        async with talking(web, "read a; echo got $a; echo bad >&2; cat; exit 0") as talk:
            await talk.ws.send(b"one\ntwo")
            await talk.until(b"got one\n")
            await talk.ws.send(b" and three")
            await talk.eof()
            assert await talk.end() == 1000
        assert (talk.out, talk.err) == (b"got one\ntwo and three", b"bad\n")
        assert talk.exit == {"type": "exit", "exit_status": 0}

    async def test_the_text_of_its_end_is_as_it_is_told(self, web: Web):
        async with talking(web, "true") as talk:
            assert await talk.ws.recv() == '{"type":"exit","exit_status":0}'

    async def test_bytes_stay_as_they_are(self, web: Web):
        data = os.urandom(3_000_000)
        async with talking(web, "cat") as talk:
            read = asyncio.create_task(talk.end())
            for at in range(0, len(data), 200_000):
                await talk.ws.send(data[at : at + 200_000])
            await talk.eof()
            assert await read == 1000
        assert talk.out == data

    async def test_messages_in_fragments(self, web: Web):
        async with talking(web, "cat") as talk:
            await talk.ws.send([b"a", b"", b"bc"])
            await talk.ws.send(['{"type"', ':"eof"}'])
            await talk.end()
        assert talk.out == b"abc"

    async def test_a_signal(self, web: Web):
        script = "trap 'echo caught; exit 7' USR1; echo ready; while :; do sleep 0.05; done"
        async with talking(web, script) as talk:
            await talk.until(b"ready")
            await talk.say(type="signal", signal="USR1")
            await talk.end()
        assert talk.out.endswith(b"caught\n")
        assert talk.exit == {"type": "exit", "exit_status": 7}

    async def test_a_signal_passes_stdin_that_nobody_reads(self, web: Web):
        async with talking(web, "echo ready; exec sleep 1000") as talk:
            await talk.until(b"ready")
            for _ in range(20):
                await talk.ws.send(bytes(400_000))
            await talk.say(type="signal", signal="TERM")
            await talk.end()
        assert talk.exit is not None
        assert talk.exit["exit_status"] == 143

    async def test_time(self, web: Web):
        async with opened(web, "sleep 60", "slow", subprotocols=["cmdsvc.v1"]) as ws:
            talk = Talk(ws)
            assert await talk.end() == 1000
        assert talk.exit is not None
        assert talk.exit["exit_status"] == 124
        assert "timed out" in talk.exit["message"]

    async def test_killed_from_elsewhere(self, web: Web):
        async with talking(web, "echo begun; sleep 1000") as talk:
            await talk.until(b"begun")
            response = talk.ws.response
            assert response is not None
            run = response.headers["x-cmd-run-id"]
            assert (await asyncio.to_thread(web.client.delete, f"/runs/{run}")).status_code == 204
            assert await talk.end() == 1000
        assert talk.exit == {"type": "exit", "exit_status": 137, "message": "killed by alice"}

    async def test_a_run_is_recorded_with_its_door(self, web: Web):
        async with talking(web, "true") as talk:
            await talk.end()
        [line] = web.service.ssh(":runs", "-n", "1").ok().lines
        assert line.split("\t")[4] == "websocket"


class TestTerminal:
    async def test_size_resize_and_interrupt(self, web: Web):
        script = "trap 'stty size' WINCH; stty size; while :; do sleep 0.05; done"
        async with talking(web, script, "tty&cols=100&rows=30") as talk:
            await talk.until(b"30 100\r\n")
            await talk.say(type="resize", cols=132, rows=50)
            await talk.until(b"50 132\r\n")
            await talk.ws.send(b"\x03")
            await talk.end()
        assert talk.exit is not None
        assert talk.exit["exit_status"] == 130
        assert talk.err == b""

    async def test_as_it_is_without_a_size(self, web: Web):
        async with talking(web, "stty size; echo $TERM; test -t 0 && echo yes", "tty") as talk:
            await talk.end()
        assert talk.out == b"24 80\r\nxterm-256color\r\nyes\r\n"

    async def test_an_echo_and_an_end(self, web: Web):
        async with talking(web, "cat", "tty") as talk:
            await talk.ws.send(b"typed\r")
            await talk.until(b"typed\r\ntyped\r\n")
            await talk.ws.send(b"\x04")
            await talk.end()
        assert talk.exit == {"type": "exit", "exit_status": 0}

    @pytest.mark.parametrize("query", ["tty&cols=0", "tty&rows=70000", "tty&cols=x", "tty&rows=-1"])
    async def test_a_size_that_is_none(self, web: Web, query: str):
        await refused(web, 400, query=query)


class TestRaw:
    async def test_text_out_and_frames_in(self, web: Web):
        async with opened(web, "read a; read b; echo $a $b; echo unseen >&2") as ws:
            await ws.send("one\n")
            await ws.send(b"two\n")
            assert await ws.recv() == "one two\n"
            with pytest.raises(ConnectionClosed):
                await ws.recv()
        assert (ws.close_code, ws.subprotocol) == (1000, None)

    async def test_json_is_stdin_too(self, web: Web):
        async with opened(web, "head -n 1") as ws:
            await ws.send('{"type":"eof"}\n')
            assert await ws.recv() == '{"type":"eof"}\n'

    async def test_a_failure_is_in_the_code(self, web: Web):
        async with opened(web, "echo some; exit 3") as ws:
            assert [message async for message in messages(ws)] == ["some\n"]
            assert ws.close_code == 4003
        async with opened(web, "sleep 60", "slow") as ws:
            assert [message async for message in messages(ws)] == []
            assert ws.close_code == 4124
            assert "timed out" in (ws.close_reason or "")

    async def test_characters_are_not_torn(self, web: Web):
        script = r"printf 'a\303'; sleep 0.2; printf '\274\377b\342\202'"
        async with opened(web, script) as ws:
            assert "".join([str(m) async for m in messages(ws)]) == "aü�b�"


class TestWhoMay:
    async def test_a_token_in_each_place(self, web: Web):
        for token in ("access_token={}", "x=1&access%5Ftoken={}&y=2"):
            query = token.format(web.token)
            async with opened(
                web, 'echo "$QUERY_STRING"', query=query, additional_headers={}
            ) as ws:
                assert str(await ws.recv()).rstrip() in {"", "x=1&y=2"}
        basic = "Basic " + base64.b64encode(f"{web.token}:".encode()).decode()
        async with opened(web, "env", additional_headers={"Authorization": basic}) as ws:
            said = "".join([str(message) async for message in messages(ws)])
        assert "AUTH_TYPE=Basic\n" in said
        assert web.token not in said

    async def test_nobody(self, web: Web):
        for command in ("sh", "nothing"):
            error = await refused(web, 401, command=command, additional_headers={})
            assert "WWW-Authenticate" in error.response.headers
        async with opened(web, "echo hi", "open", additional_headers={}) as ws:
            assert await ws.recv() == "hi\n"

    async def test_not_there_or_not_for_him(self, web: Web):
        other = web.new_token()
        error = await refused(web, 404, additional_headers=web.bearer(other))
        assert "no command alice/sh" in error.response.body.decode()
        await refused(web, 404, command="nothing")

    async def test_methods_hold(self, web: Web):
        error = await refused(web, 405, command="post")
        assert error.response.headers["allow"] == "POST"

    async def test_pages_of_others(self, web: Web):
        """A browser would send what it knows of the user's credentials for them."""
        for origin in ("https://evil.example", "null", "http://127.0.0.1", "http://localhost"):
            await refused(web, 403, command="pages", origin=origin)
        for origin in ("https://a.example", web.service.url, web.service.url.upper()):
            async with opened(web, "echo hi", "pages", origin=origin) as ws:
                assert await ws.recv() == "hi\n"
        await refused(web, 403, command="sh", origin="https://a.example")
        await refused(web, 401, origin="https://evil.example", additional_headers={})

    async def test_the_variables_of_a_request(self, web: Web):
        script = 'echo "$REQUEST_METHOD $REQUEST_SCHEME $REMOTE_USER $PATH_INFO $2 $HTTP_UPGRADE"'
        async with opened(web, script, query="args=b") as ws:
            said = str(await ws.recv()).split()
        assert said[:3] == ["GET", "http", "alice"]
        assert said[-2:] == ["b", "websocket"]


class TestHowItBegins:
    async def test_a_subprotocol_that_is_none_of_ours(self, web: Web):
        await refused(web, 400, subprotocols=["chat"])
        async with opened(web, "true", subprotocols=["chat", "cmdsvc.v1"]) as ws:
            assert ws.subprotocol == "cmdsvc.v1"

    async def test_too_many_runs(self, web: Web):
        """Browsers are not told the status of a refusal: it is said in the WebSocket."""
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(100):
                talk = await stack.enter_async_context(talking(web, "echo; sleep 1000"))
                await talk.next()
                if talk.exit is not None:
                    break
            assert talk.exit is not None
            assert talk.exit["exit_status"] == 75
            assert talk.exit["message"]
            assert await talk.end() == 1013
        await until(lambda: "\trunning" not in web.service.ssh(":runs").ok().text)


class TestEnds:
    async def test_who_closes_ends_the_run(self, web: Web):
        mark = next(MARKS)
        async with talking(web, f"sleep {mark}") as talk:
            asleep = Sleeper(mark)
            await asleep.there()
            begun = time.monotonic()
            await talk.ws.close()
            assert time.monotonic() - begun < 5
            await asleep.gone()
        assert talk.ws.close_code == 1000

    async def test_who_reads_late_gets_all(self, web: Web):
        size = 30_000_000
        async with talking(web, f"head -c {size} /dev/zero", max_queue=1) as talk:
            await asyncio.sleep(1)
            assert await talk.end() == 1000
        assert hashlib.sha256(talk.out).digest() == hashlib.sha256(bytes(size)).digest()

    async def test_many_at_once(self, web: Web):
        async def one(n: int) -> None:
            async with talking(web, "cat") as talk:
                await talk.ws.send(str(n).encode())
                await talk.eof()
                await talk.end()
            assert talk.out.decode() == str(n)

        for _ in range(5):
            await asyncio.gather(*map(one, range(4)))


async def test_drain(own_service: Service, engine_name: str):
    """What goes on ends; what does not is told so."""
    if engine_name != "bubblewrap":
        pytest.skip("of the door, whatever the engine: tried on bubblewrap")
    service = own_service
    service.settings = {**service.settings, "CMDSVC_DRAIN": "2s"}
    service.start()
    web = Web(service)
    web.create("sh")
    async with (
        talking(web, "echo begun; sleep 1; echo done") as short,
        talking(web, "echo begun; sleep 1000") as long,
    ):
        await short.until(b"begun")
        await long.until(b"begun")
        ended = asyncio.create_task(asyncio.to_thread(service.stop))
        await until(lambda: "draining" in service.log)
        assert await short.end() == 1000
        assert short.out == b"begun\ndone\n"
        assert await long.end() == 1012
        assert long.exit is not None
        assert long.exit["exit_status"] == 70
        async with asyncio.timeout(PATIENCE):
            assert await ended == 0
    web.client.close()
    assert "Traceback" not in service.log
