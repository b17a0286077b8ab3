"""The caller's SSH agent in a container: a socket of this server's, mounted into that one alone.

Such sockets lie in a folder that only the server's user can enter. That one can be mounted takes a
Docker engine that sees the same files.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cmdsvc.engine import AGENT_PATH, Agent
from cmdsvc.engine.docker.http import ApiError

ELSEWHERE: Final = "the Docker engine is not on the server's machine"
UNSEEN: Final = "the Docker engine does not see the server's files"


@dataclass(frozen=True, slots=True)
class Door:
    """One run's socket; its file is there until `close`."""

    path: Path
    listener: socket.socket

    @property
    def mount(self) -> dict[str, Any]:
        """As a container's description has it."""
        target = AGENT_PATH.decode()
        return {"Type": "bind", "Source": str(self.path), "Target": target, "ReadOnly": True}

    def hand_over(self, agent: Agent) -> None:
        agent.listen(self.listener.dup())
        self.listener.close()

    def close(self) -> None:
        self.listener.close()
        self.path.unlink(missing_ok=True)


class Doors:
    def __init__(self, folder: Path, host: str) -> None:
        self._folder = folder
        self.here = host.startswith("unix://")
        """Whether the engine can be on this machine."""

    def clear(self) -> None:
        """Removes what a dead server left. OSError."""
        if self._folder.is_dir():
            for path in self._folder.iterdir():
                path.unlink()

    def make(self, run_id: str) -> Door:
        """OSError where the folder cannot be used."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        door = Door(self._folder / run_id, listener)
        try:
            # The name of a socket can be no longer than 107 bytes (unix(7)).
            listener.bind(f"/proc/self/fd/{folder}/{run_id}")
            door.path.chmod(0o666)  # the container's user is another than the server's
            listener.listen()
        except BaseException:
            door.close()
            raise
        finally:
            os.close(folder)
        return door


def is_unseen(error: ApiError) -> bool:
    """Whether a container was refused because the engine does not see what is to be mounted."""
    return error.status == 400 and "bind source path does not exist" in error.message
