"""Compiles launch.c for every architecture: `python make.py`, with gcc and its cross compilers."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

COMPILERS = {"x86_64": "x86_64-linux-gnu-gcc", "aarch64": "aarch64-linux-gnu-gcc"}
FLAGS = [
    *("-std=c11", "-Os", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-fno-ident", "-s"),
    *("-static", "-nostdlib", "-nostartfiles", "-no-pie", "-fno-pie"),
    *("-fno-stack-protector", "-fno-asynchronous-unwind-tables"),
    *("-Wl,--build-id=none", "-Wl,-z,noseparate-code", "-Wl,-z,norelro", "-Wl,-z,noexecstack"),
]
HERE = Path(__file__).parent


def compiled(machine: str) -> bytes:
    """The program for `machine`, as `uname -m` names it."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "launch"
        subprocess.run([COMPILERS[machine], *FLAGS, "-o", out, HERE / "launch.c"], check=True)
        return out.read_bytes()


def main() -> None:
    for machine in COMPILERS:
        data = compiled(machine)
        (HERE / f"launch.{machine}").write_bytes(data)
        sys.stdout.write(f"{machine}: {len(data)} bytes\n")


if __name__ == "__main__":
    main()
