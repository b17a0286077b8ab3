"""Writing apk packages (format v2) and signed repositories of them.

The format, as apk-tools reads it: a package is three gzip streams one after the other, a tar in
each: the signature of the second stream, the control files (.PKGINFO and scripts), the data. Only
the last tar has its end-of-archive blocks. An index is a signature stream and one more stream.
"""

import base64
import gzip
import hashlib
import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

ARCH = "x86_64"
EPOCH = 1_767_225_600  # 2026-01-01: the build date of packages that have none of their own


@dataclass(frozen=True)
class Node:
    """What lies at a path of a package. Made by `file`, `folder` and `link`."""

    kind: bytes  # as tarfile has it: REGTYPE, DIRTYPE, SYMTYPE
    mode: int
    uid: int = 0
    gid: int = 0
    content: bytes | Path = b""
    target: str = ""

    def open(self) -> io.BufferedReader | io.BytesIO:
        if isinstance(self.content, Path):
            return self.content.open("rb")
        return io.BytesIO(self.content)

    def size(self) -> int:
        content = self.content
        return content.stat().st_size if isinstance(content, Path) else len(content)

    def sha1(self) -> bytes:
        """The checksum that apk keeps of a file's content or of a link's target."""
        if self.kind == tarfile.SYMTYPE:
            return hashlib.sha1(self.target.encode(), usedforsecurity=False).digest()
        with self.open() as stream:
            return hashlib.file_digest(stream, _sha1).digest()


def file(content: bytes | Path, mode: int = 0o644, uid: int = 0, gid: int = 0) -> Node:
    return Node(tarfile.REGTYPE, mode, uid, gid, content)


def folder(mode: int = 0o755, uid: int = 0, gid: int = 0) -> Node:
    return Node(tarfile.DIRTYPE, mode, uid, gid)


def link(target: str) -> Node:
    return Node(tarfile.SYMTYPE, 0o777, target=target)


@dataclass(frozen=True)
class Package:
    """A package to be written: its metadata, its scripts by kind, its files by path."""

    name: str
    version: str
    description: str
    files: Mapping[str, Node]
    depends: tuple[str, ...] = ()
    provides: tuple[str, ...] = ()
    replaces: tuple[str, ...] = ()
    install_if: tuple[str, ...] = ()
    replaces_priority: str = ""
    provider_priority: str = ""
    scripts: Mapping[str, bytes] = field(default_factory=dict)
    triggers: tuple[str, ...] = ()
    arch: str = ARCH
    url: str = "https://example.invalid/"
    license: str = "custom"
    origin: str = ""
    maintainer: str = ""
    commit: str = ""
    built: int = EPOCH

    @property
    def filename(self) -> str:
        return f"{self.name}-{self.version}.apk"


class Key:
    """A new signing key. `name` is the file's in /etc/apk/keys, and it is named in signatures."""

    def __init__(self, label: str) -> None:
        self._private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._public = self._private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self.name = f"{label}-{hashlib.sha256(self._public).hexdigest()[:8]}.rsa.pub"

    def signature(self, stream: bytes) -> bytes:
        """The gzip stream to be put before `stream`."""
        signed = self._private.sign(stream, padding.PKCS1v15(), hashes.SHA256())
        return _stream([(f".SIGN.RSA256.{self.name}", 0o644, signed)], end=False)

    def save_public(self, folder: Path) -> None:
        (folder / self.name).write_bytes(self._public)

    def save_private(self, folder: Path) -> None:
        """Write the private key, readable by its owner only."""
        pem = self._private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        path = folder / self.name.removesuffix(".pub")
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(pem)


def write_repository(folder: Path, packages: Iterable[Package], key: Key, description: str) -> None:
    """Write the packages and their signed index into the new folder `folder`/x86_64."""
    shelf = folder / ARCH
    shelf.mkdir(parents=True)
    entries = [
        _write_package(shelf / package.filename, package, key)
        for package in sorted(packages, key=lambda package: package.name)
    ]
    index = _stream(
        [
            ("DESCRIPTION", 0o644, description.encode()),
            ("APKINDEX", 0o644, "".join(entries).encode()),
        ],
        end=True,
    )
    (shelf / "APKINDEX.tar.gz").write_bytes(key.signature(index) + index)


