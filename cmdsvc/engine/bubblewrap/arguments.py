"""What bwrap is told; pure, but for reading the data files beside this module.

Why each option: docs/design.md. The order matters: bwrap does one after the other.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from pathlib import Path

from cmdsvc.engine import AGENT_PATH, packages
from cmdsvc.model import SCRIPT_PATH, SEARCH_PATH, WORK_DIR

HERE = Path(__file__).parent

SHARED_MEMORY, TEMPORARY = "/dev/shm", "/tmp"  # noqa: S108 - inside

SOCKET, OPTIONS, FILTER, TTY_FILTER, LAUNCH, USERS, FIRST_FILE = range(3, 10)
"""File descriptors, as bwrap finds them."""

LAUNCH_PATH = SCRIPT_PATH.rpartition(b"/")[0] + b"/launch"

BUILD_CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP",
    "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
)  # fmt: skip
"""Within the build's user namespace: what Docker gives to a build, less raw sockets and auditing."""


def filter_file(kind: str) -> Path:
    """`kind` is run, build or tty."""
    return HERE / "seccomp" / f"{kind}.{platform.machine()}.bpf"


def argv() -> bytes:
    """The argument vector of bwrap, each member ended by NUL."""
    command = [b"bwrap", b"--args", b"%d" % OPTIONS, b"--"]
    command += [LAUNCH_PATH, b"%d" % SOCKET, SEARCH_PATH, SCRIPT_PATH]
    return b"".join(word + b"\0" for word in command)


def run_options(
    layers: Iterable[str],
    upper: str,
    *,
    network: bool,
    users: bool,
    files: Iterable[str],
    agent: bool = False,
) -> bytes:
    """The options of a run, each ended by NUL.

    `layers`: root file systems, the lowest first. `upper`: the folder of the sized file system
    that a stub has prepared. `network`: whether the process is in a network namespace already.
    `users`: whether there is a user namespace that maps many. `files`: paths of more files, whose
    content has the descriptors from FIRST_FILE on. `agent`: whether the stub makes a socket.
    """
    words = _namespaces(users=users)
    if not network:
        words += ["--unshare-net"]
    words += ["--cap-drop", "ALL"]
    for layer in layers:
        words += ["--overlay-src", layer]
    words += ["--overlay", f"{upper}/root", f"{upper}/work", "/"]
    words += ["--proc", "/proc", "--dev", "/dev", "--bind", f"{upper}/shm"]
    words += [SHARED_MEMORY]
    words += ["--remount-ro", "/dev", "--dir", WORK_DIR.decode()]
    if agent:
        words += ["--bind", f"{upper}/agent", AGENT_PATH.decode()]
    words += _files(files)
    return _ended([*words, *_last(WORK_DIR.decode())])


def build_options(
    layer: str, folder: str, upper: str, cache: str, *, users: bool, files: Iterable[str]
) -> bytes:
    """The options of a step of a build, each ended by NUL.

    `folder` has the root that becomes the layer; `upper` is the stub's sized file system, for what
    does not stay; `cache` has packages of earlier builds. `users` and `files` are as for a run. The
    network is the host's: the operator's mirror may be on its loopback.
    """
    words = _namespaces(users=users)
    words += ["--cap-drop", "ALL"]
    for capability in BUILD_CAPABILITIES:
        words += ["--cap-add", f"CAP_{capability}"]
    words += ["--overlay-src", layer]
    words += ["--overlay", f"{folder}/root", f"{folder}/work", "/"]
    words += ["--proc", "/proc", "--dev", "/dev", "--bind", f"{upper}/shm"]
    words += [SHARED_MEMORY]
    words += ["--remount-ro", "/dev", "--tmpfs", "/run", "--bind", f"{upper}/root/tmp"]
    words += [TEMPORARY, "--bind", cache, packages.CACHE]
    words += _files(files)
    return _ended([*words, *_last("/")])


def _namespaces(*, users: bool) -> list[str]:
    """All but the network's; the user namespace is a given one, or has a single user."""
    own = ["--unshare-user", "--uid", "0", "--gid", "0", "--disable-userns"]
    return [
        *(["--userns", f"{USERS}", "--assert-userns-disabled"] if users else own),
        *("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup"),
        *("--as-pid-1", "--die-with-parent", "--hostname", "cmdsvc"),
    ]


def _files(paths: Iterable[str]) -> Iterator[str]:
    for number, path in enumerate(paths, FIRST_FILE):
        yield from ("--perms", "0444", "--ro-bind-data", f"{number}", path)


def _last(folder: str) -> list[str]:
    return [
        *("--perms", "0555", "--ro-bind-data", f"{LAUNCH}", LAUNCH_PATH.decode()),
        *("--chdir", folder),
        *("--add-seccomp-fd", f"{FILTER}", "--add-seccomp-fd", f"{TTY_FILTER}"),
    ]


def _ended(words: Iterable[str]) -> bytes:
    return b"".join(word.encode() + b"\0" for word in words)
