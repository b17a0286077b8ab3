"""`cmdsvc demo`: the whole road, shown with the real ssh client on a server that is thrown away."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from cmdsvc import app, config
from cmdsvc.errors import BusyError, CmdError, EngineError, UsageError
from cmdsvc.service.readymade import folder

ALPINE = "https://dl-cdn.alpinelinux.org/alpine/latest-stable/"
START = 60.0
"""Seconds that the server may take until it listens."""
STEP = 300.0
"""Seconds that one line of the transcript may take; a first one fetches a base."""

BROKEN = "#!cmd alpine no-such-package\n#!/bin/sh\ntrue\n"


def demo() -> int:
    """Prints the transcript; 0 where every line of it went as it should."""
    for program in ("ssh", "ssh-keygen"):
        if shutil.which(program) is None:
            raise UsageError(f"{program} is not installed", "apt-get install openssh-client")
    _check_source(config.load())
    with tempfile.TemporaryDirectory(prefix="cmdsvc-demo-") as name, _json_server() as address:
        home = Path(name)
        environment = {
            **os.environ,
            "CMDSVC_DATA_DIR": str(home / "var"),
            "CMDSVC_KEYS_DIR": str(home / "keys"),
            "CMDSVC_SSH_LISTEN": "127.0.0.1:0",
            "CMDSVC_HTTP_LISTEN": "127.0.0.1:0",
            "CMDSVC_NETWORK_ALLOW": address,
            "CMDSVC_LOG": "json",
        }
        try:
            with _server(home, environment) as port:
                return _transcript(_client(home, port), address if _networked(home) else None)
        finally:
            _purge(environment)


def _check_source(settings: config.Settings) -> None:
    if settings.base_alpine != "alpine":
        print(f"# Alpine: {settings.base_alpine}")  # noqa: T201
        return
    try:
        with urllib.request.urlopen(ALPINE, timeout=5):
            print("# Alpine: the Internet's")  # noqa: T201
    except (OSError, urllib.error.URLError) as error:
        raise BusyError(
            f"the Internet's Alpine cannot be reached: {getattr(error, 'reason', error)}",
            "set CMDSVC_BASE_ALPINE and CMDSVC_ALPINE_MIRROR, or run `make demo` in the checkout",
        ) from None


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"ip": "203.0.113.7", "path": self.path}).encode() + b"\n"
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as it is inherited
        pass


@contextlib.contextmanager
def _json_server() -> Iterator[str]:
    """A small JSON server on an address of this machine that a sandbox can be let through to."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: it only asks the routing table
            host = probe.getsockname()[0]
        except OSError:
            host = "127.0.0.1"
    with http.server.ThreadingHTTPServer((host, 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"{host}:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def _server(home: Path, environment: Mapping[str, str]) -> Iterator[int]:
    """`cmdsvc serve` in a process of its own, with one user; its port."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "demo", "-f", home / "id"], check=True
    )
    with (home / "log").open("wb") as log:
        base = [sys.executable, "-m", "cmdsvc"]
        subprocess.run([*base, "user", "add", "demo", home / "id.pub"], env=environment, check=True)
        process = subprocess.Popen(
            [*base, "serve"], env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
    watchdog = threading.Timer(START, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None  # noqa: S101 - asked for above
        words = process.stdout.readline().split()
        watchdog.cancel()
        if not words:
            raise CmdError(f"the server did not start: {(home / 'log').read_text().strip()}")
        yield int(words[words.index("-p") + 1])
    finally:
        watchdog.cancel()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _networked(home: Path) -> bool:
    """Tells what the server says of itself; whether runs have a network."""
    networked = True
    for line in map(json.loads, (home / "log").read_text().splitlines()):
        if line["message"] == "ready":
            print(f"# engine: {line['engine']}")  # noqa: T201
            networked = "internet" in line["networks"]
        elif line["level"] != "info":
            print(f"# {line['message']}")  # noqa: T201
    return networked


def _client(home: Path, port: int) -> Path:
    """An ssh configuration in which `cmd` is the server."""
    path = home / "ssh_config"
    path.write_text(
        f"Host cmd\n  HostName 127.0.0.1\n  Port {port}\n  User demo\n"
        f"  IdentityFile {home / 'id'}\n  IdentitiesOnly yes\n  IdentityAgent none\n"
        f"  UserKnownHostsFile {home / 'known_hosts'}\n  StrictHostKeyChecking accept-new\n"
        "  LogLevel ERROR\n"
    )
    return path


def _transcript(ssh_config: Path, address: str | None) -> int:
    """Runs and shows each line; 0 where all statuses are the expected ones.

    Without an address that runs reach, what needs one is left out.
    """
    script = (folder() / "http.cmd").read_text()
    steps: list[tuple[str, list[str], str, int]] = [
        ("", [":create", "http"], script, 0),
        *(("", ["http", f"http://{address}/", f], "", 0) for f in (".ip", ".path") if address),
        ("echo '{\"a\": [1, 2, 3]}' | ", ["cmd/jq", "-c", ".a | add"], '{"a": [1, 2, 3]}\n', 0),
        ("", ["http"], "", 64),
        ("", [":create", "broken"], BROKEN, 65),
        ("", [":ls"], "", 0),
    ]
    wrong = 0
    for before, words, stdin, expected in steps:
        shown = " ".join(shlex.quote(word) for word in words)
        feed = f" < {words[1]}.cmd" if words[0] == ":create" else ""
        print(f"\n$ {before}ssh cmd {shown}{feed}", flush=True)  # noqa: T201
        status = subprocess.run(
            ["ssh", "-F", ssh_config, "cmd", "--", shlex.join(words)],
            input=stdin.encode(),
            timeout=STEP,
            check=False,
        ).returncode
        if status:
            print(f"# exit status {status}", flush=True)  # noqa: T201
        wrong += status != expected
    print(f"\n# {'all as it should be' if not wrong else f'{wrong} lines went wrong'}")  # noqa: T201
    return int(wrong > 0)


def _purge(environment: Mapping[str, str]) -> None:
    """Removes the layers that the demo built, wherever the engine keeps them."""
    os.environ.update(environment)
    with contextlib.suppress(EngineError):
        asyncio.run(_purged(config.load()))


async def _purged(settings: config.Settings) -> None:
    async with app.open_engine(settings) as engine:
        await engine.purge()
