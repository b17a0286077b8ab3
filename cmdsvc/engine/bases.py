"""Root file-system tarballs as bases: where they come from, and whether they are what was asked."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import os
import platform
import re
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from cmdsvc.engine import Progress
from cmdsvc.errors import BusyError, CmdError, DataError

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.zst")
"""What a tarball's path, or the path of its URL, ends in."""

MAX_BYTES = 4 << 30
"""Of a download."""
MAX_SECONDS = 900.0
"""Of a download as a whole."""
SOCKET_TIMEOUT = 20.0
"""Seconds without a byte from the server before it is given up."""
STEP = 10 << 20
"""Bytes between two lines of progress."""

ALPINE_MIRROR = "https://dl-cdn.alpinelinux.org/alpine"
"""Alpine's own; REL/releases/ARCH/latest-releases.yaml lists what is newest in release REL."""

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_T = TypeVar("_T")


def is_tarball(source: str) -> bool:
    """Whether `source` is a tarball's path or URL, else it is an image reference.

    An absolute path and a URL are never image references, so they are tarballs whatever they
    end in; `fetch` tells when they cannot be.
    """
    return source.startswith(("/", "http://", "https://"))


async def fetch(source: str, cache: Path, progress: Progress, *, sha256: str = "") -> Path:
    """The tarball as a local file: a path as it is, a URL downloaded into `cache`.

    The download is atomic, bounded, shown as progress, and checked against `sha256`, else against
    URL.sha256 where that is published. A copy in `cache` that has the checksum is used as it is;
    without a checksum the download is made again.

    Errors: BusyError (cannot be reached), DataError (checksum, or no such file).
    """
    if source.startswith("/"):
        return await asyncio.to_thread(_local, Path(source))
    return await _in_thread(
        lambda tell, stop: _download(source, cache, tell, stop, sha256), progress
    )


@dataclass(frozen=True, slots=True)
class Release:
    """A published root file system."""

    version: str
    url: str
    sha256: str
    """Hexadecimal; "" where only URL.sha256 has it."""


async def resolve_alpine(tag: str, progress: Progress, mirror: str = ALPINE_MIRROR) -> Release:
    """Alpine's minirootfs for this machine.

    A tag is a release, of which it is the newest ("" and "latest": the newest stable one; "3.20";
    "edge"), or exactly a version ("3.20.3").

    Errors: DataError (there is no such release), BusyError (the mirror cannot be reached).
    """
    arch = platform.machine()
    match = re.fullmatch(r"(\d+\.\d+)(\.\d+)?", tag)
    if tag in {"", "latest"}:
        release = "latest-stable"
    elif tag == "edge":
        release = "edge"
    elif match:
        release = f"v{match[1]}"
    else:
        raise DataError(
            f"there is no release {tag!r} of alpine", "name one like 3.20 or 3.20.3, latest or edge"
        )
    folder = f"{mirror.rstrip('/')}/{release}/releases/{arch}"
    if match and match[2]:
        return Release(tag, f"{folder}/alpine-minirootfs-{tag}-{arch}.tar.gz", "")
    url = f"{folder}/latest-releases.yaml"
    text = await _in_thread(lambda _tell, stop: _small(url, stop, 1 << 20), progress)
    if text is None:
        raise DataError(f"there is no release {tag!r} of alpine for {arch}", f"looked for {url}")
    return _minirootfs(text.decode("utf-8", "replace"), folder)


def _minirootfs(listing: str, folder: str) -> Release:
    """The minirootfs of a latest-releases.yaml: a list of flat maps, one `key: value` a line."""
    for item in re.split(r"(?m)^-\s*$", listing):
        entry = dict(re.findall(r"(?m)^\s+(\w+):\s+\"?([^\"\n]*?)\"?\s*$", item))
        if entry.get("flavor") != "alpine-minirootfs":
            continue
        version, file, digest = (entry.get(key, "") for key in ("version", "file", "sha256"))
        if _SHA256.fullmatch(digest) and re.fullmatch(r"[\w.-]+\.tar\.gz", file):
            return Release(version, f"{folder}/{file}", digest.lower())
    raise DataError(
        f"the list of releases at {folder} names no minirootfs",
        "set CMDSVC_BASE_ALPINE to a root file-system tarball",
    )


def check_os_release(base: str, tag: str, os_release: bytes) -> None:
    """DataError unless a file system with this etc/os-release is `base`:`tag` ("" is any tag).

    A tag is a version ("3.23" is 3.23.6 too), a code name ("bookworm"), either with "-slim" as
    image tags have it, or "latest", which is any.
    """
    fields = _os_release(os_release)
    have = fields.get("ID", "")
    if have != base:
        found = f"is {have[:40]!r}" if have else "has no etc/os-release"
        raise DataError(f"the tarball set for {base} {found}", f"set it to one of {base}")
    if tag in {"", "latest"}:
        return
    version = fields.get("VERSION_ID", "")
    wanted = tag.removesuffix("-slim")
    names = {version, fields.get("VERSION_CODENAME", "")} - {""}
    if "edge" in fields.get("PRETTY_NAME", "").split():
        names.add("edge")
    if wanted not in names and not version.startswith(f"{wanted}."):
        raise DataError(
            f"the base here is {base} {version or 'without a version'}, not {tag}",
            f"write #!cmd {base}, or ask the operator for {base}:{tag}",
        )


def _os_release(data: bytes) -> Mapping[str, str]:
    """The assignments of an os-release(5) file, quotes taken off."""
    text = data[:65536].decode("utf-8", "replace")
    return {
        key: value.strip().strip("\"'")
        for key, value in re.findall(r"(?m)^([A-Z][A-Z0-9_]*)=(.*)$", text)
    }


def _local(path: Path) -> Path:
    if not path.name.endswith(SUFFIXES):
        raise DataError(f"{path} is no tarball", f"its name must end in {', '.join(SUFFIXES)}")
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        raise DataError(f"the tarball {path} cannot be read: {error.strerror}", "") from error


async def _in_thread(work: Callable[[Progress, threading.Event], _T], progress: Progress) -> _T:
    """`work` in a thread; it gets a progress that may be called there, and a wish to stop."""
    loop = asyncio.get_running_loop()
    stop = threading.Event()

    def tell(line: str) -> None:
        if not stop.is_set():
            loop.call_soon_threadsafe(progress, line)

    try:
        return await asyncio.to_thread(work, tell, stop)
    finally:
        stop.set()


def _download(
    url: str, cache: Path, progress: Progress, stop: threading.Event, sha256: str
) -> Path:
    name = urllib.parse.unquote(urllib.parse.urlsplit(url).path).rsplit("/", 1)[-1]
    if not name.endswith(SUFFIXES):
        raise DataError(f"{url} is no tarball", f"its path must end in {', '.join(SUFFIXES)}")
    suffix = next(s for s in sorted(SUFFIXES, key=len, reverse=True) if name.endswith(s))
    target = cache / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}{suffix}"
    expected = sha256 or _published(url, stop)
    if expected and target.is_file():
        with target.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == expected:
                return target
    cache.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".download-", dir=cache)
    try:
        with os.fdopen(handle, "wb") as file:
            digest = _copy(url, file, progress, stop)
        if expected and digest != expected:
            raise DataError(
                f"{url} has the checksum {digest}, published is {expected}",
                "it is damaged or not what it should be: it is not used",
            )
        Path(temporary).replace(target)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return target


def _published(url: str, stop: threading.Event) -> str:
    """What URL.sha256 says (a digest, perhaps with a file name after it); "" where there is none."""
    parts = urllib.parse.urlsplit(url)
    text = _small(parts._replace(path=f"{parts.path}.sha256").geturl(), stop, 4096)
    words = (text or b"").decode("ascii", "replace").split()
    return words[0].lower() if words and _SHA256.fullmatch(words[0]) else ""


def _small(url: str, stop: threading.Event, limit: int) -> bytes | None:
    """A small document, None where there is none (404, 403, 410)."""
    with _errors(url):
        try:
            with _open(url) as response:
                deadline = time.monotonic() + SOCKET_TIMEOUT
                data = b""
                while len(data) < limit and (piece := response.read1(limit - len(data))):
                    data += piece
                    _go_on(url, stop, deadline)
                return data
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in {403, 404, 410}:
                return None
            raise


def _copy(url: str, file: IO[bytes], progress: Progress, stop: threading.Event) -> str:
    """Downloads `url` into `file`; the SHA-256 of what came."""
    digest = hashlib.sha256()
    deadline = time.monotonic() + MAX_SECONDS
    with _errors(url), _open(url) as response:
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isascii() and length.isdigit() else None
        progress(f"downloading {url}" + (f" ({total / 1e6:.1f} MB)" if total else ""))
        got, told = 0, 0
        while piece := response.read1(1 << 18):
            got += len(piece)
            if got > MAX_BYTES:
                raise DataError(f"{url} is larger than {MAX_BYTES >> 30} GiB", "use a smaller base")
            digest.update(piece)
            file.write(piece)
            if got - told >= STEP:
                told = got
                progress(f"{got / 1e6:.0f} MB" + (f" of {total / 1e6:.0f} MB" if total else ""))
            _go_on(url, stop, deadline)
        if total is not None and got != total:
            raise BusyError(f"{url} ended after {got} of {total} bytes", "try again later")
    return digest.hexdigest()


def _go_on(url: str, stop: threading.Event, deadline: float) -> None:
    if stop.is_set():
        raise BusyError(f"{url}: given up", "")
    if time.monotonic() > deadline:
        raise BusyError(f"{url} takes too long", "try again later, or use a nearer mirror")


def _open(url: str) -> http.client.HTTPResponse:
    """Over http and https only, redirects included; proxies as the environment has them."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    request = urllib.request.Request(url, headers={"User-Agent": "cmdsvc"})  # noqa: S310 - above
    response = opener.open(request, timeout=SOCKET_TIMEOUT)
    if not isinstance(response, http.client.HTTPResponse):
        raise urllib.error.URLError("no answer")
    return response


@contextlib.contextmanager
def _errors(url: str) -> Iterator[None]:
    """What goes wrong on the way, as one of ours."""
    try:
        yield
    except CmdError:
        raise
    except urllib.error.HTTPError as error:
        error.close()
        text = f"{url}: the server says {error.code} {error.reason}"
        if error.code in {408, 425, 429} or error.code >= 500:
            raise BusyError(text, "try again later") from error
        raise DataError(text, "check the address in the configuration") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise BusyError(
            f"{url} cannot be reached: {reason or type(reason).__name__}",
            "check the network, or set the base to another address or a local file",
        ) from error
