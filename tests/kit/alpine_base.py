"""The pristine Alpine root file system, made as Alpine makes its own minimal one.

That is: apk installs a few packages without running their scripts, busybox's links are made by
hand, root's login is locked. It needs no root, no chroot and no user namespace.
"""

import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

from tests.kit import apk
from tests.kit.process import run

INSTALLED = (
    "alpine-baselayout",
    "alpine-keys",
    "alpine-release",
    "apk-tools",
    "busybox",
    "musl-utils",
)
_RUNS_APK = ("apk-tools", "libapk", "libcrypto3", "libssl3", "musl", "zlib")
_SHADOW_GROUP = 42


def on_host(root: Path, program: str) -> list[str]:
    """The start of a command that runs an Alpine program of the tree `root` outside of it."""
    libraries = f"{root}/lib:{root}/usr/lib"
    return [f"{root}/lib/ld-musl-{apk.ARCH}.so.1", "--library-path", libraries, f"{root}/{program}"]


def make(
    tarball: Path,
    packages: Mapping[str, apk.Package],
    *,
    repository: Path,
    keys: Path,
    mirrors: bytes,
    work: Path,
) -> None:
    """Install from the signed `repository` below the empty folder `work` and write `tarball`.

    `mirrors` is what its /etc/apk/repositories says.
    """
    tool, root = work / "tool", work / "root"
    for name in _RUNS_APK:
        _unpack(packages[name].files, tool)
    command: list[str | Path] = [*on_host(tool, "sbin/apk"), "--initdb"]
    command += ["--root", root, "--arch", apk.ARCH]
    command += ["--no-scripts", "--no-cache", "--no-logfile", "--keys-dir", keys.resolve()]
    command += ["--repositories-file", os.devnull, "--repository", repository.resolve()]
    if os.geteuid() != 0:
        command.append("--usermode")
    run([*command, "add", *INSTALLED])

    for path in run([*on_host(root, "bin/busybox"), "--list-full"]).split():
        applet = root / path
        if not applet.exists() and not applet.is_symlink():
            applet.symlink_to("/bin/busybox")
    shadow = root / "etc/shadow"
    shadow.write_text(shadow.read_text().replace("root::", "root:*:", 1))
    (root / "etc/apk/repositories").write_bytes(mirrors)

    modes = {
        path: node.mode for package in packages.values() for path, node in package.files.items()
    }

    def as_root_would(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        """The entry with the owner and mode that it has, whoever builds this."""
        path = entry.name.removeprefix("./")
        entry.uid = 0
        entry.gid = _SHADOW_GROUP if path == "etc/shadow" else 0
        entry.uname = entry.gname = ""
        entry.mode = modes.get(path, entry.mode)
        return entry

    with tarfile.open(tarball, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(root, arcname=".", filter=as_root_would)


def _unpack(files: Mapping[str, apk.Node], root: Path) -> None:
    for path, node in sorted(files.items()):
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if node.kind == tarfile.DIRTYPE:
            target.mkdir(exist_ok=True)
        elif node.kind == tarfile.SYMTYPE:
            target.symlink_to(node.target)
        else:
            with node.open() as content:
                target.write_bytes(content.read())
            target.chmod(node.mode)
