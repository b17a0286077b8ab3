"""Sockets of this server's, each mounted into one container alone.

They lie in a folder that only the server's user can enter. That one can be mounted takes a Docker
engine that sees the same files.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cmdsvc.engine.docker.http import ApiError

ELSEWHERE: Final = "the Docker engine is not on the server's machine"
UNSEEN: Final = "the Docker engine does not see the server's files"


@dataclass(frozen=True, slots=True)
class Door:
    """One container's socket; its file is there until `close`."""

    path: Path
    listener: socket.socket
    target: str
    """Where the container has it."""

    @property
    def mount(self) -> dict[str, Any]:
        return mount(self.path, self.target)

    def close(self) -> None:
        self.listener.close()
        with suppress(OSError):  # else the next start removes it
            self.path.unlink()


class Doors:
    """`host` is where the engine is, `target` where containers have their socket."""

    def __init__(self, folder: Path, host: str, target: str, kind: socket.SocketKind) -> None:
        self.folder = folder
        self.here = host.startswith("unix://")
        """Whether the engine can be on this machine."""
        self._target = target
        self._kind = kind

    def clear(self) -> None:
        """Removes what a dead server left. OSError."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                path.unlink()

    def make(self, name: str) -> Door:
        """OSError where the folder cannot be used."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        listener = socket.socket(socket.AF_UNIX, self._kind)
        door = Door(self.folder / name, listener, self._target)
        try:
            # The name of a socket can be no longer than 107 bytes (unix(7)).
            listener.bind(f"/proc/self/fd/{folder}/{name}")
            door.path.chmod(0o666)  # the container's user is another than the server's
            listener.listen()
        except BaseException:
            door.close()
            raise
        finally:
            os.close(folder)
        return door


def mount(source: Path, target: str) -> dict[str, Any]:
    """A file that a container is given, as its description has it."""
    return {"Type": "bind", "Source": str(source), "Target": target, "ReadOnly": True}


def is_unseen(error: ApiError) -> bool:
    """Whether a container was refused because the engine does not see what is to be mounted."""
    return error.status == 400 and "bind source path does not exist" in error.message
