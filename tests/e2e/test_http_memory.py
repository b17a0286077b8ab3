"""What goes through the HTTP door does not stay in the server."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from tests.e2e.http_lab import Web
from tests.e2e.raw_client import MARKS, Sleeper, peak_below, until
from tests.e2e.service_lab import PATIENCE

pytestmark = pytest.mark.any_engine

SOME = 100 << 20
MUCH = 1 << 30

SETTINGS = {"CMDSVC_MAX_BODY": "2G"}


@pytest.fixture(scope="module")
def web(web: Web) -> Web:
    web.run("echo the first of its kind")
    return web


def zeros(size: int) -> str:
    digest = hashlib.sha256()
    for _ in range(size >> 20):
        digest.update(bytes(1 << 20))
    return digest.hexdigest()


@pytest.mark.parametrize(
    ("chunked", "size"), [(True, SOME), pytest.param(False, MUCH, marks=pytest.mark.slow)]
)
def test_in(web: Web, chunked: bool, size: int, tmp_path: Path):
    file = tmp_path / "zeros"
    with file.open("wb") as made:
        os.truncate(made.fileno(), size)
    more = ["-H", "Transfer-Encoding: chunked"] if chunked else []
    with peak_below(web.service, 64):
        done = subprocess.run(
            ["curl", "-sS", "-X", "POST", "-u", f"{web.token}:", *more, "-T", file,
             web.service.url + web.url("sha256sum")],
            capture_output=True, timeout=10 * PATIENCE, check=True,
        )  # fmt: skip
    assert done.stdout.split()[0].decode() == zeros(size)


async def test_who_leaves_with_more_on_its_way_than_is_read(web: Web):
    """A client's end comes after all that it sent, of which the kernels hold megabytes."""
    mark = next(MARKS)
    asleep = Sleeper(mark)
    with web.socket() as sock:
        sock.sendall(web.head(f"sleep {mark}", f"Content-Length: {SOME}", method="POST"))
        await asleep.there()
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.sendall(bytes(20 << 20))
    await asleep.gone()


@pytest.mark.parametrize("size", [SOME, pytest.param(MUCH, marks=pytest.mark.slow)])
def test_out_to_a_slow_reader(web: Web, size: int):
    with peak_below(web.service, 64):
        done = subprocess.run(
            ["curl", "-sS", "-u", f"{web.token}:", "--limit-rate", "200M", "-o", "-",
             web.service.url + web.url(f"head -c {size} /dev/zero")],
            stdout=subprocess.PIPE, timeout=10 * PATIENCE, check=True,
        )  # fmt: skip
    assert hashlib.sha256(done.stdout).hexdigest() == zeros(size)


def test_a_body_that_is_needed_whole_is_not_in_memory(web: Web, name: str):
    """Under a key, and detached."""
    key = {"idempotency-key": name}
    with peak_below(web.service, 64):
        pieces = (bytes(1 << 20) for _ in range(200))
        said = web.run("wc -c", method="POST", headers=key, content=pieces)
        assert said.text.strip() == str(200 << 20)
        pieces = (bytes(1 << 20) for _ in range(200))
        url = web.run("wc -c", method="POST", query="detach", content=pieces).json()["url"]
        web.client.get(f"{url}?stream")
        assert web.client.get(f"{url}/output").text.strip() == str(200 << 20)
    assert web.service.process is not None
    held = Path(f"/proc/{web.service.process.pid}/fd")

    def nothing_held() -> bool:
        with contextlib.suppress(FileNotFoundError):
            return not [fd for fd in held.iterdir() if "deleted" in str(fd.readlink())]
        return False

    asyncio.run(until(nothing_held))
