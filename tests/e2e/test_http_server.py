"""The HTTP door's own life: addresses, certificates, proxies, limits, drain."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.http_lab import Web, problem, rest, status
from tests.e2e.raw_client import SH, until
from tests.e2e.service_lab import HELLO, PATIENCE, Service

pytestmark = pytest.mark.any_engine


@contextlib.contextmanager
def started(service: Service, **settings: str) -> Iterator[Web]:
    service.settings = {**service.settings, **settings}
    service.start()
    service.create("sh", SH).ok()
    web = Web(service)
    service.ssh(":access", "sh", "grant", web.token).ok()
    with web.client:
        yield web


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A new one for 127.0.0.1, in the place of the one of before."""
    made, key = folder / f"{name}.new.crt", folder / f"{name}.new.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=cmdsvc", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", key, "-out", made],
        check=True, capture_output=True,
    )  # fmt: skip
    return made.rename(folder / f"{name}.crt"), key.rename(folder / f"{name}.key")


def serial(service: Service) -> bytes:
    """Of the certificate that the server shows."""
    port = int(service.url.rpartition(":")[2])
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port), PATIENCE) as sock,
        context.wrap_socket(sock) as tls,
    ):
        return tls.getpeercert(binary_form=True) or b""


def test_it_is_announced_after_ssh(own_service: Service):
    own_service.start()
    assert httpx.get(f"{own_service.url}/healthz").text == "ok\n"
    assert f"http={own_service.url}" in own_service.log


def test_an_address_that_cannot_be_had_is_one_line(own_service: Service):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        said = own_service.cli("serve", CMDSVC_HTTP_LISTEN=address)
        assert said.status != 0
        last = said.err.decode().strip().splitlines()[-1]
        assert last.startswith(f"cmdsvc: cannot listen on {address}: ")
        assert last.endswith("set CMDSVC_HTTP_LISTEN to a free address")
        checked = own_service.cli("check", CMDSVC_HTTP_LISTEN=address)
        assert checked.status == 1
        assert "CMDSVC_HTTP_LISTEN" in checked.text


def test_certificates_that_cannot_be_used(own_service: Service, tmp_path: Path):
    made, key = certificate(tmp_path, "a")
    other, _ = certificate(tmp_path, "b")
    for settings in (
        {"CMDSVC_TLS_CERT": str(made)},
        {"CMDSVC_TLS_CERT": str(other), "CMDSVC_TLS_KEY": str(key)},
        {"CMDSVC_TLS_CERT": "/nowhere", "CMDSVC_TLS_KEY": str(key)},
    ):
        said = own_service.cli("serve", **settings)
        assert said.status != 0
        assert "CMDSVC_TLS_KEY" in said.err.decode().strip().splitlines()[-1]
        assert own_service.cli("check", **settings).status == 1
    said = own_service.cli("check", CMDSVC_TLS_CERT=str(made), CMDSVC_TLS_KEY=str(key)).ok()
    assert f"HTTPS with {made}" in said.text


def test_tls_and_a_renewal(own_service: Service, tmp_path: Path):
    made, key = certificate(tmp_path, "door")
    with started(own_service, CMDSVC_TLS_CERT=str(made), CMDSVC_TLS_KEY=str(key)) as web:
        assert own_service.url.startswith("https://")
        context = ssl.create_default_context(cafile=made)
        with httpx.Client(verify=context, base_url=own_service.url, headers=web.bearer()) as client:
            said = client.get(web.url("echo $HTTPS $REQUEST_SCHEME"))
            assert said.text == "on https\n"
            data = bytes(5_000_000)
            assert client.post(web.url("cat"), content=data).content == data
            with pytest.raises(httpx.RemoteProtocolError):
                client.get(web.url("head -c 3000000 /dev/zero; exit 1"))
        before = serial(own_service)
        key.with_suffix(".half").write_text("-----BEGIN nothing")
        key.with_suffix(".half").rename(key)
        soon(lambda: serial(own_service) == before and "stays in force" in own_service.log)
        certificate(tmp_path, "door")
        soon(lambda: serial(own_service) != before)
        assert rest_of_plain(web) == b""


