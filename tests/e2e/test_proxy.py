"""Behind a real nginx and a real Caddy, each set up as docs/http.md says."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
import pytest
from websockets.asyncio.client import connect

from tests.e2e.http_lab import Web, rest
from tests.e2e.proxy_lab import PROXIES, Certificate, Proxy, standing_before
from tests.e2e.raw_client import MARKS, Sleeper, serving, until
from tests.e2e.service_lab import PATIENCE, Service, elsewhere
from tests.e2e.ws_lab import V1, Talk
from tests.kit import Kit, Server

pytestmark = [pytest.mark.slow, pytest.mark.any_engine]

WHO = (
    "echo $REMOTE_ADDR $HTTPS $REQUEST_SCHEME $SERVER_NAME $SERVER_PORT"
    " $SCRIPT_NAME $HTTP_X_FORWARDED_FOR"
)
FORGED = {
    "x-forwarded-for": "192.0.2.1",
    "x-forwarded-proto": "http",
    "x-forwarded-host": "evil.example",
    "x-forwarded-port": "1",
    "forwarded": "for=192.0.2.2;proto=http;host=evil.example",
}


@dataclass
class Behind:
    """The server, and a client of the proxy's that calls from an address of its own."""

    web: Web
    proxy: Proxy
    client: httpx.Client
    address: str

    @property
    def service(self) -> Service:
        return self.web.service

    def run(self, script: str, *, method: str = "GET", query: str = "", **more: object):
        return self.client.request(method, self.web.url(script, query=query), **more)  # type: ignore[arg-type]

    def opened(self, script: str, query: str = "", **more: object) -> connect:
        url = f"wss://localhost:{self.proxy.port}{self.web.url(script, query=query)}"
        return connect(
            url, ssl=self.proxy.certificate.trusted, proxy=None, host="127.0.0.1", local_addr=(self.address, 0),
            additional_headers=self.web.bearer(), open_timeout=PATIENCE, **more,
        )  # type: ignore[arg-type]  # fmt: skip


@pytest.fixture(scope="module", params=PROXIES)
def behind(
    request: pytest.FixtureRequest,
    kit: Kit,
    mirror: Server,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Behind]:
    home = tmp_path_factory.mktemp("proxied")
    for service in serving(request, kit, mirror, home, CMDSVC_TRUSTED_PROXIES="127.0.0.1"):
        web = Web(service)
        service.ssh(":access", "sh", "grant", web.token).ok()
        folder = tmp_path_factory.mktemp(request.param)
        with standing_before(service.url, request.param, folder) as proxy:
            address = elsewhere()
            transport = httpx.HTTPTransport(verify=proxy.certificate.trusted, local_address=address)
            with (
                web.client,
                httpx.Client(
                    transport=transport, base_url=proxy.url, headers=web.bearer(), timeout=PATIENCE
                ) as client,
            ):
                yield Behind(web, proxy, client, address)


def test_who_asks_and_what_he_asked(behind: Behind):
    said = behind.run(WHO)
    words = [behind.address, "on", "https", "localhost", str(behind.proxy.port)]
    assert said.text.split() == [*words, "/run/alice/sh", behind.address]


def test_what_a_client_says_of_itself_counts_for_nothing(behind: Behind):
    said = behind.run(WHO, headers=FORGED)
    words = [behind.address, "on", "https", "localhost", str(behind.proxy.port)]
    assert said.text.split()[:5] == words


def test_nor_does_what_somebody_says_who_is_no_proxy(behind: Behind):
    address = elsewhere()
    with httpx.Client(
        transport=httpx.HTTPTransport(local_address=address), headers=behind.web.bearer()
    ) as client:
        said = client.get(behind.service.url + behind.web.url(WHO), headers=FORGED)
    port = behind.service.url.rpartition(":")[2]
    expected = f"{address} http 127.0.0.1 {port} /run/alice/sh 192.0.2.1\n"
    assert said.text == expected


def test_wrong_tokens_are_the_clients_not_the_proxys(behind: Behind):
    trusted = behind.proxy.certificate.trusted
    wrong = behind.web.bearer("cmd_00000000_" + "0" * 32)
    with httpx.Client(
        transport=httpx.HTTPTransport(verify=trusted, local_address=elsewhere()),
        base_url=behind.proxy.url,
        headers=wrong,
    ) as client:
        codes = [client.get("/run/alice/sh").status_code for _ in range(31)]
    assert codes == [401] * 30 + [429]
    assert behind.client.get("/run/alice/sh", headers=wrong).status_code == 401
    assert behind.run("echo hi").text == "hi\n"


def test_arguments_and_bodies_are_as_they_were_sent(behind: Behind):
    path = behind.web.url('shift; printf "[%s]" "$@"; sha256sum') + "/a%2Fb/%20/..%2F?args=c+d"
    data = os.urandom(5_000_000)
    said = behind.client.post(path, content=data)
    digest = hashlib.sha256(data).hexdigest()
    assert said.text == f"[a/b][ ][../][c][d]{digest}  -\n"
    # nginx sends no more of a body whose reply has begun.
    assert behind.run("cat >body; cat body", method="POST", content=data).content == data


