"""The offline kit: Alpine for the tests, made of what PyPI and Debian's mirrors carry.

It makes a pristine Alpine base and signed apk repositories, keeps them, and serves them over
plain HTTP, so that the tests install real packages with real signature checks and need no Docker
Hub and no Alpine mirror. Nothing of it needs root. `python -m tests.kit --help` tells how to use
it by hand.
"""

import platform
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.kit import alpine_base, alpine_image, apk, caching, extras
from tests.kit.debian_base import debian
from tests.kit.process import KitError
from tests.kit.server import Server

__all__ = ["Kit", "KitError", "Server", "build", "debian"]


@dataclass(frozen=True)
class Kit:
    """What was made; all three are for reading only."""

    base: Path
    """A tarball of a root file system like Alpine's own minimal one: it knows Alpine's keys and
    mirrors only."""
    repo: Path
    """The folder to serve, with the repositories main/ community/ broken/ unknown/."""
    keys: Path
    """A folder with the public key that signed all repositories but unknown/."""


def build(cache: Path | None = None) -> Kit:
    """Return the kit that is kept below the folder `cache`, made if it is not there.

    Raises KitError if it cannot be made.
    """
    if platform.machine() != apk.ARCH:
        raise KitError(f"the kit is for {apk.ARCH} only, this is {platform.machine()}")
    here = Path(__file__).parent
    recipe = caching.digest(*sorted([*here.glob("*.py"), *here.glob("*.txt")]))
    folder = caching.keep((cache or caching.default()) / recipe, _make)
    return Kit(folder / "base.tar", folder / "repo", folder / "keys")


def _make(folder: Path) -> None:
    repo, keys, private = folder / "repo", folder / "keys", folder / "private"
    keys.mkdir()
    private.mkdir(0o700)
    key = apk.Key("kit@cmdsvc.invalid")
    key.save_public(keys)
    key.save_private(private)

    with tempfile.TemporaryDirectory(dir=folder) as name:
        work = Path(name)
        with alpine_image.fetch(_new(work / "image")).open("rb") as file:
            image = alpine_image.Image(file)
            packages = alpine_image.packages(image)
            mirrors = image.read("etc/apk/repositories")
        apk.write_repository(repo / "main", packages.values(), key, "kit main")
        alpine_base.make(
            folder / "base.tar",
            packages,
            repository=repo / "main",
            keys=keys,
            mirrors=mirrors,
            work=_new(work / "base"),
        )
        community = extras.community(_new(work / "community"))
        apk.write_repository(repo / "community", community, key, "kit community")
        apk.write_repository(repo / "broken", extras.broken(), key, "kit broken")
        extras.spoil(repo / "broken")
        stranger = apk.Key("stranger@cmdsvc.invalid")
        apk.write_repository(repo / "unknown", extras.unknown(), stranger, "kit unknown")


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder
