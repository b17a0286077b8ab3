"""Making bases and package layers."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import hashlib
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from cmdsvc.engine import EngineSettings, Progress, bases, packages
from cmdsvc.engine.bubblewrap.store import Store, remove
from cmdsvc.errors import BusyError, DataError, EngineError, printable
from cmdsvc.model import Outcome, Reason
from cmdsvc.recipe import Recipe
from cmdsvc.relay import Job

UNPACK = Path(__file__).with_name("unpack.py")
KEPT_LINES = 200
"""Of a build's output, for its diagnosis."""
LINE = 1000
"""Characters of a line that are passed on."""
DEFAULT_ALPINE = "alpine"
"""The image reference that means Alpine's own minirootfs here."""
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
CERTIFICATES_INSIDE = "/run/ca-certificates.crt"
RESOLV_CONF = "/etc/resolv.conf"

Step = Callable[[str, Path, Sequence[str], Mapping[str, str], Mapping[str, bytes]], Awaitable[Job]]
"""Starts a step of a build: the base's root, the layer's folder, the program, its environment, and
more files that it sees but the layer does not keep (path to content)."""


class Builder:
    """`users` is a descriptor of a user namespace for unpacking, None without root."""

    def __init__(
        self, settings: EngineSettings, store: Store, step: Step, users: int | None
    ) -> None:
        self._settings = settings
        self._store = store
        self._step = step
        self._users = users
        self._locks: dict[str, asyncio.Lock] = {}
        self._waiting: collections.Counter[str] = collections.Counter()

    @property
    def busy(self) -> bool:
        """Whether something is being made."""
        return bool(self._waiting)

    async def pull(self, base: str, tag: str, source: str, progress: Progress) -> None:
        async with self._one("base", base, tag, source):
            await self._make_base(base, tag, source, progress)

    async def build(self, recipe: Recipe, progress: Progress, *, again: bool) -> None:
        try:
            async with (
                asyncio.timeout(self._settings.build_timeout),
                self._one("layer", recipe.digest),
            ):
                if again or not self._store.has(recipe) or self._store.stale(recipe):
                    await self._make_layer(recipe, progress, again=again)
        except TimeoutError:
            raise BusyError(
                f"the build took longer than {self._settings.build_timeout:g} s", "try again later"
            ) from None
        except OSError as error:
            raise EngineError(f"the layer cannot be stored: {error}", "look at the disk") from error

    async def _make_layer(self, recipe: Recipe, progress: Progress, *, again: bool) -> None:
        plan = packages.plan(recipe, self._settings.sources)
        async with self._one("base", recipe.base, recipe.tag, recipe.source):
            base = self._store.base(recipe.base, recipe.tag, recipe.source)
            if again or base is None:
                base = await self._make_base(recipe.base, recipe.tag, recipe.source, progress)
        bases.check_os_release(recipe.base, recipe.tag, self._store.os_release(base))
        async with _in_thread(self._store.temporary()) as folder:
            for name in ("root", "work"):
                (folder / name).mkdir(mode=0o755)
                self._store.own(folder / name)
            # A file to mount on, whatever the base has there.
            self._store.put(folder / "root", {RESOLV_CONF.lstrip("/"): b""} | dict(plan.files))
            for step in plan.steps:
                await self._run(recipe, (base, folder), step, plan.env, progress)
            (folder / "base").write_text(base)
            await asyncio.to_thread(remove, folder / "work")
            self._store.keep_layer(folder, recipe.digest)

    async def _run(
        self,
        recipe: Recipe,
        where: tuple[str, Path],
        step: Sequence[str],
        env: Mapping[str, str],
        progress: Progress,
    ) -> None:
        """One step on a base, in the folder of the layer.

        What it prints is progress, and the words of the error if it fails.
        """
        kept: collections.deque[str] = collections.deque(maxlen=KEPT_LINES)

        def line(text: str) -> None:
            kept.append(text)
            progress(text)

        base, folder = where
        env, files = _environment(env)
        job = await self._step(f"bases/{base}/root", folder, step, env, files)
        try:
            await job.send_eof()
            await _lines(job, line)
            outcome = await job.wait()
        finally:
            await job.aclose()
        if outcome.reason is Reason.MEMORY:
            raise DataError(
                "the build ran out of memory", "use smaller packages, or ask for more memory"
            )
        if outcome != Outcome(0):
            raise packages.diagnose(recipe, outcome.exit_status, list(kept))

    async def _make_base(self, base: str, tag: str, source: str, progress: Progress) -> str:
        """The ID of the base, fetched and unpacked."""
        try:
            tarball = await self._fetch(base, tag, source, progress)
            name = await asyncio.to_thread(_digest, tarball)
            if not (self._store.root / "bases" / name).is_dir():
                progress(f"unpacking {base}")
                async with _in_thread(self._store.temporary()) as folder:
                    root = folder / "root"
                    root.mkdir(mode=0o755)
                    self._store.own(root)
                    release = await self._unpack(tarball, root)
                    bases.check_os_release(base, tag, release)
                    (folder / "os-release").write_bytes(release)
                    self._store.keep_base(folder, name)
            bases.check_os_release(base, tag, self._store.os_release(name))
            self._store.remember_base(base, tag, source, name)
        except OSError as error:
            raise EngineError(f"the base cannot be stored: {error}", "look at the disk") from error
        return name

    async def _fetch(self, base: str, tag: str, source: str, progress: Progress) -> Path:
        if bases.is_tarball(source):
            return await bases.fetch(source, self._store.downloads, progress)
        if base == "alpine" and source == DEFAULT_ALPINE:
            release = await bases.resolve_alpine(tag, progress)
            progress(f"alpine {release.version}")
            return await bases.fetch(
                release.url, self._store.downloads, progress, sha256=release.sha256
            )
        raise DataError(
            f"base {base!r} is not here: the image {source!r} needs a Docker engine",
            f"the operator can set CMDSVC_BASE_{base.upper()} to a root file-system tarball",
        )

    async def _unpack(self, tarball: Path, root: Path) -> bytes:
        """The etc/os-release of what was in `tarball`, now in `root`."""
        users = [] if self._users is None else [self._users]
        uid = "-" if self._store.uid is None else str(self._store.uid)
        command = [sys.executable, "-I", "-S", str(UNPACK), str(root), uid]
        with contextlib.ExitStack() as stack:
            stdin = stack.enter_context(tarball.open("rb")).fileno()
            helper = None
            if tarball.name.endswith(".zst"):
                stdin, helper = await _unzstd(stdin, stack)
            process = await asyncio.create_subprocess_exec(
                *command,
                str(users[0]) if users else "-",
                stdin=stdin,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=users,
                env={},
                start_new_session=True,
            )
        try:
            release, words = await process.communicate()
        finally:
            for child in (process, helper):
                if child is not None and child.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        child.kill()
                    await child.wait()
        if process.returncode != 0:
            lines = printable(words.decode("utf-8", "replace")).split("\n")
            last = next((line for line in reversed(lines) if line.strip()), "it is damaged")
            raise DataError(f"the tarball {tarball.name} cannot be unpacked: {last[:300]}", "")
        return release

    @contextlib.asynccontextmanager
    async def _one(self, *key: str) -> AsyncIterator[None]:
        """One at a time may make a thing; who comes later finds it made."""
        name = "\0".join(key)
        lock = self._locks.setdefault(name, asyncio.Lock())
        self._waiting[name] += 1
        try:
            async with lock:
                yield
        finally:
            self._waiting[name] -= 1
            if not self._waiting[name]:
                del self._waiting[name], self._locks[name]