def test_output_comes_as_it_is_written_and_a_client_that_leaves_is_noticed(behind: Behind):
    async def stream(mark: str, query: str, headers: dict[str, str]) -> None:
        asleep = Sleeper(mark)
        url = behind.proxy.url + behind.web.url(f"echo first; sleep {mark}", query=query)
        async with (
            httpx.AsyncClient(verify=behind.proxy.certificate.trusted, timeout=PATIENCE) as client,
            client.stream("GET", url, headers=behind.web.bearer() | headers) as reply,
        ):
            text = reply.aiter_text()
            while "first" not in await anext(text):
                pass
            await asleep.there()
        await asleep.gone(2)

    asyncio.run(stream(next(MARKS), "stream", {}))
    asyncio.run(stream(next(MARKS), "stream", {"accept": "text/event-stream"}))


def test_stdin_comes_as_it_is_sent(behind: Behind):
    """The script runs before the body has come to its end."""

    async def upload() -> None:
        mark = next(MARKS)
        asleep = Sleeper(mark)
        going = asyncio.Event()

        async def pieces():
            yield b"first\n"
            await asleep.there()
            going.set()
            yield b"second\n"

        script = f"read line; sleep {mark} & read other; kill $!; echo $line $other"
        async with httpx.AsyncClient(
            verify=behind.proxy.certificate.trusted, timeout=PATIENCE, headers=behind.web.bearer()
        ) as client:
            said = await client.post(behind.proxy.url + behind.web.url(script), content=pieces())
        assert going.is_set()
        await asleep.gone(PATIENCE)
        assert said.text == "first second\n"

    asyncio.run(upload())


def test_what_fails_after_its_reply_has_begun_does_not_look_whole(behind: Behind):
    if not behind.proxy.cuts:
        pytest.skip("this Caddy ends it as if it were whole, as the page says")
    with pytest.raises(httpx.RemoteProtocolError):
        behind.run("head -c 3000000 /dev/zero; exit 1")
    with pytest.raises(httpx.RemoteProtocolError):
        behind.run("echo first; exit 1", query="stream")
    assert behind.run("head -c 3000000 /dev/zero").content == bytes(3_000_000)


def test_detached_and_followed(behind: Behind):
    begun = behind.run("echo out", method="POST", query="detach")
    assert begun.status_code == 202
    followed = behind.client.get(f"{begun.headers['location']}?stream")
    assert followed.text == "out\n"


def test_a_websocket(behind: Behind):
    async def talk() -> None:
        async with behind.opened("cat; echo err >&2; exit 3", subprotocols=[V1]) as ws:
            one = Talk(ws)
            await ws.send(b"body\n")
            await one.until(b"body\n")
            await one.eof()
            assert await one.end() == 1000
            assert (one.out, one.err, one.exit) == (
                b"body\n", b"err\n", {"type": "exit", "exit_status": 3},
            )  # fmt: skip
        mark = next(MARKS)
        asleep = Sleeper(mark)
        async with behind.opened(f"stty size; {WHO}; exec sleep {mark}", "tty&cols=99") as ws:
            text = ""
            async with asyncio.timeout(PATIENCE):
                while text.count("\n") < 2:
                    text += await ws.recv()
            assert text.startswith(f"24 99\r\n{behind.address} on https localhost ")
            await asleep.there()
        await asleep.gone(2)

    asyncio.run(talk())


def test_a_webhook(behind: Behind):
    """What is signed is the body that came to the proxy."""
    name = f"hook{next(MARKS)}"
    service = behind.service
    service.create(name, "#!cmd alpine\n#!/bin/sh\necho $REMOTE_ADDR; wc -c\n").ok()
    (secret,) = service.ssh(":hooks", name, "new", "push", "--scheme", "github").ok().lines
    body = os.urandom(300_000)
    signature = hmac.digest(secret.encode(), body, "sha256").hex()
    said = behind.client.post(
        f"/hook/alice/{name}/push", content=body,
        headers={"x-hub-signature-256": f"sha256={signature}"},
    )  # fmt: skip
    assert said.status_code == 202
    log = (":hooks", name, "log")
    asyncio.run(until(lambda: service.ssh(*log).ok().text.split("\t")[4] == "done"))
    run = service.ssh(*log).text.split("\t")[7]
    assert service.ssh(":logs", run).ok().text == f"{behind.address}\n300000\n"


def test_a_websocket_with_tls_of_the_servers_own(
    request: pytest.FixtureRequest,
    kit: Kit,
    mirror: Server,
    tmp_path_factory: pytest.TempPathFactory,
):
    home = tmp_path_factory.mktemp("tls")
    made = Certificate.make(home)
    settings = {"CMDSVC_TLS_CERT": str(made.path), "CMDSVC_TLS_KEY": str(made.key)}
    for service in serving(request, kit, mirror, home, **settings):
        web = Web(service)
        web.client.close()
        service.ssh(":access", "sh", "grant", web.token).ok()
        port = urlsplit(service.url).port
        proxy = Proxy(port or 0, made, cuts=True)

        async def talk(behind: Behind) -> None:
            async with behind.opened(f"{WHO}; cat; exit 3", subprotocols=[V1]) as ws:
                one = Talk(ws)
                await one.until(f"on https localhost {behind.proxy.port} ".encode())
                await ws.send(bytes(900_000))
                await one.eof()
                assert await one.end() == 1000
                assert one.out.count(0) == 900_000
                assert one.exit == {"type": "exit", "exit_status": 3}

        with httpx.Client(verify=made.trusted) as client:
            asyncio.run(talk(Behind(web, proxy, client, "127.0.0.1")))
        with socket.create_connection(("127.0.0.1", port)) as plain:
            plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
            assert rest(plain) == b""
