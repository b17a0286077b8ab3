"""`python -m bench.http`: a script behind a URL, beside Debian's `webhook`, taking turns.

`webhook` runs the script on the host, without any sandbox, and so does the first floor (bench/floor.py),
the least that a server in this language can do; the second has our sandboxes and nothing else. A fresh
connection is curl's, from its start to its end; a kept one is ours, and so is a fresh one that is shown
beside these. Then deliveries: how many a second are stored, each committed before its 202, and how long
one waits at a steady rate. Exit status 0 whatever the figures are, 2 where it cannot be run. What 100,000
waiting deliveries cost: `python -m bench.deliveries`.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import hmac
import itertools
import json
import random
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bench import floor, ours, peers, report
from bench.measure import PATIENCE, BenchError, Contestant, deadline
from bench.report import Target
from bench.run import WARM_UP, folder, interrupted
from tests.kit import Kit, KitError, build

HELLO = b"hello\n"
OURS, WEBHOOK = "cmdsvc, bubblewrap", "webhook"
FORK, SANDBOX = "asyncio and a fork", "asyncio and our sandbox"
FRESH, BARE, KEPT = "fresh (curl)", "fresh", "kept"
CALLERS = 32
RATE = 100
"""Deliveries in a second, where it is steady."""
SECONDS = 10.0
WORKERS = 16
"""Deliveries at most that a server is at, which are kept from running while others are stored."""
SECRET = b"of the hook"
BODY = bytes(2000)
RESULTS = Path(__file__).parent / "results" / "http.json"


@dataclass
class Request(Contestant):
    """Over a socket of our own; `kept` where that stays."""

    port: int = 0
    request: bytes = b""
    kept: socket.socket | None = None

    def _once(self) -> float:
        with deadline(PATIENCE):
            self.begun = time.perf_counter()
            sock = self.kept or socket.create_connection(("127.0.0.1", self.port))
            try:
                sock.sendall(self.request)
                status, body = _reply(sock)
            finally:
                if sock is not self.kept:
                    sock.close()
            took = time.perf_counter() - self.begun
        if status != 200 or body != self.expected:
            raise BenchError(f"{self.name}, {self.connection}: {status} {body[:80]!r}")
        return took


def _reply(sock: socket.socket) -> tuple[int, bytes]:
    data = b""
    while True:
        head, blank, body = data.partition(b"\r\n\r\n")
        if blank and len(body) >= _length(head):
            return int(head.split(b" ", 2)[1]), body
        piece = sock.recv(1 << 16)
        if not piece:
            raise BenchError(f"it hung up: {data[:80]!r}")
        data += piece


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name == b"content-length":
            return int(value)
    raise BenchError(f"how long is the reply? {head!r}")


@contextmanager
def webhook(place: Path, script: Path) -> Iterator[str]:
    """Debian's, which runs `script`; its URL."""
    program = shutil.which("webhook")
    if program is None or shutil.which("curl") is None:
        raise BenchError("there is no webhook, or no curl: apt-get install webhook curl")
    hooks = place / "hooks.json"
    hook = {"id": "hello", "execute-command": str(script)}
    hooks.write_text(json.dumps([{**hook, "include-command-output-in-response": True}]))
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    line = [program, "-hooks", str(hooks), "-ip", "127.0.0.1", "-port", str(port)]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + PATIENCE
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            if process.poll() is not None or time.monotonic() > until:
                raise BenchError("webhook did not start")
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}/hooks/hello"
    finally:
        process.terminate()
        process.wait()


def contestants(stack: ExitStack, name: str, url: str, token: str) -> list[Contestant]:
    """One for each kind of connection, warmed up."""
    where = urlsplit(url)
    port = where.port or 0
    header = f"Authorization: Bearer {token}"
    request = f"GET {where.path} HTTP/1.1\r\nHost: {where.netloc}\r\n{header}\r\n\r\n".encode()
    kept = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
    curl = ["curl", "-q", "--silent", "--fail", "--noproxy", "*", "--header", header, url]
    made = [
        Contestant(name, FRESH, curl, HELLO),
        Request(name, BARE, (), HELLO, port=port, request=request),
        Request(name, KEPT, (), HELLO, port=port, request=request, kept=kept),
    ]
    for contestant in made:
        contestant.warm_up(WARM_UP)
    return made


def take_turns(everybody: list[Contestant], rounds: int) -> None:
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(everybody)
        for contestant in everybody:
            contestant.measure()


