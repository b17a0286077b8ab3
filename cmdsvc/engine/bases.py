"""Root file-system tarballs as bases: where they come from, and whether they are what was asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cmdsvc.engine import Progress


def is_tarball(source: str) -> bool:
    """Whether `source` is a tarball's path or URL, else it is an image reference."""
    raise NotImplementedError


async def fetch(source: str, cache: Path, progress: Progress) -> Path:
    """The tarball as a local file: a path as it is, a URL downloaded into `cache` (atomically, with
    progress, bounded; checked against URL.sha256 where that is published).

    Errors: BusyError (cannot be reached), DataError (checksum, or no such file).
    """
    raise NotImplementedError


def check_os_release(base: str, tag: str, os_release: bytes) -> None:
    """DataError unless a file system with this etc/os-release is `base`:`tag` ("" is any tag)."""
    raise NotImplementedError