def soon(true: Callable[[], bool]) -> None:
    asyncio.run(until(true))


def rest_of_plain(web: Web) -> bytes:
    """What who speaks no TLS is told."""
    with web.socket() as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
        return rest(sock)


def test_proxies_are_believed_where_they_are_known(own_service: Service):
    headers = {"x-forwarded-for": "192.0.2.1", "x-forwarded-proto": "https",
               "x-forwarded-host": "cmd.example"}  # fmt: skip
    script = "echo $REMOTE_ADDR $REQUEST_SCHEME $SERVER_NAME $SERVER_PORT $HTTPS"
    with started(own_service) as web:
        port = web.service.url.rpartition(":")[2]
        assert web.run(script, headers=headers).text == f"127.0.0.1 http 127.0.0.1 {port}\n"
    own_service.stop()
    with started_again(own_service, CMDSVC_TRUSTED_PROXIES="127.0.0.0/8, ::1") as web:
        assert web.run(script, headers=headers).text == "192.0.2.1 https cmd.example 443 on\n"
        headers = {"forwarded": 'for="[2001:db8::1]";proto=https;host=cmd.example'}
        assert web.run(script, headers=headers).text == "2001:db8::1 https cmd.example 443 on\n"
    assert own_service.cli("check", CMDSVC_TRUSTED_PROXIES="everybody").status == 1


@contextlib.contextmanager
def started_again(service: Service, **settings: str) -> Iterator[Web]:
    service.settings = {**service.settings, **settings}
    service.start()
    web = Web(service)
    service.ssh(":access", "sh", "grant", web.token).ok()
    with web.client:
        yield web


def test_wrong_tokens_are_limited_by_address(own_service: Service):
    with started(own_service, CMDSVC_TRUSTED_PROXIES="127.0.0.1") as web:
        wrong = web.bearer("cmd_00000000_" + "0" * 32) | {"x-forwarded-for": "192.0.2.1"}
        said = [web.client.get("/run/alice/sh/true", headers=wrong) for _ in range(31)]
        assert [reply.status_code for reply in said] == [401] * 30 + [429]
        assert int(said[-1].headers["retry-after"]) > 0
        wrong["x-forwarded-for"] = "192.0.2.2"
        assert web.client.get("/run/alice/sh/true", headers=wrong).status_code == 401
        here = {"x-forwarded-for": "192.0.2.1"}
        assert web.run("echo hi", headers=here).text == "hi\n"  # nor is nobody else's kept out


def test_too_many_runs(own_service: Service):
    with started(
        own_service, CMDSVC_MAX_RUNS="3", CMDSVC_MAX_RUNS_PER_USER="1", CMDSVC_QUEUE_WAIT="0"
    ) as web:
        url = web.run("sleep 1000", method="POST", query="detach").json()["url"]
        said = web.run("echo", headers={"accept": "application/json"})
        assert said.status_code == 429
        assert int(said.headers["retry-after"]) > 0
        problem(said)
        assert web.client.delete(url).status_code == 204
    own_service.stop()
    with started_again(own_service, CMDSVC_MAX_RUNS="1", CMDSVC_MAX_RUNS_PER_USER="9") as web:
        url = web.run("sleep 1000", method="POST", query="detach").json()["url"]
        said = web.run("echo")
        assert said.status_code == 503
        assert int(said.headers["retry-after"]) > 0
        assert web.client.delete(url).status_code == 204


async def test_too_many_connections(own_service: Service):
    with started(own_service, CMDSVC_MAX_CONNECTIONS="10") as web, contextlib.ExitStack() as stack:
        held = [stack.enter_context(web.socket()) for _ in range(10)]
        refused = 0
        for sock in held:
            sock.settimeout(0.2)
            with contextlib.suppress(TimeoutError):
                refused += status(sock.recv(1000)) == 503
        assert 3 <= refused <= 5  # one address has half of them
        for sock in held:
            sock.close()

        def fine() -> bool:
            with contextlib.suppress(httpx.HTTPError):
                return httpx.get(f"{own_service.url}/healthz").status_code == 200
            return False

        await until(fine)


