"""Programs of Debian's for Alpine: each brings its own C library and hides it behind a wrapper."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.kit import apk
from tests.kit.process import KitError, run

_LOADER = "ld-linux-x86-64.so.2"


@dataclass(frozen=True)
class Debs:
    """Debian packages, unpacked over each other at `root`; their versions by name."""

    root: Path
    versions: dict[str, str]

    def static(self, path: str) -> apk.Node:
        """A program that needs no libraries."""
        return apk.file(self.root / path, 0o755)

    def with_libraries(self, path: str) -> dict[str, apk.Node]:
        """A program, a private folder with the libraries that it needs, and a wrapper for both.

        Raises KitError if a library is in none of the packages.
        """
        program = self.root / path
        home = f"usr/lib/{program.name}-glibc"
        nodes = {f"{home}/{program.name}": apk.file(program, 0o755)}
        nodes |= {
            f"{home}/{library.name}": apk.file(library, 0o755)
            for library in self._libraries(program)
        }
        command = [f"/{home}/{_LOADER}", "--argv0", '"${0##*/}"', "--library-path", f"/{home}"]
        wrapper = f'#!/bin/sh\nexec {" ".join(command)} /{home}/{program.name} "$@"\n'
        nodes[f"usr/bin/{program.name}"] = apk.file(wrapper.encode(), 0o755)
        return nodes

    def _libraries(self, program: Path) -> list[Path]:
        """The loader, and what it would load for `program`, as it says itself."""
        loaders = self.root.rglob(_LOADER)
        loader = next(path for path in loaders if not path.is_symlink())  # links lead out of root
        folders = ":".join(str(path) for path in sorted(self.root.rglob("x86_64-linux-gnu")))
        told = run([loader, "--inhibit-cache", "--list", "--library-path", folders, program])
        libraries = [Path(path) for path in re.findall(r"=> (/\S+)", told)]
        foreign = [path for path in libraries if not path.is_relative_to(self.root)]
        if foreign or "not found" in told:
            raise KitError(f"{program.name} needs libraries of other Debian packages:\n{told}")
        return [loader, *libraries]


def with_dependencies(names: Iterable[str]) -> list[str]:
    """The packages and all that they depend on, under this release's names."""
    kinds = ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
    options = ["--recurse", *(f"--no-{kind}" for kind in kinds)]
    told = run(["apt-cache", "depends", *options, *names])
    return [line for line in told.splitlines() if re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", line)]


def fetch(names: Iterable[str], folder: Path) -> Debs:
    """Fetch the packages with apt, which checks their signatures, and unpack them in `folder`."""
    command = ["apt-get", "--quiet", "download", *names]
    try:
        run(command, cwd=folder)
    except KitError:
        if os.geteuid() != 0:
            raise
        run(["apt-get", "--quiet", "update"])  # lists that are old name files that are gone
        run(command, cwd=folder)
    root = folder / "root"
    versions = {}
    for deb in sorted(folder.glob("*.deb")):
        run(["dpkg-deb", "--extract", deb, root])
        name, _, version = run(["dpkg-deb", "--show", deb]).strip().partition("\t")
        versions[name.partition(":")[0]] = _as_alpine(version)
    return Debs(root.resolve(), versions)


def _as_alpine(version: str) -> str:
    """The number of a Debian version, as an Alpine version with a release of our own."""
    number = re.match(r"(?:\d+:)?(\d+(?:\.\d+)*)", version)
    if not number:
        raise KitError(f"no number in the Debian version {version}")
    return f"{number[1]}-r100"