async def _unzstd(
    stdin: int, stack: contextlib.ExitStack
) -> tuple[int, asyncio.subprocess.Process]:
    """The unpacked side of zstd, as a descriptor: the standard library may lack it."""
    program = shutil.which("zstd")
    if program is None:
        raise DataError("a .tar.zst needs the program zstd", "install it, or use a .tar.gz")
    reader, writer = os.pipe2(os.O_CLOEXEC)
    stack.callback(os.close, reader)
    try:
        process = await asyncio.create_subprocess_exec(
            program, "-dcq", stdin=stdin, stdout=writer, stderr=asyncio.subprocess.DEVNULL
        )
    finally:
        os.close(writer)
    return reader, process


async def _lines(job: Job, line: Callable[[str], None]) -> None:
    """Passes a job's output on, line by line, each of bounded length."""
    rest = {1: "", 2: ""}
    async for fd, data in job.output():
        pieces = re.split(r"[\r\n]+", rest[fd] + data.decode("utf-8", "replace"))
        rest[fd] = pieces.pop()[-LINE:]
        for piece in pieces:
            if piece.strip():
                line(printable(piece[:LINE]))
    for piece in rest.values():
        if piece.strip():
            line(printable(piece))


def _environment(env: Mapping[str, str]) -> tuple[dict[str, str], dict[str, bytes]]:
    """A step's environment, and the files of the host that it sees.

    The mirror may be one that only this machine's resolver and certificates know.
    """
    made, files = dict(env), {}
    with contextlib.suppress(OSError):
        files[RESOLV_CONF] = Path(RESOLV_CONF).read_bytes()
    with contextlib.suppress(OSError):
        files[CERTIFICATES_INSIDE] = Path(CERTIFICATES).read_bytes()
        made["SSL_CERT_FILE"] = CERTIFICATES_INSIDE
    return made, files


def _digest(tarball: Path) -> str:
    with tarball.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.asynccontextmanager
async def _in_thread(
    manager: contextlib.AbstractContextManager[Path],
) -> AsyncIterator[Path]:
    """A manager whose ends take long (a tree is removed), off the event loop."""
    entered = manager.__enter__()
    try:
        yield entered
    finally:
        await _finished(asyncio.to_thread(manager.__exit__, None, None, None))


async def _finished(work: Coroutine[Any, Any, object]) -> None:
    """Waits for `work` to its end, cancelled or not."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled
