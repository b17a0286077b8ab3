"""Connections and logins as no ordinary client makes them."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from tests.availability import unavailable
from tests.e2e.raw_client import (
    connected,
    descriptors,
    options,
    quoted,
    say,
    serving,
    talk,
    until,
    whoami,
)
from tests.e2e.service_lab import PATIENCE, Service, elsewhere
from tests.kit import Kit, Server

pytestmark = pytest.mark.any_engine

PER_ADDRESS = 50
"""Connections from one address that may be before the end of their login."""


class Offers(asyncssh.SSHClient):
    """Offers these keys one after the other, and counts them."""

    def __init__(self, keys: Iterator[Any]) -> None:
        self._keys = keys
        self.offered = 0

    def public_key_auth_requested(self) -> Any:
        self.offered += 1
        return next(self._keys, None)


async def offer(service: Service, keys: list[Any], user: str = "alice") -> Any:
    conn, _ = await asyncssh.create_connection(
        lambda: Offers(iter(keys)), **options(service, user, client_keys=None)
    )
    return conn


def pair(path: Path) -> Any:
    [keys] = asyncssh.load_keypairs([str(path)])
    return keys


# Whose key it is


async def test_a_key_that_is_only_shown_gives_nobody_its_owners_identity(door: Service):
    """bob shows alice's key, signs with his own in its place, then logs in with his own."""
    forged = pair(door.key("bob"))
    forged.public_data = pair(door.key("alice")).public_data
    conn = await offer(door, [forged, pair(door.key("bob"))])
    try:
        assert await whoami(conn) == "bob"
    finally:
        conn.abort()
        await conn.wait_closed()


async def test_a_wrong_signature_is_no_login(door: Service):
    forged = pair(door.key("bob"))
    forged.public_data = pair(door.key("alice")).public_data
    with pytest.raises(asyncssh.PermissionDenied):
        await offer(door, [forged])


def test_a_key_whose_secret_the_client_lacks(door: Service, tmp_path: Path):
    """The client asks whether alice's key would do, cannot sign, and goes on to bob's."""
    shown = tmp_path / "id_shown"
    shown.write_text("not a key\n")
    shown.chmod(0o600)
    shutil.copy(f"{door.key('alice')}.pub", f"{shown}.pub")
    said = door.ssh(":whoami", key=shown, options=("-i", str(door.key("bob")))).ok()
    assert said.text.split("\t")[0] == "bob"


async def test_the_claimed_name_is_no_identity(door: Service):
    for name in ("alice", "root", "cmd", "x" * 900, "\N{SNOWMAN}"):
        async with connected(door, "bob", username=name) as conn:
            assert await whoami(conn) == "bob"


async def test_keys_offered_in_thousands_end_the_connection(door: Service):
    keys = Offers(pair_of() for _ in range(2000))
    with pytest.raises((asyncssh.DisconnectError, OSError)):  # said, then cut off
        await asyncssh.create_connection(lambda: keys, **options(door, client_keys=None))
    assert 20 < keys.offered < 50


def pair_of() -> Any:
    [key] = asyncssh.load_keypairs([asyncssh.generate_private_key("ssh-ed25519")])
    return key


async def test_the_twentieth_key_may_be_the_right_one(door: Service):
    conn = await offer(door, [*(pair_of() for _ in range(19)), pair(door.key("alice"))])
    assert await whoami(conn) == "alice"
    conn.abort()
    await conn.wait_closed()


# Which ciphers, which clients


