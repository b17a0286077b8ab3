"""Unpacks a root file system from stdin into a folder, as a user that can do no harm; run by path.

`unpack.py FOLDER UID USERS`: USERS is a descriptor of a user namespace to be root of, owned by
UID; both are `-` without root, then the process becomes root of a namespace with itself alone.
Either way it may do nothing outside of that namespace, and sees nothing but FOLDER (chroot(2)),
before it reads the first byte. On success stdout is etc/os-release; on failure stderr ends with a
line for the operator.

An archive is taken as hostile: only files, folders and links, below FOLDER, of a bounded number
and size. Devices are left out: a sandbox has its own.
"""

from __future__ import annotations

import copy
import ctypes
import os
import signal
import sys
import tarfile
from collections.abc import Iterator

# Nothing can be imported once the root has changed.
import bz2  # noqa: F401  isort: skip
import lzma
import zlib

CLONE_NEWUSER = 0x10000000
PR_SET_PDEATHSIG = 1
MAX_ENTRIES = 2_000_000
MAX_BYTES = 16 << 30
MAX_OS_RELEASE = 1 << 16
PASSED_ON = 0o7777

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def confine(folder: str, uid: str, users: str) -> None:
    """Gives up every right but those within a user namespace, and every file but `folder`."""
    parent = os.getppid()
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    if users == "-":
        user, group = os.getuid(), os.getgid()
        check(libc.unshare(CLONE_NEWUSER), "unshare")
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"0 {user} 1"),
            ("gid_map", f"0 {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123
                file.write(text)
    else:
        if uid == "0":
            raise OSError(0, "nothing is unpacked as root")
        check(libc.setns(int(users), CLONE_NEWUSER), "setns")
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    if os.getppid() != parent:
        raise OSError(0, "the server is gone")
    os.fchdir(root)
    os.chroot(".")
    os.chdir("/")
    os.close(root)
    os.umask(0o022)


def wanted(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The entries to be unpacked, made harmless. ValueError for what no honest archive has."""
    size = 0
    for number, entry in enumerate(tar):
        if number >= MAX_ENTRIES:
            raise ValueError(f"more than {MAX_ENTRIES} entries")
        size += entry.size
        if size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES >> 30} GiB")
        name = inside(entry.name)
        if not (entry.isreg() or entry.isdir() or entry.issym() or entry.islnk()):
            continue
        if not name and not entry.isdir():
            raise ValueError(f"an entry without a name: {entry.name[:80]!r}")
        entry = copy.copy(entry)  # noqa: PLW2901 - the archive keeps its own
        entry.name = name or "."
        entry.mode = (entry.mode or 0) & PASSED_ON
        if entry.islnk():
            entry.linkname = inside(entry.linkname)
        yield entry


def inside(name: str) -> str:
    """`name` relative to the root. ValueError if it leads out of it."""
    parts = [part for part in name.split("/") if part not in {"", "."}]
    if ".." in parts or "\0" in name:
        raise ValueError(f"an entry outside of the root: {name[:80]!r}")
    return "/".join(parts)


def main() -> int:
    try:
        confine(*sys.argv[1:4])
        with tarfile.open(fileobj=sys.stdin.buffer, mode="r|*", errorlevel=1) as tar:
            tar.extraction_filter = staticmethod(lambda entry, _path: entry)
            tar.extractall("/", members=wanted(tar), numeric_owner=True)  # noqa: S202 - above
        while sys.stdin.buffer.read(1 << 16):  # what comes after the end is no error
            pass
        try:
            with open("/etc/os-release", "rb") as file:  # noqa: PTH123
                sys.stdout.buffer.write(file.read(MAX_OS_RELEASE))
        except OSError:
            pass
    except (OSError, ValueError, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        sys.stderr.write(f"{error}\n".replace("\n", " ").strip() + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
