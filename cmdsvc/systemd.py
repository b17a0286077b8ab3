"""Under systemd: the socket that it passes, and what it is told; its unit is in `unit`."""

from __future__ import annotations

import os
import socket
import stat

from cmdsvc.errors import UsageError

FIRST = 3
"""The first descriptor that is passed (sd_listen_fds(3))."""


def listening_socket() -> socket.socket | None:
    """The one that was passed to this process; None where it was not started so.

    UsageError where it is not one TCP socket that listens.
    """
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()):
        return None
    count = os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    hint = "write ListenStream=[ADDRESS:]PORT, once"
    if count != "1" or not stat.S_ISSOCK(os.fstat(FIRST).st_mode):
        raise UsageError(f"{count or 'no'} sockets were passed, and one is served", hint)
    os.set_inheritable(FIRST, False)
    sock = socket.socket(fileno=FIRST)
    listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if sock.family not in {socket.AF_INET, socket.AF_INET6} or not listens:
        raise UsageError("what was passed is not a TCP socket that listens", hint)
    sock.setblocking(False)
    return sock


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
