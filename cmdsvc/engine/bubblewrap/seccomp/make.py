"""Compiles rules.txt into the filters of every architecture: `python make.py`, with pyseccomp.

run.ARCH.bpf lets through what rules.txt allows, build.ARCH.bpf also what only builds need;
tty.ARCH.bpf is added to either and refuses the two ioctls that type into a terminal. Each is for
the native architecture alone: calls of another one (32 bits, x32) end the process.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyseccomp

HERE = Path(__file__).parent
ARCHITECTURES = {"x86_64": pyseccomp.Arch.X86_64, "aarch64": pyseccomp.Arch.AARCH64}
BY_BINARY_TREE = 2
"""libseccomp's optimization level 2: found in log n comparisons."""
CTL_OPTIMIZE = 8
"""SCMP_FLTATR_CTL_OPTIMIZE (seccomp.h)."""
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
LOW_WORD = 0xFFFFFFFF
EPERM, ENOSYS = 1, 38


def sections() -> Iterator[tuple[str, list[str]]]:
    """(what stands in the brackets, the words below it)."""
    text = re.sub(r"(?m)^#.*$", "", (HERE / "rules.txt").read_text())
    for kind, _title, body in re.findall(r"(?m)^\[([^\]]+)\](.*)$([^\[]*)", text):
        yield kind, body.split()


def new(action: object, arch: object) -> pyseccomp.SyscallFilter:
    filter_ = pyseccomp.SyscallFilter(action)
    if arch != pyseccomp.system_arch():
        filter_.add_arch(arch)
        filter_.remove_arch(pyseccomp.Arch.NATIVE)
    return filter_


def add(filter_: pyseccomp.SyscallFilter, action: object, name: str, *args: object) -> None:
    """Adds a rule; a call that this architecture or libseccomp does not know needs none."""
    if pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) == -1:
        return
    filter_.add_rule(action, name, *args)


def allow_list(arch: object, *, build: bool) -> pyseccomp.SyscallFilter:
    filter_ = new(pyseccomp.ERRNO(ENOSYS), arch)
    filter_.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
    filter_.set_attr(CTL_OPTIMIZE, BY_BINARY_TREE)
    for kind, words in sections():
        what, _, number = kind.partition(" ")
        if what == "allow" or (what == "build-only" and build):
            for name in words:
                add(filter_, pyseccomp.ALLOW, name)
        elif what == "build-only":
            for name in words:
                add(filter_, pyseccomp.ERRNO(EPERM), name)
        elif what == "allow-argument":
            for value in words[1:]:
                equal = pyseccomp.Arg(int(number), pyseccomp.EQ, int(value, 0))
                add(filter_, pyseccomp.ALLOW, words[0], equal)
        elif what == "allow-without-flags":
            none = pyseccomp.Arg(int(number), pyseccomp.MASKED_EQ, int(words[1], 0), 0)
            add(filter_, pyseccomp.ALLOW, words[0], none)
        elif what == "errno" and int(number) != ENOSYS:
            for name in words:
                add(filter_, pyseccomp.ERRNO(int(number)), name)
    return filter_


def tty(arch: object) -> pyseccomp.SyscallFilter:
    filter_ = new(pyseccomp.ALLOW, arch)
    for request in (TIOCSTI, TIOCLINUX):
        same = pyseccomp.Arg(1, pyseccomp.MASKED_EQ, LOW_WORD, request)
        filter_.add_rule(pyseccomp.ERRNO(EPERM), "ioctl", same)
    return filter_


def filters(machine: str) -> dict[str, bytes]:
    """File name to content, for `machine` as `uname -m` names it."""
    arch = ARCHITECTURES[machine]
    made = {
        f"run.{machine}.bpf": allow_list(arch, build=False),
        f"build.{machine}.bpf": allow_list(arch, build=True),
        f"tty.{machine}.bpf": tty(arch),
    }
    return {name: exported(filter_) for name, filter_ in made.items()}


def exported(filter_: pyseccomp.SyscallFilter) -> bytes:
    with tempfile.TemporaryFile() as file:
        filter_.export_bpf(file)
        file.seek(0)
        return file.read()


def main() -> None:
    for machine in ARCHITECTURES:
        for name, data in filters(machine).items():
            (HERE / name).write_bytes(data)
            sys.stdout.write(f"{name}: {len(data) // 8} instructions\n")


if __name__ == "__main__":
    main()
