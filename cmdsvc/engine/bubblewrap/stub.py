"""A stub, which becomes one sandbox, and how it is spoken with."""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import select
import signal
import socket
from collections.abc import Iterable, Mapping, Sequence

from cmdsvc.errors import EngineError
from cmdsvc.model import Limits

MAX_MESSAGE = 1 << 16
"""Bytes."""
START_TIMEOUT = 20.0
"""Seconds."""


class Stub:
    """A process that is about to become one sandbox, then the sandbox."""

    def __init__(self, number: int, group: str, limits: Limits, sock: socket.socket) -> None:
        self.number = number
        self.group = group
        """The name of its control groups."""
        self.limits = limits
        """With which it was made."""
        self.sock = sock
        self.pidfd = -1
        self.gone = asyncio.Event()
        """It is dead with all that was below it."""
        self.lost = False
        """It went with the spawner."""

    def begin(
        self,
        bwrap: str,
        argv: int,
        files: Mapping[int, int],
        *,
        rlimits: Iterable[tuple[int, int, int]] = (),
        disk: str = "",
        network: int | None = None,
        agent: bool = False,
    ) -> None:
        """Hands over what is to be executed.

        `argv` is a file of NUL-ended words, `files` maps descriptor numbers in bwrap to ours,
        `disk` are mount options, `network` is a network namespace; `agent`: whether a socket is to
        be made. The descriptors remain the caller's.
        """
        message = {
            "bwrap": bwrap,
            "fds": list(files),
            "rlimits": list(rlimits),
            "disk": disk,
            "network": network is not None,
            "agent": agent,
        }
        fds = [argv, *files.values(), *([] if network is None else [network])]
        self.give(json.dumps(message).encode(), fds)

    def give(self, message: bytes, fds: Sequence[int]) -> None:
        """Says something to the launcher. The descriptors remain the caller's."""
        try:
            socket.send_fds(self.sock, [message], fds)
        except OSError as error:
            raise EngineError("the sandbox could not be started", f"{error}") from error

    async def hear(self) -> bytes:
        """What it says next, b"" at its end."""
        await _something(self.sock)
        try:
            return self.sock.recv(MAX_MESSAGE)
        except OSError:
            return b""

    @property
    def alive(self) -> bool:
        """Whether its first process is there, as the kernel says it at this moment."""
        dead = select.poll()
        dead.register(self.pidfd, select.POLLIN)
        return not self.gone.is_set() and not dead.poll(0)

    def kill(self) -> None:
        """Ends it with all that is below; `gone` tells when that is done."""
        with contextlib.suppress(OSError):
            if self.pidfd >= 0 and not self.gone.is_set():
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> None:
        self.sock.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


async def answer(sock: socket.socket) -> list[int]:
    """The descriptors that come with `ready`. EngineError with what went wrong otherwise."""
    sock.setblocking(False)
    try:
        async with asyncio.timeout(START_TIMEOUT):
            await _something(sock)
    except TimeoutError:
        raise EngineError("no sandbox could be made in time", "the machine is too busy") from None
    try:
        data, ancillary, _, _ = sock.recvmsg(MAX_MESSAGE, socket.CMSG_SPACE(4))
    except OSError as error:
        raise EngineError("a sandbox ended while it was made", f"{error}") from error
    fds = array.array("i")
    for _level, _kind, packed in ancillary:
        fds.frombytes(packed)
    for fd in fds:
        os.set_inheritable(fd, False)
    if data != b"ready" or len(fds) != 1:
        raise error_of(data)
    return list(fds)


async def _something(sock: socket.socket) -> None:
    """Until there is something to receive."""
    loop = asyncio.get_running_loop()
    come: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sock, _settle, come)
    try:
        await come
    finally:
        loop.remove_reader(sock)


def _settle(come: asyncio.Future[None]) -> None:
    if not come.done():
        come.set_result(None)


def error_of(data: bytes) -> EngineError:
    return EngineError(
        f"no sandbox can be made: {reason(data)}", "`cmdsvc check` tells what is missing"
    )


def reason(data: bytes) -> str:
    """What went wrong, by a message that begins with `error`."""
    try:
        return str(json.loads(data.removeprefix(b"error "))["text"])
    except (ValueError, KeyError, TypeError):
        return "it ended"
