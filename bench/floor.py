"""`python -m bench.floor KIND SCRIPT [FOLDER]`: the leanest servers of their kinds, to compare with.

`ssh` is asyncssh that lets in whoever has some key, FOLDER has its host_key; `http` is asyncio that
answers whatever is asked. They only fork the script: no sandbox, no store, no limits. `sandbox` is
`http` with cmdsvc's engine in the place of the fork, as CMDSVC_* set it, and nothing else of the service:
nobody is asked who he is, nothing is looked up or recorded. Each prints its port.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import asyncssh

from bench.measure import Client, run
from cmdsvc import app, config
from cmdsvc.engine import Engine, Invocation
from cmdsvc.model import SCRIPT_PATH, SEARCH_PATH, Network
from cmdsvc.recipe import recipe
from cmdsvc.script import parse
from cmdsvc.ssh.server import CIPHERS, KEX
from tests.kit import Kit

Answer = Callable[[], Awaitable[tuple[bytes, int]]]
"""What a script prints, and its status."""


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
        out, status = await forked(self._script)
        self._chan.write(out)
        self._chan.exit(status)


class Prompt(asyncssh.SSHServerConnection):
    """Acknowledges at once: else the client waits for 40 ms, again and again (see ssh/link.py)."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._sock = transport.get_extra_info("socket")
        super().connection_made(transport)

    def data_received(self, data: bytes, datatype: int | None = None) -> None:
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        super().data_received(data, datatype)


class Request(asyncio.Protocol):
    """One after the other; a request has no body."""

    def __init__(self, answer: Answer) -> None:
        self._make = answer
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._head += data
        if self._head.endswith(b"\r\n\r\n"):
            self._head = b""
            self._task = asyncio.create_task(self._answer())

    async def _answer(self) -> None:
        out, status = await self._make()
        line = b"200 OK" if status == 0 else b"500 Internal Server Error"
        self._transport.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (line, len(out)) + out)


async def forked(script: str) -> tuple[bytes, int]:
    """What it prints, and its status."""
    process = await asyncio.create_subprocess_exec(script, stdout=subprocess.PIPE)
    out, _ = await process.communicate()
    return out, process.returncode or 0


async def serve_http(answer: Answer) -> None:
    loop = asyncio.get_running_loop()
    await _listen(await loop.create_server(lambda: Request(answer), "127.0.0.1", 0))


async def serve_sandbox(script: bytes) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    settings = config.load()
    async with app.open_engine(settings) as engine:
        parsed = parse(b"#!cmd alpine\n" + script)
        made = Invocation(
            run_id="",
            recipe=recipe(parsed, settings.bases),
            argv=(SCRIPT_PATH,),
            script=parsed.body,
            env={b"PATH": SEARCH_PATH},
            limits=settings.limits,
            network=next(n for n in Network if n in engine.networks),
        )
        await engine.build(made.recipe, lambda _: None)
        await serve_http(partial(sandboxed, engine, made, itertools.count()))


async def sandboxed(
    engine: Engine, invocation: Invocation, numbers: Iterator[int]
) -> tuple[bytes, int]:
    job = await engine.start(replace(invocation, run_id=f"floor{next(numbers)}"))
    await job.send_eof()
    out = b"".join([data async for _, data in job.output()])
    outcome = await job.wait()
    await job.aclose()
    return out, outcome.exit_status


async def serve_ssh(folder: Path, script: str) -> None:
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
    await _listen(await loop.create_server(lambda: Prompt(loop, options), "127.0.0.1", 0))


async def _listen(listener: asyncio.Server) -> None:
    print(listener.sockets[0].getsockname()[1], flush=True)
    await listener.serve_forever()


@contextmanager
def ssh(folder: Path, script: Path) -> Iterator[Client]:
    """Its client."""
    folder.mkdir(mode=0o700)
    for name in ("host_key", "user_key"):
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)])
    with _running("ssh", str(script), str(folder)) as port:
        yield Client(folder, port, "anybody", folder / "user_key")


@contextmanager
def http(script: Path) -> Iterator[str]:
    """Its URL."""
    with _running("http", str(script)) as port:
        yield f"http://127.0.0.1:{port}/"


@contextmanager
def sandbox(folder: Path, script: Path, kit: Kit) -> Iterator[str]:
    """Its URL."""
    settings = {
        "CMDSVC_ENGINE": "bubblewrap",
        "CMDSVC_BASE_ALPINE": str(kit.base),
        "CMDSVC_DATA_DIR": str(folder),
    }
    with _running("sandbox", str(script), **settings) as port:
        yield f"http://127.0.0.1:{port}/"


@contextmanager
def _running(*words: str, **settings: str) -> Iterator[int]:
    """One in a process of its own; its port."""
    line = [sys.executable, "-m", "bench.floor", *words]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, env={**os.environ, **settings})
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def serve(kind: str, script: str, *folder: str) -> Coroutine[None, None, None]:
    match kind:
        case "ssh":
            return serve_ssh(Path(*folder), script)
        case "http":
            return serve_http(partial(forked, script))
    return serve_sandbox(Path(script).read_bytes())


if __name__ == "__main__":
    with suppress(asyncio.CancelledError):
        asyncio.run(serve(*sys.argv[1:]))