@pytest.mark.parametrize(
    ("kind", "bits"), [("rsa", 3072), ("ecdsa", 256), ("ecdsa", 384), ("ecdsa", 521)]
)
def test_kinds_of_keys(door: Service, tmp_path: Path, kind: str, bits: int):
    key = tmp_path / "key"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", kind, "-b", str(bits), "-N", "", "-f", key], check=True
    )
    name = f"{kind}{bits}"
    door.cli("user", "add", name, f"{key}.pub").ok()
    said = door.ssh(":whoami", key=key)
    while said.status == 255:  # it looks once a second
        said = door.ssh(":whoami", key=key, options=("-o", f"BindAddress={elsewhere()}"))
    assert said.ok().text.split("\t")[0] == name
    if kind == "rsa":
        for algorithm in ("rsa-sha2-256", "rsa-sha2-512"):
            chosen = ("-o", f"PubkeyAcceptedAlgorithms={algorithm}")
            door.ssh(":whoami", key=key, options=chosen).ok()
        refused = door.ssh(":whoami", key=key, options=("-o", "PubkeyAcceptedAlgorithms=ssh-rsa"))
        assert refused.status == 255


async def test_a_signature_by_sha_1_is_refused(door: Service):
    """Also from a client that does not care what the server said it takes."""
    key = asyncssh.generate_private_key("ssh-rsa", key_size=2048)
    door.cli("user", "add", "old", stdin=key.export_public_key()).ok()

    def signing(algorithm: bytes) -> Any:
        [keys] = asyncssh.load_keypairs([key])
        keys.sig_algorithms = (algorithm,)
        keys.set_sig_algorithm(algorithm)
        return keys

    class Stubborn(Offers):
        def connection_made(self, conn: Any) -> None:
            conn._choose_signature_alg = lambda _: True

    def stubborn(algorithm: bytes) -> Any:
        return asyncssh.create_connection(
            lambda: Stubborn(iter([signing(algorithm)])),
            local_addr=(elsewhere(), 0),
            **options(door, client_keys=None, signature_algs="ssh-rsa,rsa-sha2-256"),
        )

    conn = None
    while conn is None:  # it looks for new keys once a second
        with suppress(asyncssh.PermissionDenied):
            conn, _ = await stubborn(b"rsa-sha2-256")
    assert await whoami(conn) == "old"
    conn.abort()
    await conn.wait_closed()
    with pytest.raises(asyncssh.PermissionDenied):
        await stubborn(b"ssh-rsa")


@pytest.mark.parametrize(
    "option",
    [
        "KexAlgorithms=diffie-hellman-group14-sha1",
        "KexAlgorithms=diffie-hellman-group1-sha1",
        "KexAlgorithms=diffie-hellman-group-exchange-sha1",
        "HostKeyAlgorithms=ssh-rsa",
        "Ciphers=aes128-cbc",
        "Ciphers=3des-cbc",
        "MACs=hmac-sha1",
        "MACs=hmac-md5",
        "MACs=umac-64@openssh.com",
    ],
)
def test_weak_algorithms_are_refused(door: Service, option: str):
    chosen = (
        "-v",
        "-o",
        option,
        *(("-o", "Ciphers=aes128-ctr") if option.startswith("MAC") else ()),
    )
    said = door.ssh(":whoami", options=chosen)
    assert said.status == 255
    assert b"no matching" in said.err


@pytest.mark.parametrize(
    "option",
    [
        "KexAlgorithms=curve25519-sha256",
        "KexAlgorithms=ecdh-sha2-nistp521",
        "KexAlgorithms=diffie-hellman-group16-sha512",
        "Ciphers=chacha20-poly1305@openssh.com",
        "Ciphers=aes256-gcm@openssh.com",
        "Ciphers=aes256-ctr",
    ],
)
def test_strong_algorithms_work(door: Service, option: str):
    data = os.urandom(200_000)
    assert door.ssh("sh", "exec cat", stdin=data, options=("-o", option)).ok().out == data


def test_a_client_that_renews_its_keys_all_the_time(door: Service):
    data = os.urandom(4 << 20)
    said = door.ssh("sh", "exec cat", stdin=data, options=("-o", "RekeyLimit=64K"))
    assert said.ok().out == data


