"""What the engine keeps on disk: bases and package layers, each whole or not there at all.

    downloads/          tarballs that came from a URL
    store/              what sandboxes see; owned by the user that they run as
        bases/ID/root       a root file system; ID is of its tarball
        made/NAME/root      a layer: what packages add to it, an overlay's upper folder
        made/NAME/base      the ID of the base below
        layers/DIGEST       a link to the layer that runs take now
        sources/KEY         the ID that a base's source had last, and the source
        packages/           what builds have fetched
        tmp/                what is being made

A layer that is in use is locked (flock(2), shared): who wants to remove it locks it exclusively.
One that is made again has a name of its own, so that a run that begins has all of the old one or all
of the new one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cmdsvc.engine import Layer as Kept
from cmdsvc.engine import bases
from cmdsvc.recipe import Recipe

FOLDERS = ("bases", "made", "layers", "sources", "packages", "tmp")
DIGEST = re.compile(r"[0-9a-f]{64}")
ID = re.compile(r"[0-9a-f]{32,64}")


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer in use: `paths` of its root file systems below the store, the lowest first."""

    name: str
    paths: tuple[str, ...]
    lock: int

    def close(self) -> None:
        os.close(self.lock)


class Store:
    """`uid`: the user that owns what is kept, None for the server's own."""

    def __init__(self, data_dir: Path, uid: int | None) -> None:
        self.data_dir = data_dir
        self.root = data_dir / "store"
        self.downloads = data_dir / "downloads"
        self.upper = data_dir / "upper"
        """An empty folder, to mount on where there is no better place."""
        self.uid = uid
        self.replaced: set[str] = set()
        """Names of layers that were made again, and are still here for runs that began before."""
        self._sizes: dict[str, int] = {}

    def open(self, *, beside: bool) -> None:
        """Makes the folders. OSError.

        Not `beside` a server that has them open: removes what was being made when one died, and
        layers that were made again since.
        """
        for folder in (self.data_dir, self.downloads, self.upper):
            folder.mkdir(parents=True, exist_ok=True)
        for folder in (self.root, *(self.root / name for name in FOLDERS)):
            folder.mkdir(mode=0o711, exist_ok=True)
            self.own(folder)
        if beside:
            return
        for entry in list((self.root / "tmp").iterdir()):
            remove(entry)
        self._move_in()
        current = self._current()
        for folder in list((self.root / "made").iterdir()):
            if folder.name not in current:
                remove(folder)

    def _move_in(self) -> None:
        """Layers of earlier releases were folders where there are links now."""
        for folder in list((self.root / "layers").iterdir()):
            if not folder.is_symlink() and DIGEST.fullmatch(folder.name):
                self.keep_layer(folder, folder.name)

    def own(self, path: Path) -> None:
        if self.uid is not None:
            os.chown(path, self.uid, self.uid, follow_symlinks=False)

    def has(self, recipe: Recipe) -> bool:
        return (self.root / "layers" / recipe.digest / "base").is_file()

    def stale(self, recipe: Recipe) -> bool:
        """Whether the layer is here, on another base than is here for it now."""
        base = self.base(recipe.base, recipe.tag, recipe.source)
        try:
            below = (self.root / "layers" / recipe.digest / "base").read_text()
        except OSError:
            return False
        return base not in {None, below}

    def current(self, digest: str) -> str:
        """The name of the layer that a digest means now. LookupError if it is not here."""
        try:
            return self._target(digest)
        except OSError:
            raise LookupError(f"layer {digest} is not here") from None

    def hold(self, name: str) -> Layer:
        """The layer of that name, locked until it is closed. LookupError if it is not here."""
        folder = self.root / "made" / name
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            raise LookupError(f"layer {name} is not here") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            base = (folder / "base").read_text()
        except OSError:
            os.close(lock)
            raise LookupError(f"layer {name} is being removed") from None
        return Layer(name, (f"bases/{base}/root", f"made/{name}/root"), lock)

    def made(self, layer: Kept) -> str:
        """The name that a layer has in the store, which may be called by its digest."""
        try:
            return self._target(layer.name)
        except OSError:
            return layer.name

    def _target(self, digest: str) -> str:
        """The name of the layer that a digest means now. OSError where it means none."""
        # Every run asks; a Path takes longer than the kernel.
        return os.readlink(f"{self.root}/layers/{digest}").rpartition("/")[2]  # noqa: PTH115

    def _current(self) -> dict[str, str]:
        """The layers that digests mean now, by name."""
        found = {}
        for link in (self.root / "layers").iterdir():
            with contextlib.suppress(OSError):  # it goes just now
                found[link.readlink().name] = link.name
        return found

    def base(self, base: str, tag: str, source: str) -> str | None:
        """The ID of a base that is here."""
        name = self._named(self.root / "sources" / _key(base, tag, source))[0]
        here = ID.fullmatch(name) and (self.root / "bases" / name / "root").is_dir()
        return name if here else None

    def os_release(self, base: str) -> bytes:
        """The etc/os-release of the base with that ID."""
        return (self.root / "bases" / base / "os-release").read_bytes()

    def remember_base(self, base: str, tag: str, source: str, name: str) -> None:
        target = self.root / "sources" / _key(base, tag, source)
        with self.temporary() as folder:
            file = folder / "source"
            file.write_text(f"{name}\n{source}\n")
            file.replace(target)

    def layers(self, sources: Collection[str]) -> list[Kept]:
        """What is kept. `sources` are those that bases are taken from today."""
        named = map(self._named, (self.root / "sources").iterdir())
        wanted = {name for name, source in named if source in {*sources, ""}}
        found = {
            folder.name: Kept(folder.name, True, self._size(folder), wanted=folder.name in wanted)
            for folder in (self.root / "bases").iterdir()
        }
        current = self._current()
        layers = []
        for folder in (self.root / "made").iterdir():
            with contextlib.suppress(OSError):  # it goes just now
                below = (folder / "base").read_text()
                shared = found[below].size if below in found else 0
                name = current.get(folder.name, folder.name)
                layers.append(Kept(name, False, self._size(folder), below, shared))
        return [*found.values(), *layers]

    def detach(self, layer: Kept) -> Path | None:
        """Takes a layer or a base out of use, whole: where it is now, to be removed from there.

        None where it is in use. It waits for nothing: nobody of this process comes between.
        """
        target = Path(tempfile.mkdtemp(dir=self.root / "tmp"))
        try:
            if layer.base:
                self._detach_base(layer.name, target)
            else:
                self._detach_layer(layer.name, target)
        except FileNotFoundError:  # gone already
            pass
        except BlockingIOError:
            target.rmdir()
            return None
        return target

    def _detach_layer(self, name: str, target: Path) -> None:
        link = self.root / "layers" / name
        made = link.readlink().name if link.is_symlink() else name
        folder = self.root / "made" / made
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            link.unlink(missing_ok=True)
            folder.rename(target / "gone")
        finally:
            os.close(lock)
        self.replaced.discard(made)
        self._sizes.pop(made, None)

    def _detach_base(self, name: str, target: Path) -> None:
        for folder in (self.root / "made").iterdir():
            if (folder / "base").read_text() == name:
                raise BlockingIOError
        for file in list((self.root / "sources").iterdir()):
            if self._named(file)[0] == name:
                file.unlink()
        (self.root / "bases" / name).rename(target / "gone")
        self._sizes.pop(name, None)

    def _named(self, file: Path) -> tuple[str, str]:
        """The base that a file in `sources` names, and the source; "" for what it does not say."""
        with contextlib.suppress(OSError):
            name, _, source = file.read_text().partition("\n")
            return name, source.strip()
        return "", ""

    def _size(self, folder: Path) -> int:
        """Bytes on the disk. What is kept never changes, so it is counted once."""
        size = self._sizes.get(folder.name)
        if size is None:
            size = self._sizes[folder.name] = _disk_usage(folder)
        return size

    def purge(self) -> None:
        """Removes all that is kept. BlockingIOError if a layer is in use."""
        with self.temporary() as folder, contextlib.ExitStack() as held:
            for layer in list((self.root / "made").iterdir()):
                lock = os.open(layer, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                held.callback(os.close, lock)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for kind in ("layers", "made", "bases", "sources", "packages"):
                (self.root / kind).rename(folder / kind)
                (self.root / kind).mkdir(mode=0o711)
                self.own(self.root / kind)
        self._sizes.clear()
        self.replaced.clear()
        for tarball in list(self.downloads.iterdir()):
            remove(tarball)

    @contextlib.contextmanager
    def temporary(self) -> Iterator[Path]:
        """A folder in which something is made; what is still in it at the end is removed."""
        folder = Path(tempfile.mkdtemp(dir=self.root / "tmp"))
        try:
            folder.chmod(0o711)
            self.own(folder)
            yield folder
        finally:
            remove(folder)

    def keep_base(self, made: Path, name: str) -> None:
        """Makes what was made in a temporary folder a base; the first one wins."""
        try:
            made.rename(self.root / "bases" / name)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise

    def keep_layer(self, made: Path, digest: str) -> None:
        """Makes what was made in a folder the layer of that digest, in place of one that is here."""
        name = f"layer-{secrets.token_hex(16)}"
        with self.temporary() as folder:
            link = folder / "link"
            link.symlink_to(f"../made/{name}")
            made.rename(self.root / "made" / name)
            target = self.root / "layers" / digest
            old = {target.readlink().name} if target.is_symlink() else set()
            link.replace(target)
            self.replaced |= old

    def put(self, root: Path, files: Mapping[str, bytes]) -> None:
        """Writes `files` into a layer's root that nothing else was put into yet."""
        for name, content in files.items():
            path = root
            *folders, last = name.split("/")
            if not last or {"", ".", ".."} & {*folders, last}:
                raise ValueError(name)
            for folder in folders:
                path /= folder
                if not path.is_dir():
                    path.mkdir(mode=0o755)
                    self.own(path)
            path /= last
            path.write_bytes(content)
            path.chmod(0o644)
            self.own(path)


def _disk_usage(folder: Path) -> int:
    seen: set[int] = set()
    size = 0
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            with contextlib.suppress(OSError):
                found = os.lstat(os.path.join(where, name))  # noqa: PTH118 - there may be 100,000
                if found.st_ino not in seen:
                    seen.add(found.st_ino)
                    size += found.st_blocks * 512
    return size


def _key(base: str, tag: str, source: str) -> str:
    if bases.is_tarball(source):  # it is what it is, whatever it is called
        tag = ""
    return hashlib.sha256(json.dumps([base, tag, source]).encode()).hexdigest()


def remove(path: Path) -> None:
    """Removes a file or a folder with all that is in it, whatever its modes; follows no link."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    try:
        shutil.rmtree(path)
    except PermissionError:  # folders that their owner may not enter; root never gets here
        path.chmod(stat.S_IRWXU)
        for folder, names, _ in os.walk(path):
            for name in names:
                if not (inside := Path(folder, name)).is_symlink():
                    inside.chmod(stat.S_IRWXU)
        shutil.rmtree(path)