class Sender:
    """Over a connection that it keeps."""

    numbers = itertools.count()

    def __init__(self, url: str) -> None:
        self._where = urlsplit(url)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self) -> None:
        """Returns when a delivery of its own was taken. BenchError where it was not."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._where.port)
        reader, writer = self._streams
        signature = hmac.new(SECRET, BODY, hashlib.sha256).hexdigest()
        writer.write(
            f"POST {self._where.path} HTTP/1.1\r\nHost: {self._where.netloc}\r\n"
            f"X-GitHub-Event: push\r\nX-GitHub-Delivery: {next(self.numbers)}\r\n"
            f"X-Hub-Signature-256: sha256={signature}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
            + BODY
        )
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(_length(head))
        if head.split(b" ", 2)[1] != b"202":
            raise BenchError(f"a delivery was not taken: {body!r}")

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


async def most(url: str) -> float:
    """Deliveries a second, from callers that never pause."""
    senders = [Sender(url) for _ in range(CALLERS)]
    begun = time.perf_counter()
    count = 0

    async def call(sender: Sender) -> None:
        nonlocal count
        while time.perf_counter() < begun + SECONDS:
            await sender.send()
            count += 1

    await asyncio.gather(*map(call, senders))
    took = time.perf_counter() - begun
    for sender in senders:
        sender.close()
    return count / took


async def steady(url: str) -> list[float]:
    """Seconds that each took, in order, at RATE: however long those before it take."""
    took: list[float] = []
    idle: list[Sender] = []

    async def call() -> None:
        begun = time.perf_counter()
        sender = idle.pop() if idle else Sender(url)
        await sender.send()
        took.append(time.perf_counter() - begun)
        idle.append(sender)

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as calls:
        for number in range(int(SECONDS * RATE)):
            await asyncio.sleep(max(0.0, begun + number / RATE - time.perf_counter()))
            calls.create_task(call())
    for sender in idle:
        sender.close()
    return sorted(took)


def stored(server: ours.Ours) -> int:
    """Deliveries, as another program sees them: committed."""
    database = sqlite3.connect(f"file:{server.database}?mode=ro", uri=True)
    try:
        return int(database.execute("select count(*) from deliveries").fetchone()[0])
    finally:
        database.close()


def deliveries(server: ours.Ours) -> tuple[float, list[float]]:
    """What `most` and `steady` say, while none of it is run: each script asks for that first."""
    server.create("hold", "#!/bin/sh\nexec sleep 3600\n")
    words = (":hooks", "hold", "new", "push", "--scheme", "github", "--secret", "-")
    server.ask(*words, stdin=SECRET)
    url = f"{server.url}/hook/{ours.USER}/hold/push"

    async def measure() -> tuple[float, list[float]]:
        sender = Sender(url)
        for _ in range(WORKERS):
            await sender.send()
        sender.close()
        await asyncio.sleep(2)
        return await most(url), await steady(url)

    rate, took = asyncio.run(measure())
    sent = next(Sender.numbers)
    if stored(server) != sent:
        raise BenchError(f"{sent} deliveries were taken, {stored(server)} are stored")
    return rate, took


def targets(everybody: list[Contestant], rate: float, took: list[float]) -> list[Target]:
    p50 = {(one.name, one.connection): one.p50 for one in everybody}
    ratio = {c: p50[OURS, c] / p50[WEBHOOK, c] for c in (FRESH, KEPT)}
    return [
        Target(f"hello in a sandbox / {WEBHOOK} without: {FRESH}", ratio[FRESH], 1.0),
        Target(f"hello in a sandbox / {WEBHOOK} without: {KEPT}", ratio[KEPT], 2.0),
        Target(f"deliveries stored by {CALLERS} callers", rate, 300, "/s", least=True),
        Target(f"one of them at {RATE}/s, p99", took[int(0.99 * len(took))] * 1e3, 100, "ms"),
    ]


def show(everybody: list[Contestant], took: list[float], reached: list[Target]) -> None:
    print(f"{'echo hello, ms':24}{'':14}{'n':>6}{'failed':>8}{'p50':>9}{'p95':>9}")
    for one in sorted(everybody, key=lambda one: (one.connection, one.name)):
        times = f"{one.p50 * 1e3:9.2f}{one.p95 * 1e3:9.2f}"
        print(f"{one.name:24}{one.connection:14}{len(one.seconds):6}{len(one.failures):8}{times}")
    print(f"deliveries at {RATE}/s: p50 {statistics.median(took) * 1e3:.1f} ms\n")
    for target in reached:
        sign = ">=" if target.least else "<="
        words = "reached" if target.reached else "NOT reached"
        figure = f"{target.figure or 0:9.2f} {target.unit}"
        print(f"{target.what:58}{figure:14}{sign} {target.target:g} {target.unit:4}{words}")


def bench(kit: Kit, rounds: int) -> dict[str, object]:
    machine = report.machine()
    with folder() as place, ExitStack() as stack:
        script = peers.executable(place / "hello", peers.SCRIPT)
        peer = stack.enter_context(webhook(place, script))
        fork = stack.enter_context(floor.http(script))
        sandbox = stack.enter_context(floor.sandbox(place / "floor", script, kit))
        settings = {"CMDSVC_MAX_WAITING": "1000000", "CMDSVC_DRAIN": "1s"}
        server = stack.enter_context(ours.server(place / "ours", "bubblewrap", kit, **settings))
        server.create("hello", peers.SCRIPT)
        token = server.ask(":tokens", "new")
        server.ask(":access", "hello", "grant", token)
        everybody = [
            *contestants(stack, OURS, f"{server.url}/run/{ours.USER}/hello", token),
            *contestants(stack, WEBHOOK, peer, "none"),
            *contestants(stack, FORK, fork, "none"),
            *contestants(stack, SANDBOX, sandbox, "none"),
        ]
        take_turns(everybody, rounds)
        rate, took = deliveries(server)
        report.finish(machine)
    reached = targets(everybody, rate, took)
    show(everybody, took, reached)
    return {
        "machine": machine,
        "runs": [
            {"name": one.name, "connection": one.connection, "seconds": one.seconds}
            for one in everybody
        ],
        "deliveries_per_second": rate,
        "delivery_seconds": took,
        "targets": [{"what": t.what, "figure": t.figure, "reached": t.reached} for t in reached],
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.http", description=__doc__)
    parser.add_argument("-n", type=int, default=100, metavar="ROUNDS", help="100 by default")
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="FILE")
    given = parser.parse_args()
    if given.n < 1:
        parser.error("-n: at least 1")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    try:
        results = bench(build(), given.n)
    except (BenchError, KitError) as error:
        sys.stderr.write(f"\nbench: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    report.write(given.json, results)
    print(f"\nwritten: {given.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
