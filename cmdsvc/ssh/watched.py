"""What is made of files, and made again when they change."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from cmdsvc.errors import CmdError

log = logging.getLogger("cmdsvc.keys")

T = TypeVar("T")

RECHECK = 1.0
"""Seconds between two looks; a changed file counts from then on."""
RACY = 2_000_000_000
"""Nanoseconds. What changed so lately may change again without another time stamp (a file system
counts in steps of up to two seconds), so it is read again."""


class Watched(Generic[T]):
    """`get` is what `read` made of the files; None while they cannot be used (CmdError)."""

    def __init__(self, paths: Sequence[Path], read: Callable[[], T]) -> None:
        self._paths = paths
        self._read = read
        self._value: T | None = None
        self._seen: list[tuple[int, int, int] | None] | None = None
        self._looked = -RECHECK
        self._said = ""

    def get(self) -> T | None:
        now = time.monotonic()
        if now - self._looked >= RECHECK:
            self._looked = now
            self._look()
        return self._value

    def _look(self) -> None:
        found = [_stamp(path) for path in self._paths]
        if found == self._seen:
            return
        try:
            self._value = self._read()
        except CmdError as error:
            self._value = None
            if str(error) != self._said:
                self._said = str(error)
                log.error("%s", error)  # noqa: TRY400 - the operator's file, no fault of ours
        else:
            self._said = ""
        settled = time.time_ns() - RACY
        self._seen = found if all(s is None or s[0] < settled for s in found) else None


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ctime_ns, status.st_size, status.st_ino
