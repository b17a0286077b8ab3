"""Bases are had from files and from a real HTTP server, whole or not at all."""

from __future__ import annotations

import asyncio
import hashlib
import http.server
import platform
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cmdsvc.engine import bases
from cmdsvc.errors import BusyError, DataError

DATA = bytes(range(256)) * 5000


class Server:
    """Answers from `files`; a callable member writes its own answer."""

    def __init__(self) -> None:
        self.files: dict[str, bytes | Callable[[http.server.BaseHTTPRequestHandler], None]] = {}
        self.asked: list[str] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                answer = outer.files.get(self.path)
                if answer is None:
                    self.send_error(404)
                elif callable(answer):
                    answer(self)
                else:
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    it = Server()
    yield it
    it.close()


def held(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def quiet(line: str) -> None:
    assert "\n" not in line


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("/srv/alpine.tar.gz", True),
        ("https://example.com/a/debian.tar.xz", True),
        ("http://example.com/a.tar.zst?key=1", True),
        ("alpine", False),
        ("alpine:3.20", False),
        ("docker.io/library/debian:12-slim", False),
        ("localhost:5000/alpine", False),
    ],
)
def test_a_tarball_is_told_from_an_image(source: str, expected: bool) -> None:
    assert bases.is_tarball(source) is expected


async def test_a_path_is_used_as_it_is(tmp_path: Path) -> None:
    tar = tmp_path / "base.tar"
    tar.write_bytes(DATA)
    assert await bases.fetch(str(tar), tmp_path / "cache", quiet) == tar
    assert not (tmp_path / "cache").exists()
    with pytest.raises(DataError, match=r"none\.tar"):
        await bases.fetch(str(tmp_path / "none.tar"), tmp_path / "cache", quiet)
    with pytest.raises(DataError, match="no tarball"):
        await bases.fetch("/etc/passwd", tmp_path / "cache", quiet)


async def test_a_download_is_whole_or_not_there(server: Server, tmp_path: Path) -> None:
    server.files["/a.tar.gz"] = DATA
    lines: list[str] = []
    path = await bases.fetch(f"{server.url}/a.tar.gz", tmp_path, lines.append)
    assert path.read_bytes() == DATA
    assert path.name.endswith(".tar.gz")
    assert any("downloading" in line for line in lines)

    def short(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(DATA)))
        handler.end_headers()
        handler.wfile.write(DATA[:1000])

    server.files["/b.tar"] = short
    with pytest.raises(BusyError, match="1000 of"):
        await bases.fetch(f"{server.url}/b.tar", tmp_path, quiet)
    assert held(tmp_path) == [path]


async def test_the_published_checksum_is_asked_for(server: Server, tmp_path: Path) -> None:
    server.files["/a.tar"] = DATA
    good = hashlib.sha256(DATA).hexdigest()
    server.files["/a.tar.sha256"] = f"{good}  a.tar\n".encode()
    path = await bases.fetch(f"{server.url}/a.tar", tmp_path, quiet)
    server.asked.clear()
    assert await bases.fetch(f"{server.url}/a.tar", tmp_path, quiet) == path
    assert server.asked == ["/a.tar.sha256"]

    server.files["/a.tar.sha256"] = f"{'0' * 64}  a.tar\n".encode()
    with pytest.raises(DataError, match="checksum"):
        await bases.fetch(f"{server.url}/a.tar", tmp_path, quiet)
    assert path.read_bytes() == DATA
    with pytest.raises(DataError, match="checksum"):
        await bases.fetch(f"{server.url}/a.tar", tmp_path, quiet, sha256="1" * 64)
    assert held(tmp_path) == [path]


async def test_what_is_wrong_and_what_may_work_later(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="404"):
        await bases.fetch(f"{server.url}/none.tar", tmp_path, quiet)
    server.files["/busy.tar"] = lambda handler: handler.send_error(503)
    with pytest.raises(BusyError, match="503"):
        await bases.fetch(f"{server.url}/busy.tar", tmp_path, quiet)
    with pytest.raises(BusyError, match="cannot be reached"):
        await bases.fetch("http://127.0.0.1:1/a.tar", tmp_path, quiet)
    with pytest.raises(DataError, match="no tarball"):
        await bases.fetch(f"{server.url}/a.zip", tmp_path, quiet)
    assert held(tmp_path) == []


async def test_a_redirect_leads_to_http_only(server: Server, tmp_path: Path) -> None:
    def redirect(to: str) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
        def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
            handler.send_response(302)
            handler.send_header("Location", to)
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        return answer

    server.files["/there.tar"] = DATA
    server.files["/a.tar"] = redirect(f"{server.url}/there.tar")
    server.files["/b.tar"] = redirect("file:///etc/passwd")
    server.files["/c.tar"] = redirect("ftp://127.0.0.1/x")
    assert (await bases.fetch(f"{server.url}/a.tar", tmp_path, quiet)).read_bytes() == DATA
    for name in "bc":
        with pytest.raises((DataError, BusyError)):
            await bases.fetch(f"{server.url}/{name}.tar", tmp_path, quiet)


