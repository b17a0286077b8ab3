"""Under systemd: the sockets that it passes, and what it is told; its units are in `units`."""

from __future__ import annotations

import os
import socket
import stat

from cmdsvc.errors import UsageError

FIRST = 3
"""The first descriptor that is passed (sd_listen_fds(3))."""
HINT = "write ListenStream=[ADDRESS:]PORT, for SSH and then for HTTP"


def listening_sockets() -> list[socket.socket]:
    """Those that were passed to this process: SSH's, and then HTTP's; each may be missing.

    UsageError where one is not a TCP socket that listens.
    """
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()):
        return []
    count = os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if count not in {"1", "2"}:
        raise UsageError(f"{count or 'no'} sockets were passed, and two are served", HINT)
    return [_listening(fd) for fd in range(FIRST, FIRST + int(count))]


def _listening(fd: int) -> socket.socket:
    if stat.S_ISSOCK(os.fstat(fd).st_mode):
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if sock.family in {socket.AF_INET, socket.AF_INET6} and listens:
            sock.setblocking(False)
            return sock
        sock.detach()
    raise UsageError("what was passed is not a TCP socket that listens", HINT)


def notify(state: str) -> None:
    """Tells the service manager (sd_notify(3)), if there is one that asked to be told."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.connect(address.replace("@", "\0", 1) if address[0] == "@" else address)
            sock.send(state.encode())
        except OSError:  # who is not there needs not to be told
            return
