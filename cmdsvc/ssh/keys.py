"""Who a public key belongs to, and the server's own key: the files in the keys folder."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncssh

from cmdsvc.errors import CmdError, ExistsError, ForbiddenError, NotFoundError, UsageError
from cmdsvc.model import valid_user
from cmdsvc.ssh.blobs import fingerprint
from cmdsvc.ssh.files import write_whole
from cmdsvc.ssh.restrictions import Line, parse_line, public_key
from cmdsvc.ssh.watched import RACY, RECHECK

log = logging.getLogger("cmdsvc.keys")

KEYS_MAX = 100
"""Keys that a user may have."""


def read_lines(path: Path) -> list[Line]:
    """The lines of an authorized_keys file that hold a key.

    One with an option that is not known here is skipped with a warning.
    """
    lines = []
    text = path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            lines.append(parse_line(line))
        except ValueError:
            log.warning(
                "%s, line %d: not a public key, or an option that is not known here; skipped",
                path.name, number,
            )  # fmt: skip
    return lines


def read_user_keys(path: Path) -> list[asyncssh.SSHKey]:
    """The public keys of an authorized_keys file."""
    return [line.key for line in read_lines(path)]


class KeyRing:
    """The users' public keys, read again when a file in `keys/users` changes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._folder = folder / "users"
        self._owners: dict[bytes, tuple[str, list[Line]]] = {}
        self._seen: list[tuple[str, int, int]] | None = None
        self._folder_seen = 0
        self._looked = -RECHECK

    def knows(self, user: str) -> bool:
        """Whether there is a file for this user, a valid name."""
        return (self._folder / f"{user}.pub").is_file()

    def owner(self, key: asyncssh.SSHKey) -> str | None:
        """The user whom `key` belongs to."""
        return self.lines(key.public_data)[0]

    def lines(self, key: bytes) -> tuple[str | None, list[Line]]:
        """The user whom `key` belongs to, and the lines that say so.

        A file that was put there just now counts at once, any other change within RECHECK.
        """
        now = time.monotonic()
        if now - self._looked >= RECHECK or (key not in self._owners and self._folder_changed()):
            self._looked = now
            self._refresh()
        return self._owners.get(key, (None, []))

    def recheck(self) -> None:
        """Looks again at the next question: a file was changed just now."""
        self._looked = -RECHECK

    def _folder_changed(self) -> bool:
        try:
            return self._folder.stat().st_mtime_ns != self._folder_seen
        except OSError:
            return False

    def _refresh(self) -> None:
        try:
            self._folder_seen = self._folder.stat().st_mtime_ns
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
        owners: dict[bytes, tuple[str, list[Line]]] = {}
        for name, _, _ in files:
            user = name.removesuffix(".pub")
            if not valid_user(user):
                log.warning("%s: not a user name; skipped", name)
                continue
            try:
                lines = read_lines(self._folder / name)
            except OSError as error:
                log.warning("%s cannot be read: %s", name, error)
                continue
            for line in lines:
                owner, found = owners.setdefault(line.key.public_data, (user, []))
                if owner == user:
                    found.append(line)
                else:
                    log.warning("a key of %s is %s's already; skipped", user, owner)
        self._owners = owners
        settled = time.time_ns() - RACY
        self._seen = files if all(changed < settled for _, changed, _ in files) else None


@contextlib.contextmanager
def _changing(folder: Path) -> Iterator[None]:
    """Holds the users' files: whoever else wants to change one waits."""
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def add_user(
    folder: Path, name: str, text: str, taken: Callable[[bytes], str | None] | None = None
) -> int:
    """Adds the public keys in `text` (authorized_keys format) to a user; returns how many are new.

    Raises UsageError, and changes nothing, where a line is no public key and where there is none;
    ExistsError where one is another user's, or `taken` names one whose it is.
    """
    path = folder / "users" / f"{name}.pub"
    given = [line for line in map(str.strip, text.splitlines()) if line and line[0] != "#"]
    hint = "give a public key as ssh-keygen writes it into a .pub file"
    if not given:
        raise UsageError("there is no public key", hint)
    keys: dict[bytes, str] = {}
    for line in given:
        try:
            keys.setdefault(public_key(line).public_data, line)
        except asyncssh.KeyImportError as error:
            raise UsageError(f"not a public key: {error}", hint) from None
    with _changing(path.parent):
        ring = KeyRing(folder)
        for key in keys:
            owner = ring.lines(key)[0] or (taken(key) if taken else None)
            if owner not in {None, name}:
                raise ExistsError(
                    f"the key {fingerprint(key)} is another user's",
                    "everyone needs keys of his own",
                )
        before = path.read_bytes() if path.exists() else b""
        present = {key.public_data for key in read_user_keys(path)} if before else set()
        lines = [line for key, line in keys.items() if key not in present]
        if len(present) + len(lines) > KEYS_MAX:
            raise UsageError(f"{name} would have more than {KEYS_MAX} keys", "remove some first")
        if lines:
            ended = b"" if before[-1:] in {b"", b"\n"} else b"\n"
            added = "".join(f"{line}\n" for line in lines).encode()
            write_whole(path, before + ended + added, 0o644)
    return len(lines)


def remove_key(folder: Path, name: str, print_: str, usable: Callable[[Line], bool]) -> None:
    """Takes the key with that fingerprint from a user.

    NotFoundError where he has none such; ForbiddenError where no `usable` one would be left.
    """
    path = folder / "users" / f"{name}.pub"
    with _changing(path.parent):
        kept: list[str] = []
        left = found = False
        text = path.read_text(encoding="utf-8", errors="surrogateescape") if path.exists() else ""
        for written in text.splitlines(keepends=True):
            try:
                line = parse_line(written.encode(errors="surrogateescape").decode(errors="replace"))
            except ValueError:
                kept.append(written)
                continue
            if fingerprint(line.key.public_data) == print_:
                found = True
                continue
            kept.append(written)
            left = left or usable(line)
        if not found:
            raise NotFoundError(f"{name} has no key {print_[:80]} in the keys folder", "see :keys")
        if not left:
            raise ForbiddenError("that is your last key", "add another one first, with :keys add")
        write_whole(path, "".join(kept).encode(errors="surrogateescape"), 0o644)


def count_keys(folder: Path) -> dict[str, int]:
    """The users who have a file in the keys folder, and how many keys are in it."""
    return {
        path.stem: len(read_user_keys(path))
        for path in sorted((folder / "users").glob("*.pub"))
        if valid_user(path.stem)
    }


def remove_user(folder: Path, name: str) -> bool:
    """Takes all keys from a user; whether there was a file of his."""
    path = folder / "users" / f"{name}.pub"
    with _changing(path.parent):
        try:
            path.unlink()
        except FileNotFoundError:
            return False
    return True


@contextlib.contextmanager
def renaming_user(folder: Path, old: str, new: str) -> Iterator[bool]:
    """The keys of `old` are those of `new` once what is inside has succeeded; whether he has any.

    ExistsError where `new` has keys.
    """
    path, target = (folder / "users" / f"{name}.pub" for name in (old, new))
    with _changing(path.parent):
        if target.exists():
            raise ExistsError(f"there is a user {new} already", "choose another name")
        there = path.exists()
        yield there
        if there:
            path.rename(target)


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