async def test_drain(own_service: Service):
    """What goes on ends; what is new on an open connection is refused, which is then closed."""
    with started(own_service) as web:
        script = "echo begun; sleep 1.5; echo done"
        async with httpx.AsyncClient(
            base_url=own_service.url, headers=web.bearer(), timeout=PATIENCE
        ) as client:
            going = asyncio.create_task(client.get(web.url(script)))
            with web.socket() as open_, web.socket() as idle:
                idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
                assert status(await asyncio.to_thread(idle.recv, 1000)) == 200
                open_.sendall(b"GET /readyz HTTP/1.1\r\nHost: h\r\n\r\n")
                assert status(await asyncio.to_thread(open_.recv, 1000)) == 200
                await until(lambda: len(own_service.ssh(":runs").ok().lines) == 1)
                assert own_service.process is not None
                own_service.process.send_signal(signal.SIGTERM)
                await until(lambda: "draining" in own_service.log)
                open_.sendall(web.head("echo new"))
                reply = await asyncio.to_thread(rest, open_)
                assert status(reply) == 503
                assert b"retry-after:" in reply
                assert b"connection: close" in reply
                idle.sendall(b"GET /readyz HTTP/1.1\r\nHost: h\r\n\r\n")
                assert status(await asyncio.to_thread(rest, idle)) == 503
                with pytest.raises(ConnectionError):
                    socket.create_connection(("127.0.0.1", int(own_service.url.rpartition(":")[2])))
                said = await going
                assert (said.status_code, said.text) == (200, "begun\ndone\n")
        assert await asyncio.to_thread(own_service.process.wait, PATIENCE) == 0
        own_service.process.stdout.close()  # type: ignore[union-attr]
        own_service.process = None


def test_a_stop_ends_what_does_not_end(own_service: Service):
    """And no client takes what it has got for whole."""
    with started(own_service, CMDSVC_DRAIN="300ms") as web, web.socket() as sock:
        sock.sendall(web.head("echo begun; sleep 1000", query="stream"))
        while b"begun" not in sock.recv(10_000):
            pass
        assert own_service.stop() == 0
        assert not rest(sock).endswith(b"0\r\n\r\n")
    assert "Traceback" not in own_service.log


def test_answers_last_over_a_restart(own_service: Service):
    key = {"idempotency-key": "k"}
    with started(own_service) as web:
        script = "echo $CMD_RUN_ID"
        first = web.run(script, headers=key)
        own_service.stop(signal.SIGKILL)
        own_service.start()
        again = httpx.get(own_service.url + web.url(script), headers=web.bearer() | key)
        assert (again.status_code, again.content) == (200, first.content)


def test_who_asks_again_after_a_crash_is_told_of_the_run(own_service: Service):
    key = {"idempotency-key": "k"}
    with started(own_service) as web:
        script = "echo begun; sleep 1000"
        with web.socket() as sock:
            sock.sendall(web.head(script, "Idempotency-Key: k", query="stream"))
            while b"begun" not in sock.recv(10_000):
                pass
            own_service.stop(signal.SIGKILL)
        own_service.start()
        url = own_service.url + web.url(script, query="stream")
        again = httpx.get(url, headers=web.bearer() | key)
        assert again.status_code == 500
        assert f"run {again.headers['x-cmd-run-id']}, was lost" in again.text


def test_metadata_counts_from_the_next_request_on(own_service: Service):
    with started(own_service) as web:
        own_service.ssh(":edit", "sh", stdin=SH.replace("eval", "# /// cmd\n# [http]\n# public = true\n# ///\neval").encode()).ok()  # fmt: skip
        assert httpx.get(own_service.url + web.url("echo hi")).text == "hi\n"
        own_service.ssh(":edit", "sh", stdin=HELLO).ok()
        assert httpx.get(own_service.url + web.url("echo hi")).status_code == 401
