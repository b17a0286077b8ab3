"""Who a public key belongs to, and the server's own key: the files in the keys folder."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
from pathlib import Path

import asyncssh

from cmdsvc.errors import CmdError, UsageError
from cmdsvc.model import READY_MADE, valid_name

log = logging.getLogger("cmdsvc.keys")

RECHECK = 1.0
"""Seconds between two looks at the folder; a changed file counts from then on."""
RACY = 2_000_000_000
"""Nanoseconds. What changed so lately may change again without another time stamp (a file system
counts in steps of up to two seconds), so it is read again."""


def _public_key(line: str) -> asyncssh.SSHKey:
    """The key of a line "TYPE BASE64 [COMMENT]". Raises KeyImportError."""
    try:
        return asyncssh.import_public_key(line.encode())
    except asyncssh.KeyImportError:
        raise
    except Exception as error:  # a broken key brings any of its parsers' own errors
        raise asyncssh.KeyImportError("Invalid public key") from error


def read_user_keys(path: Path) -> list[asyncssh.SSHKey]:
    """The public keys of an authorized_keys file.

    A line with options (`from=`, `command=` ...) is skipped with a warning: to ignore a restriction
    would be to lift it.
    """
    keys = []
    text = path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            keys.append(_public_key(line))
        except asyncssh.KeyImportError:
            log.warning("%s, line %d: not a public key without options; skipped", path.name, number)
    return keys


class KeyRing:
    """The users' public keys, read again when a file in `keys/users` changes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "users"
        self._owners: dict[bytes, str] = {}
        self._seen: list[tuple[str, int, int]] | None = None
        self._looked = -RECHECK

    def owner(self, key: asyncssh.SSHKey) -> str | None:
        """The user whom `key` belongs to."""
        now = time.monotonic()
        if now - self._looked >= RECHECK:
            self._looked = now
            self._refresh()
        return self._owners.get(key.public_data)

    def _refresh(self) -> None:
        try:
            with os.scandir(self._folder) as entries:
                files = sorted(
                    (entry.name, entry.stat().st_ctime_ns, entry.stat().st_size)
                    for entry in entries
                    if entry.name.endswith(".pub") and entry.is_file()
                )
        except OSError as error:
            log.warning("the users' keys cannot be read: %s", error)
            return
        if files == self._seen:
            return
        owners: dict[bytes, str] = {}
        for name, _, _ in files:
            user = name.removesuffix(".pub")
            if not valid_name(user) or user == READY_MADE:
                log.warning("%s: not a user name; skipped", name)
                continue
            try:
                keys = read_user_keys(self._folder / name)
            except OSError as error:
                log.warning("%s cannot be read: %s", name, error)
                continue
            for key in keys:
                if owners.setdefault(key.public_data, user) != user:
                    log.warning(
                        "a key of %s is %s's already; skipped", user, owners[key.public_data]
                    )
        self._owners = owners
        settled = time.time_ns() - RACY
        self._seen = files if all(changed < settled for _, changed, _ in files) else None


def add_user(folder: Path, name: str, text: str) -> int:
    """Adds the public keys in `text` (authorized_keys format) to a user; returns how many are new.

    Raises UsageError, and changes nothing, where a line is no public key and where there is none.
    """
    path = folder / "users" / f"{name}.pub"
    present = {key.public_data for key in read_user_keys(path)} if path.exists() else set()
    given = [line for line in map(str.strip, text.splitlines()) if line and line[0] != "#"]
    hint = "give a public key as ssh-keygen writes it into a .pub file"
    if not given:
        raise UsageError("there is no public key", hint)
    lines = []
    for line in given:
        try:
            key = _public_key(line)
        except asyncssh.KeyImportError as error:
            raise UsageError(f"not a public key: {error}", hint) from None
        if key.public_data not in present:
            present.add(key.public_data)
            lines.append(line)
    if lines:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        ended = not path.exists() or path.read_bytes()[-1:] in {b"", b"\n"}
        with path.open("a", encoding="utf-8") as file:
            file.write("" if ended else "\n")
            file.writelines(f"{line}\n" for line in lines)
    return len(lines)


def host_key(folder: Path) -> asyncssh.SSHKey:
    """The server's ed25519 key, made on first use (0600)."""
    path = folder / "ssh_host_ed25519_key"
    try:
        if not path.exists():
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            key = asyncssh.generate_private_key("ssh-ed25519", comment="cmdsvc")
            handle, fresh = tempfile.mkstemp(prefix=".", dir=folder)  # 0600
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(key.export_private_key())
                with contextlib.suppress(FileExistsError):
                    os.link(fresh, path)  # never over one that another server made meanwhile
            finally:
                Path(fresh).unlink()
        return asyncssh.read_private_key(path)
    except (OSError, ValueError) as error:  # not there, not a key, or one with a passphrase
        raise CmdError(
            f"the host key {path} cannot be used: {error}", "mend or remove it"
        ) from None
