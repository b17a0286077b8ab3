"""A base that changes under its path, as the operator's tarball does."""

from __future__ import annotations

import functools
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.kit import Kit


@dataclass(frozen=True)
class Base:
    """The kit's, and the file /etc/word that tells which one it is."""

    path: Path
    kit: Kit

    def becomes(self, word: str, **more: bytes) -> None:
        """Puts another one in its place; `more` are programs of /sbin in it."""
        files = {f"./sbin/{name}": content for name, content in more.items()}
        files["./etc/word"] = word.encode()
        fresh = self.path.with_name("fresh.tar")
        with fresh.open("wb") as file:
            file.write(_others(self.kit.base, frozenset(files)))
            with tarfile.open(fileobj=file, mode="w") as tar:
                for name, content in files.items():
                    entry = tarfile.TarInfo(name)
                    entry.size, entry.mode = len(content), 0o755
                    tar.addfile(entry, io.BytesIO(content))
        fresh.replace(self.path)


@functools.cache
def _others(base: Path, names: frozenset[str]) -> bytes:
    """The tarball without these, and without its end."""
    data = io.BytesIO()
    with tarfile.open(base) as old, tarfile.open(fileobj=data, mode="w") as tar:
        for entry in old:
            if entry.name not in names:
                tar.addfile(entry, old.extractfile(entry) if entry.isreg() else None)
        return data.getvalue()
