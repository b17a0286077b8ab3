"""A folder that is made once, by one process, whole or not at all."""

import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)


def default() -> Path:
    """Where kits are kept: `cmdsvc-kit` in the user's cache folder (XDG Base Directory)."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(named) if named else Path.home() / ".cache") / "cmdsvc-kit"


def digest(*parts: Path | str) -> str:
    """What something is kept under: a digest of its recipe, files and text."""
    total = hashlib.sha256()
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else part.encode()
        total.update(hashlib.sha256(content).digest())
    return total.hexdigest()[:16]


def keep(folder: Path, make: Callable[[Path], None]) -> Path:
    """Return `folder`, filled by `make` if it is not there yet.

    `make` gets a new empty folder that takes the name `folder` only when all is done. Of several
    processes that ask at once one makes it and the others wait.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f"{folder.name}.lock")):
        if folder.is_dir():
            return folder
        log.info("making %s", folder)
        partial = folder.with_name(f"{folder.name}.partial")
        _remove(partial)  # of a process that was killed: the lock says that nobody works in it
        partial.mkdir()
        try:
            make(partial)
            partial.rename(folder)
        except BaseException:
            _remove(partial)
            raise
    return folder


def _remove(folder: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(folder)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