async def test_a_cancelled_download_leaves_nothing(server: Server, tmp_path: Path) -> None:
    begun, go = threading.Event(), threading.Event()

    def slow(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(b"x" * 1000)
        begun.set()
        go.wait(10)
        handler.wfile.write(b"x" * 1000)

    server.files["/slow.tar"] = slow
    task = asyncio.create_task(bases.fetch(f"{server.url}/slow.tar", tmp_path, quiet))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go.set()
    await asyncio.get_running_loop().shutdown_default_executor()
    assert held(tmp_path) == []


def listing(*entries: str) -> bytes:
    return b"---\n" + "".join(f"-\n{e}" for e in entries).encode()


def entry(flavor: str, version: str, digest: str) -> str:
    arch = platform.machine()
    return (
        f'  title: "A title: with a colon"\n  desc: |\n    Several lines\n    of text.\n'
        f"  branch: v3.23\n  arch: {arch}\n  version: {version}\n  flavor: {flavor}\n"
        f"  file: {flavor}-{version}-{arch}.tar.gz\n  iso: x\n  size: 12\n  sha256: {digest}\n"
    )


async def test_alpine_is_found_by_its_list_of_releases(server: Server, tmp_path: Path) -> None:
    arch = platform.machine()
    digest = hashlib.sha256(DATA).hexdigest()
    text = listing(
        entry("alpine-standard", "3.23.6", "a" * 64), entry("alpine-minirootfs", "3.23.6", digest)
    )
    for release in ("latest-stable", "v3.22"):
        folder = f"/{release}/releases/{arch}"
        server.files[f"{folder}/latest-releases.yaml"] = text
        server.files[f"{folder}/alpine-minirootfs-3.23.6-{arch}.tar.gz"] = DATA
    for tag in ("", "latest", "3.22"):
        release = await bases.resolve_alpine(tag, quiet, server.url)
        assert (release.version, release.sha256) == ("3.23.6", digest)
        path = await bases.fetch(release.url, tmp_path, quiet, sha256=release.sha256)
        assert path.read_bytes() == DATA
    exact = await bases.resolve_alpine("3.22.1", quiet, server.url)
    assert exact.url.endswith(f"/v3.22/releases/{arch}/alpine-minirootfs-3.22.1-{arch}.tar.gz")


@pytest.mark.parametrize("tag", ["9.99", "../3.20", "bookworm", "3.20\n", "3"])
async def test_no_such_alpine(server: Server, tag: str) -> None:
    with pytest.raises(DataError, match="no release"):
        await bases.resolve_alpine(tag, quiet, server.url)


async def test_a_list_of_releases_that_makes_no_sense(server: Server) -> None:
    path = f"/latest-stable/releases/{platform.machine()}/latest-releases.yaml"
    for text in (b"", b"\xff\x00", listing(entry("alpine-minirootfs", "../../x", "a" * 64))):
        server.files[path] = text
        with pytest.raises(DataError, match="no minirootfs"):
            await bases.resolve_alpine("", quiet, server.url)


ALPINE = b'NAME="Alpine Linux"\nID=alpine\nVERSION_ID=3.23.6\nPRETTY_NAME="Alpine Linux v3.23"\n'
DEBIAN = b'ID=debian\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\n'
EDGE = b'ID=alpine\nVERSION_ID=3.24_alpha1\nPRETTY_NAME="Alpine Linux edge"\n'


@pytest.mark.parametrize(
    ("base", "tag", "text"),
    [
        ("alpine", "", ALPINE),
        ("alpine", "latest", ALPINE),
        ("alpine", "3", ALPINE),
        ("alpine", "3.23", ALPINE),
        ("alpine", "3.23.6", ALPINE),
        ("alpine", "edge", EDGE),
        ("debian", "12", DEBIAN),
        ("debian", "bookworm", DEBIAN),
        ("debian", "bookworm-slim", DEBIAN),
        ("debian", "12-slim", DEBIAN),
    ],
)
def test_the_base_is_what_was_asked(base: str, tag: str, text: bytes) -> None:
    bases.check_os_release(base, tag, text)


@pytest.mark.parametrize(
    ("base", "tag", "text"),
    [
        ("debian", "", ALPINE),
        ("alpine", "", b""),
        ("alpine", "", b"\xff\xfe\x00"),
        ("alpine", "3.2", ALPINE),
        ("alpine", "3.23.61", ALPINE),
        ("alpine", "edge", ALPINE),
        ("debian", "11", DEBIAN),
        ("debian", "trixie", DEBIAN),
    ],
)
def test_the_base_is_not_what_was_asked(base: str, tag: str, text: bytes) -> None:
    with pytest.raises(DataError):
        bases.check_os_release(base, tag, text)
