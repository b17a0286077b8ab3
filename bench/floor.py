"""`python -m bench.floor FOLDER SCRIPT`: the leanest SSH server, to compare with.

asyncssh that lets in whoever has some key, and only forks the script: no sandbox, no store, no
limits. FOLDER has its host_key; it prints its port.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncssh

from bench.measure import Client, run
from cmdsvc.ssh.server import CIPHERS, KEX


class Server(asyncssh.SSHServer):
    def __init__(self, script: str) -> None:
        self._script = script

    def begin_auth(self, username: str) -> bool:
        del username
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        del username, key
        return True

    def session_requested(self) -> Session:
        return Session(self._script)


class Session(asyncssh.SSHServerSession[bytes]):
    def __init__(self, script: str) -> None:
        self._script = script

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        self._chan = chan

    def exec_requested(self, command: str) -> bool:
        del command
        return True

    def eof_received(self) -> bool:
        return True  # the other half stays open

    def session_started(self) -> None:
        self._task = asyncio.create_task(self._serve())

    async def _serve(self) -> None:
        process = await asyncio.create_subprocess_exec(self._script, stdout=subprocess.PIPE)
        out, _ = await process.communicate()
        self._chan.write(out)
        self._chan.exit(process.returncode or 0)


class Prompt(asyncssh.SSHServerConnection):
    """Acknowledges at once: else the client waits for 40 ms, again and again (see ssh/link.py)."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._sock = transport.get_extra_info("socket")
        super().connection_made(transport)

    def data_received(self, data: bytes, datatype: int | None = None) -> None:
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        super().data_received(data, datatype)


async def serve(folder: Path, script: str) -> None:
    loop = asyncio.get_running_loop()
    options = asyncssh.SSHServerConnectionOptions(
        server_factory=lambda: Server(script),
        server_host_keys=[str(folder / "host_key")],
        kex_algs=KEX,
        encryption_algs=CIPHERS,
        compression_algs=("none",),
        line_editor=False,
        encoding=None,
    )
    listener = await loop.create_server(lambda: Prompt(loop, options), "127.0.0.1", 0)
    print(listener.sockets[0].getsockname()[1], flush=True)
    await listener.serve_forever()


@contextmanager
def floor(folder: Path, script: Path) -> Iterator[Client]:
    """It in a process of its own; its client."""
    folder.mkdir(mode=0o700)
    for name in ("host_key", "user_key"):
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)])
    line = [sys.executable, "-m", "bench.floor", str(folder), str(script)]
    process = subprocess.Popen(line, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        yield Client(folder, port, "anybody", folder / "user_key")
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2]))