def test_dropbears_client(door: Service, tmp_path: Path):
    if not shutil.which("dbclient"):
        unavailable("no dbclient: apt-get install dropbear-bin")
    key = tmp_path / "key"
    subprocess.run(
        ["dropbearconvert", "openssh", "dropbear", door.key("alice"), key],
        check=True,
        capture_output=True,
    )
    data = os.urandom(1 << 20)
    for words, stdin, out in ((":whoami", b"", b"alice\t"), ("sh 'exec cat'", data, data)):
        done = subprocess.run(
            ["dbclient", "-y", "-y", "-i", key, "-p", str(door.port), "alice@127.0.0.1", words],
            input=stdin,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
            env={**os.environ, "HOME": str(tmp_path)},
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(out)


# Before the login


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"SSH-1.5-old\r\n",
        b"SSH-2.0-\xff\xfe\r\n",
        b"SSH-2.0-" + b"x" * 300 + b"\r\n",
        b"\0" * 100_000,
        b"\n" * 10_000,
        b"SSH-2.0-x\r\n" + bytes(range(256)) * 400,
        b"SSH-2.0-x\r\n" + b"\xff" * 100_000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 500,
    ],
    ids=range(9),
)
def test_garbage_for_a_greeting(door: Service, garbage: bytes):
    with socket.create_connection(("127.0.0.1", door.port), PATIENCE) as sock:
        with suppress(OSError):  # it may have been cut off by then
            sock.sendall(garbage)
            sock.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):
            while sock.recv(65536):
                pass
    door.ssh(":whoami").ok()


async def test_connections_that_say_nothing(
    request: pytest.FixtureRequest, kit: Kit, mirror: Server, tmp_path: Path
):
    """They are limited per address and dropped in time; who is in, or comes from elsewhere, works."""
    with contextmanager(serving)(
        request, kit, mirror, tmp_path, CMDSVC_LOGIN_TIMEOUT="3s"
    ) as service:
        async with connected(service) as conn:
            begun = time.monotonic()
            silent = [
                await asyncio.open_connection("127.0.0.1", service.port)
                for _ in range(PER_ADDRESS + 5)
            ]
            greetings = await asyncio.gather(*(reader.readline() for reader, _ in silent))
            assert sorted(map(bool, greetings)) == [False] * 5 + [True] * PER_ADDRESS
            assert await whoami(conn) == "alice"
            with pytest.raises((OSError, asyncssh.Error)):
                await asyncssh.connect(**options(service))
            async with connected(service, "bob", local_addr=("127.0.0.2", 0)) as other:
                assert await whoami(other) == "bob"
            used = processor(service)
            await asyncio.gather(*(reader.read() for reader, _ in silent))  # to their ends
            assert 2 < time.monotonic() - begun < 10
            assert processor(service) - used < 0.5  # nobody's silence keeps the server busy
            async with connected(service) as again:
                assert await whoami(again) == "alice"
            for _, writer in silent:
                writer.transport.abort()


def processor(service: Service) -> float:
    """Seconds of processor time that the server has used."""
    assert service.process is not None
    fields = Path(f"/proc/{service.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
async def test_more_connections_than_may_be(
    request: pytest.FixtureRequest, kit: Kit, mirror: Server, tmp_path: Path
):
    """1,000 may; the others are cut off, and those who are in do not notice."""
    with contextmanager(serving)(request, kit, mirror, tmp_path) as service:
        before = descriptors(service)
        async with connected(service) as first:
            going = await talk(first, quoted("echo begun; read -r line; echo $line"))
            await going.until(b"begun")
            room = asyncio.Semaphore(8)

            async def one() -> Any:
                async with room:
                    return await asyncssh.connect(**options(service, "bob"))

            tried = await asyncio.gather(*(one() for _ in range(1100)), return_exceptions=True)
            inside = [c for c in tried if isinstance(c, asyncssh.SSHClientConnection)]
            assert len(inside) == 999
            assert await whoami(inside[500]) == "bob"
            going.chan.write(b"still here\n")
            assert await going.end() == 0
            assert (await say(first, ":whoami")).out.startswith(b"alice")
            for conn in inside[:500]:
                conn.abort()
            await until(lambda: descriptors(service) < before + 520)
            assert await whoami(await one()) == "bob"
            for conn in inside:
                conn.abort()
            await asyncio.gather(*(conn.wait_closed() for conn in inside))
