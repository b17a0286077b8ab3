"""A backup: one tar file with the store, by choice the keys, and what is in it by its digests."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar

from cmdsvc import __version__
from cmdsvc.errors import CmdError, DataError, ExistsError
from cmdsvc.store import Store
from cmdsvc.store.database import finished
from cmdsvc.store.newfile import new_file

P = ParamSpec("P")
T = TypeVar("T")

CONTENTS = "cmdsvc-backup.json"
"""The first member: `format`, `version`, `made_at`, and `files`, each name's size and SHA-256."""
FORMAT = 1
STORE = "store.db"
KEY = re.compile(r"keys/(users/[a-z0-9][a-z0-9._-]{0,63}\.pub|ssh_host_ed25519_key|secret\.key)")
KEY_MAX = 1 << 20
"""Bytes of a file in the keys folder, and of the contents."""


async def write(file: Path, store: Store, keys_dir: Path | None) -> None:
    """Makes `file` (0600), whole or not at all. `keys_dir`: with what is in it.

    CmdError where there is no room, or no such folder.
    """
    with _failing(f"{file} cannot be written"), _folder(file.parent) as folder:
        await store.backup(folder / STORE)
        await _in_thread(_pack, file, folder / STORE, _keys(keys_dir))


async def read(file: Path, url: str, data_dir: Path, keys_dir: Path | None) -> None:
    """Brings back what `write` made, into an empty store; `keys_dir`: the keys in it, too.

    DataError (65) for what is no whole backup, ExistsError (73) where there is a store or another
    key already; nothing is changed then.
    """
    from cmdsvc.store.restoring import restore_store  # noqa: PLC0415 - few need it

    with _failing(f"{file} cannot be restored"), _folder(data_dir) as folder:
        keys = await _in_thread(_unpack, file, folder / STORE)
        wanted = {} if keys_dir is None else {keys_dir / name: data for name, data in keys.items()}
        if keys_dir is not None and not keys:
            raise DataError(f"{file} has no keys", "bring them by hand; leave out --keys")
        await asyncio.to_thread(_check_keys, wanted)
        await restore_store(folder / STORE, url, lambda: _put_keys(wanted))


async def _in_thread(work: Callable[P, T], /, *args: P.args, **more: P.kwargs) -> T:
    """Waits to the end, cancelled or not: the folder in which it works goes only then."""
    return await finished(asyncio.create_task(asyncio.to_thread(work, *args, **more)))


def _keys(keys_dir: Path | None) -> dict[str, bytes]:
    if keys_dir is None:
        return {}
    found = {}
    for path in sorted([*keys_dir.glob("*"), *keys_dir.glob("users/*.pub")]):
        name = f"keys/{path.relative_to(keys_dir)}"
        if KEY.fullmatch(name):
            found[name] = path.read_bytes()
    return found


def _pack(file: Path, store: Path, keys: Mapping[str, bytes]) -> None:
    with store.open("rb") as copy:
        digest = hashlib.file_digest(copy, "sha256").hexdigest()
    files = {STORE: {"size": store.stat().st_size, "sha256": digest}} | {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in keys.items()
    }
    contents = {
        "format": FORMAT,
        "version": __version__,
        "made_at": datetime.now(UTC).isoformat(),
        "files": files,
    }
    with new_file(file) as fresh, tarfile.open(fresh, "w") as archive:
        _add(archive, CONTENTS, json.dumps(contents, indent=2).encode())
        with store.open("rb") as copy:
            archive.addfile(_member(STORE, store.stat().st_size), copy)
        for name, data in keys.items():
            _add(archive, name, data)


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    archive.addfile(_member(name, len(data)), io.BytesIO(data))


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o600
    return member


def _unpack(file: Path, store: Path) -> dict[str, bytes]:
    """Puts the store into a file of its own, and returns the keys by their names below `keys`."""
    try:
        with file.open("rb") as whole, tarfile.open(fileobj=whole, mode="r:") as archive:
            files = _contents(archive)
            with store.open("xb") as copy:
                store.chmod(0o600)
                shutil.copyfileobj(_next(archive, STORE), copy)
            with store.open("rb") as copy:
                _check(STORE, hashlib.file_digest(copy, "sha256").hexdigest(), files)
            keys = {}
            for name in files:
                if name != STORE:
                    data = _next(archive, name).read(KEY_MAX)
                    _check(name, hashlib.sha256(data).hexdigest(), files)
                    keys[name.removeprefix("keys/")] = data
            return keys
    except (tarfile.TarError, EOFError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file} is not a whole backup: {error}", "take another one; nothing was changed"
        ) from None


def _next(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    """The member that comes now. ValueError where that is another one, or no file."""
    member = archive.next()
    data = archive.extractfile(member) if member and member.name == name else None
    if data is None:
        raise ValueError(f"{name} is not where it has to be")
    return data


def _check(name: str, digest: str, files: Mapping[str, Any]) -> None:
    if digest != files[name]["sha256"]:
        raise ValueError(f"{name} is damaged")


def _contents(archive: tarfile.TarFile) -> dict[str, Any]:
    """What the file says is in it: the store, then keys."""
    contents = json.loads(_next(archive, CONTENTS).read(KEY_MAX))
    if contents["format"] != FORMAT:
        raise ValueError(f"it is of a newer version, {contents['version']}")
    files: dict[str, Any] = contents["files"]
    store, *keys = files
    if store != STORE or not all(KEY.fullmatch(name) for name in keys):
        raise ValueError("it says that there is in it what cannot be")
    return files


def _check_keys(keys: Mapping[Path, bytes]) -> None:
    for path, data in keys.items():
        if path.exists() and path.read_bytes() != data:
            raise ExistsError(
                f"{path} is there already, and another one", "move it away, or leave out --keys"
            )


def _put_keys(keys: Mapping[Path, bytes]) -> None:
    for path, data in keys.items():
        with _failing(f"{path} cannot be brought back"):
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            with new_file(path) as fresh:
                fresh.write_bytes(data)
                fresh.chmod(0o644 if path.suffix == ".pub" else 0o600)


@contextmanager
def _folder(where: Path) -> Iterator[Path]:
    """A folder for this user alone, gone at the end."""
    with tempfile.TemporaryDirectory(prefix=".cmdsvc-", dir=where) as name:
        yield Path(name)


@contextmanager
def _failing(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CmdError(
            f"{what}: {os.strerror(error.errno) if error.errno else error}",
            "see to its disk and folder",
        ) from None
