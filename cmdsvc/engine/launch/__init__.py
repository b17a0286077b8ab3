"""The program that is the first of a sandbox, and how it is handed a run: the same on both engines.

A run's streams are pipes that it is given: nothing stands between the program and the server.
"""

from __future__ import annotations

import platform
from pathlib import Path

from cmdsvc.engine.launch.job import READY, LaunchedJob
from cmdsvc.engine.launch.task import Handed, Task, hand_over, in_memory, pipe

__all__ = [
    "MACHINES",
    "READY",
    "Handed",
    "LaunchedJob",
    "Task",
    "hand_over",
    "in_memory",
    "pipe",
    "program",
]

MACHINES = ("x86_64", "aarch64")
"""As `uname -m` has them: those for which there is one."""


def program() -> Path:
    """The one for this machine."""
    return Path(__file__).with_name(f"launch.{platform.machine()}")
