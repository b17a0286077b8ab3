"""The real ssh-keygen."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path


def keygen(*words: str | Path) -> str:
    done = subprocess.run(
        ["ssh-keygen", "-q", *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done
    return done.stdout


def pair(path: Path, kind: str = "ed25519") -> Path:
    """A new key pair; the private one's path."""
    keygen("-t", kind, "-N", "", "-C", path.name, "-f", path)
    return path


def public(path: Path) -> Path:
    return path.with_name(f"{path.name}.pub")


def blob(path: Path) -> bytes:
    """Of a file with one public key or certificate."""
    return base64.b64decode(path.read_text().split()[1])


def certify(
    ca: Path, key: Path, *options: str, principals: str | None = "ann", identity: str = "id"
) -> Path:
    """The file with a certificate of `ca`'s for `key`; anew each time."""
    named = [] if principals is None else ["-n", principals]
    keygen("-s", ca, "-I", identity, *named, *options, public(key))
    return key.with_name(f"{key.name}-cert.pub")
