"""The client against engines that misbehave, and the words for where they are."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from cmdsvc.engine.docker.hosts import check_host, find_host, ssh_command
from cmdsvc.engine.docker.http import Api, ApiError
from cmdsvc.errors import EngineError

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def engine(place: Path, answer: Answer) -> AsyncIterator[Api]:
    """A socket behind which `answer` is given to every connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_unix_server(serve, place / "engine.sock")
    api = Api(f"unix://{place}/engine.sock")
    try:
        yield api
    finally:
        await api.aclose()
        server.close()
        await asyncio.sleep(0)


def answering(*answers: bytes) -> Answer:
    """One answer a request, on kept connections."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for data in answers:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(data)
            await writer.drain()
        await reader.read()

    return answer


def reply(status: int, body: object, *headers: str) -> bytes:
    data = json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(data)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + data


async def test_a_connection_is_kept(tmp_path: Path) -> None:
    async with engine(tmp_path, answering(reply(200, {"a": 1}), reply(200, [2]))) as api:
        assert await api.call("GET", "/x") == {"a": 1}
        assert await api.call("GET", "/y", query={"q": "a b"}) == [2]


async def test_a_connection_that_was_closed_meanwhile_is_not_used(tmp_path: Path) -> None:
    closed = asyncio.Event()

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply(200, 1))
        await writer.drain()
        closed.set()

    async with engine(tmp_path, once) as api:
        for _ in range(3):
            assert await api.call("GET", "/x") == 1
            await closed.wait()
            closed.clear()
            for _ in range(5):  # the loop's turns until the connection's end was read
                await asyncio.sleep(0)


async def test_a_refusal_has_the_engines_words(tmp_path: Path) -> None:
    async with engine(tmp_path, answering(reply(409, {"message": "it\nis  so"}))) as api:
        with pytest.raises(ApiError, match="it is so") as caught:
            await api.call("GET", "/x")
        assert caught.value.status == 409
        assert caught.value.exit_status == 125


async def test_an_answer_of_several_values_is_a_list(tmp_path: Path) -> None:
    body = b'{"a":1}\r\n{"b":2}\r\n'
    chunked = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n12\r\n" + body + b"\r\n0\r\n\r\n"
    )
    async with engine(tmp_path, answering(chunked)) as api:
        assert await api.call("GET", "/x") == [{"a": 1}, {"b": 2}]


async def test_an_engine_that_hangs(tmp_path: Path) -> None:
    async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with engine(tmp_path, nothing) as api:
        before = time.monotonic()
        with pytest.raises(EngineError, match=r"did not answer within 0\.2 s"):
            await api.call("GET", "/x", timeout=0.2)
        with pytest.raises(EngineError, match="did not answer"):
            await api.upgrade("/x", timeout=0.2)
        assert time.monotonic() - before < 5


async def test_a_cancelled_request_is_cancelled(tmp_path: Path) -> None:
    asked = asyncio.Event()

    async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await reader.read()

    async with engine(tmp_path, nothing) as api:
        asking = asyncio.create_task(api.call("GET", "/x"))
        await asked.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"\0" * 100_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["nothing", "half a head", "half a body", "another service", "zeros", "a bad chunk"],
)
async def test_what_is_no_answer_is_an_engine_error(tmp_path: Path, answer: bytes) -> None:
    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
        await reader.read()

    async with engine(tmp_path, send) as api:
        with pytest.raises(EngineError, match="cannot be reached"):
            await api.call("GET", "/x")
        with pytest.raises(EngineError):
            await api.upgrade("/x")


async def test_an_upgraded_connection_is_a_stream(tmp_path: Path) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"upgrade: tcp" in head.lower()
        writer.write(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nahead ")
        writer.write(await reader.read())
        writer.write_eof()

    async with engine(tmp_path, echo) as api:
        stream = await api.upgrade("/x")
        await stream.write(b"back")
        stream.write_eof()
        got = b""
        while data := await stream.read(3):
            got += data
        stream.close()
        assert got == b"ahead back"


@pytest.mark.parametrize(
    ("newest", "oldest", "spoken"),
    [("1.41", "1.12", "1.41"), ("1.52", "1.44", "1.44"), ("1.9999", "1.24", "1.41")],
)
async def test_the_version_that_is_spoken(
    tmp_path: Path, newest: str, oldest: str, spoken: str
) -> None:
    told = {"Version": "x", "ApiVersion": newest, "MinAPIVersion": oldest}
    async with engine(tmp_path, answering(reply(200, told))) as api:
        await api.negotiate()
        assert api.version == spoken


async def test_an_engine_that_is_too_old(tmp_path: Path) -> None:
    told = {"Version": "19.03", "ApiVersion": "1.40", "MinAPIVersion": "1.12"}
    async with engine(tmp_path, answering(reply(200, told))) as api:
        with pytest.raises(EngineError, match="too old"):
            await api.negotiate()


async def test_nobody_is_there(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="nothing is there; start it, or set DOCKER_HOST"):
        await Api(f"unix://{tmp_path}/none.sock").call("GET", "/x")
    with pytest.raises(EngineError, match="cannot be reached"):
        await Api("tcp://127.0.0.1:1").call("GET", "/x")


@pytest.mark.parametrize("host", ["", "npipe:////./pipe/x", "unix://", "docker.sock", "fd://3"])
def test_a_host_that_is_not_understood(host: str) -> None:
    with pytest.raises(EngineError, match="not understood"):
        check_host(host)


def test_tls_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    check_host("unix:///x")
    with pytest.raises(EngineError, match="ssh://"):
        check_host("tcp://host:2376")


def test_where_the_engine_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    assert find_host(None) == "unix:///var/run/docker.sock"
    monkeypatch.setenv("DOCKER_HOST", "tcp://there:1")
    assert find_host(None) == "tcp://there:1"
    assert find_host("unix:///mine") == "unix:///mine"


def test_ssh_as_the_command_line_does_it() -> None:
    command = ssh_command("ssh://me@host:2200")
    assert command[-5:] == ["--", "host", "docker", "system", "dial-stdio"]
    assert command[-9:-5] == ["-l", "me", "-p", "2200"]
