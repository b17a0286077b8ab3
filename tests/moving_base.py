"""A base that changes under its path, as the operator's tarball does."""

from __future__ import annotations

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
        with tarfile.open(self.kit.base) as old, tarfile.open(fresh, "w") as tar:
            for entry in old:
                if entry.name not in files:
                    tar.addfile(entry, old.extractfile(entry) if entry.isreg() else None)
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(content), 0o755
                tar.addfile(entry, io.BytesIO(content))
        fresh.replace(self.path)