def _write_package(path: Path, package: Package, key: Key) -> str:
    """Write one package and return its entry in the index."""
    with tempfile.TemporaryFile(dir=path.parent) as data, path.open("wb") as out:
        _write_data(data, package)
        data.seek(0)
        datahash = hashlib.file_digest(data, "sha256").hexdigest()
        installed = sum(node.size() for node in package.files.values())
        info = "".join(f"{name} = {value}\n" for name, value in _info(package, installed, datahash))
        control = _stream(
            [
                (".PKGINFO", 0o644, info.encode()),
                *((f".{kind}", 0o755, text) for kind, text in package.scripts.items()),
            ],
            end=False,
        )
        out.write(key.signature(control) + control)
        data.seek(0)
        shutil.copyfileobj(data, out)
    checksum = hashlib.sha1(control, usedforsecurity=False).digest()
    fields = _index_fields(package, checksum, path.stat().st_size, installed)
    return "".join(f"{letter}:{value}\n" for letter, value in fields if value) + "\n"


def _info(package: Package, installed: int, datahash: str) -> Iterator[tuple[str, str]]:
    single = {
        "pkgname": package.name,
        "pkgver": package.version,
        "pkgdesc": package.description,
        "url": package.url,
        "builddate": str(package.built),
        "size": str(installed),
        "arch": package.arch,
        "origin": package.origin or package.name,
        "license": package.license,
        "commit": package.commit,
        "maintainer": package.maintainer,
        "replaces_priority": package.replaces_priority,
        "provider_priority": package.provider_priority,
        "install_if": " ".join(package.install_if),
        "triggers": " ".join(package.triggers),
        "datahash": datahash,
    }
    yield from ((name, value) for name, value in single.items() if value)
    yield from (("depend", value) for value in package.depends)
    yield from (("provides", value) for value in package.provides)
    yield from (("replaces", value) for value in package.replaces)


def _index_fields(
    package: Package, checksum: bytes, size: int, installed: int
) -> Iterator[tuple[str, str]]:
    yield "C", "Q1" + base64.b64encode(checksum).decode()
    yield "P", package.name
    yield "V", package.version
    yield "A", ARCH  # a noarch package too: apk would look for it in a folder noarch/
    yield "S", str(size)
    yield "I", str(installed)
    yield "T", package.description
    yield "U", package.url
    yield "L", package.license
    yield "o", package.origin or package.name
    yield "m", package.maintainer
    yield "t", str(package.built)
    yield "c", package.commit
    yield "k", package.provider_priority
    yield "D", " ".join(package.depends)
    yield "p", " ".join(package.provides)
    yield "i", " ".join(package.install_if)


def _write_data(out: BinaryIO, package: Package) -> None:
    """Write the data stream: every path, the folders above it first."""
    nodes = dict(package.files)
    for path in package.files:
        for parent in list(PurePosixPath(path).parents)[:-1]:
            nodes.setdefault(str(parent), folder())
    with (
        gzip.GzipFile("", "wb", fileobj=out, compresslevel=6, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path, node in sorted(nodes.items()):
            entry = tarfile.TarInfo(path)
            entry.type, entry.mode, entry.size = node.kind, node.mode, node.size()
            entry.uid, entry.gid, entry.linkname = node.uid, node.gid, node.target
            entry.mtime = package.built
            if node.kind != tarfile.DIRTYPE:
                entry.pax_headers = {"APK-TOOLS.checksum.SHA1": node.sha1().hex()}
            with node.open() as content:
                tar.addfile(entry, content)


def _stream(files: Iterable[tuple[str, int, bytes]], *, end: bool) -> bytes:
    """A gzip stream with a tar of small files in it, with or without its end-of-archive blocks."""
    raw = io.BytesIO()
    tar = tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
    for name, mode, content in files:
        entry = tarfile.TarInfo(name)
        entry.mode, entry.size, entry.mtime = mode, len(content), EPOCH
        tar.addfile(entry, io.BytesIO(content))
    if end:
        tar.close()  # which is what writes them
    return gzip.compress(raw.getvalue(), mtime=0)


def _sha1() -> "hashlib._Hash":
    return hashlib.sha1(usedforsecurity=False)
