"""`python -m bench.run`: our server beside OpenSSH's sshd, in one run, taking turns.

All times are of the real ssh client, from its start to its end. Exit status 0 whatever the figures
are, 2 where it cannot be run.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from bench import memory, ours, peers, report
from bench.measure import BenchError, Client, Contestant, run
from bench.report import OURS, SSHD, SSHD_BWRAP, SSHD_DOCKER, SSHD_OUR_KEX, TAKE, Results
from tests.dockerd import NoDockerError
from tests.kit import Kit, KitError, build

HELLO = b"hello\n"
WARM_UP = 3
AFTER_DOCKER = 0.4
"""Seconds in which a Docker engine clears away a container whose client has gone."""
BULK_SIZE = 256 << 20
BULK_ROUNDS = 5
OUR_KEX = "curve25519-sha256"
"""What our server and the client agree on; sshd's own choice is a larger one."""
GCM = "aes128-gcm@openssh.com"
RESULTS = Path(__file__).parent / "results" / "run.json"


class Bench:
    """Everything that is running, until `stack` is closed."""

    def __init__(self, stack: ExitStack, rounds: int) -> None:
        self.results = Results(rounds, BULK_SIZE, machine=report.machine())
        self.servers: dict[str, ours.Ours] = {}
        self.sshd: dict[str, Client] = {}
        self._stack = stack

    def start(self, folder: Path, kit: Kit) -> None:
        place = folder / "sshd"
        place.mkdir()
        groups: Sequence[str] = []
        host = ""
        try:
            host, groups = self._stack.enter_context(peers.docker_host())
        except NoDockerError as error:
            self.results.missing["docker"] = str(error)
        self._stack.enter_context(peers.user(folder / "home", groups))
        peers.unpack(place, kit.base)
        hello = peers.executable(place / "hello", peers.SCRIPT)
        commands = {SSHD: str(hello), SSHD_BWRAP: peers.in_bwrap(place, hello)}
        movers = {**peers.producers(BULK_SIZE), TAKE: peers.TAKER}
        for mover, text in movers.items():
            script = peers.executable(place / mover, text)
            commands[f"{SSHD}: {mover}"] = str(script)
            commands[f"{SSHD_BWRAP}: {mover}"] = peers.in_bwrap(place, script)
        if host:
            docker_run = peers.in_docker(place, kit.base, host, hello)
            commands[SSHD_DOCKER] = self._stack.enter_context(docker_run)
        self.sshd = self._stack.enter_context(peers.sshd(place, commands)).clients
        for engine in ("bubblewrap", "docker") if host else ("bubblewrap",):
            its_host = host if engine == "docker" else ""
            self.servers[engine] = self._stack.enter_context(
                ours.server(folder / engine, engine, kit, its_host)
            )
        self._look_at_idle("after its start")
        for server in self.servers.values():
            server.create("hello", peers.SCRIPT)
            for mover, text in movers.items():
                server.create(mover, text)

    def run(self) -> None:
        """Everybody's runs, a round after the other, each in an order of its own."""
        for name, client in [
            *((OURS[engine], server.client) for engine, server in self.servers.items()),
            *((name, client) for name, client in self.sshd.items() if ":" not in name),
        ]:
            self._enter(name, client)
        self._enter(SSHD_OUR_KEX, self.sshd[SSHD], [f"-oKexAlgorithms={OUR_KEX}"])
        order = list(self.results.runs)
        shuffle = random.Random(0).shuffle
        for number in range(self.results.rounds):
            _tell(f"round {number + 1} of {self.results.rounds}")
            shuffle(order)
            for contestant in order:
                contestant.measure()
        self._look_at_idle("after the runs")

    def move_much(self, folder: Path) -> None:
        """Out, and in."""
        server = self.servers["bubblewrap"]
        source = folder / "much"
        with source.open("wb") as file:
            file.truncate(BULK_SIZE)
        for mover in (*peers.producers(BULK_SIZE), TAKE):
            sent = source if mover == TAKE else None
            self._move(OURS["bubblewrap"], server.client, mover, source=sent)
            self._move(SSHD, self.sshd[f"{SSHD}: {mover}"], mover, source=sent)
            if SSHD_BWRAP not in self.results.missing:
                client = self.sshd[f"{SSHD_BWRAP}: {mover}"]
                self._move(SSHD_BWRAP, client, mover, source=sent)
        self._move(OURS["bubblewrap"], server.client, "dd", GCM)
        self._move(SSHD, self.sshd[f"{SSHD}: dd"], "dd", GCM)
        with memory.growth(server.pid) as growth:
            for contestant in self.results.bulk:
                if contestant.source is not None:
                    contestant.warm_up(1)
                    continue
                counted = run(["sh", "-c", f"{shlex.join(contestant.line)} | wc -c"])
                if int(counted) != BULK_SIZE:
                    raise BenchError(f"{contestant.name} sent {int(counted)} bytes")
            for number in range(BULK_ROUNDS):
                _tell(f"{BULK_SIZE >> 20} MiB, round {number + 1} of {BULK_ROUNDS}")
                for contestant in self.results.bulk:
                    contestant.measure()
        self.results.growth = growth.bytes
        self._look_at_idle(f"after {BULK_SIZE >> 20} MiB out and in, several times")
        for name, client in ((OURS["bubblewrap"], server.client), (SSHD, self.sshd[SSHD])):
            self.results.negotiated[name] = client.negotiated("hello")

    def _move(
        self, name: str, client: Client, mover: str, cipher: str = "", source: Path | None = None
    ) -> None:
        line = client.line(mover, options=[f"-c{cipher}"] if cipher else [])
        label = f"{mover}, {cipher or report.DEFAULT_CIPHER}"
        self.results.bulk.append(Contestant(name, label, line, None, source=source))

    def _enter(self, name: str, client: Client, options: Sequence[str] = ()) -> None:
        """Lets a server take part with both kinds of connection; a peer that cannot is left out."""
        settle = AFTER_DOCKER if "docker" in name else 0.05
        try:
            kept = self._stack.enter_context(client.kept(options))
            both = [
                Contestant(name, connection, client.line("hello", options=words), HELLO, settle)
                for connection, words in (("fresh", options), ("kept", kept))
            ]
            for contestant in both:
                contestant.warm_up(WARM_UP)
        except BenchError as error:
            if name in {SSHD_BWRAP, SSHD_DOCKER}:
                self.results.missing[name] = str(error)
                return
            raise
        self.results.runs += both

    def _look_at_idle(self, when: str) -> None:
        for engine, server in self.servers.items():
            self.results.idle.setdefault(engine, {})[when] = memory.held(server.pid)


@contextmanager
def folder() -> Iterator[Path]:
    """A temporary folder that every user can pass through."""
    path = Path(tempfile.mkdtemp(prefix="cmdsvc-bench-"))
    path.chmod(0o711)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def interrupted(_number: int, _frame: FrameType | None) -> NoReturn:
    """Ends it once; what is cleared away then is not interrupted again."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("-n", type=int, default=50, metavar="ROUNDS", help="50 by default")
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="FILE")
    given = parser.parse_args()
    if given.n < 1:
        parser.error("-n: at least 1")
    if os.geteuid() != 0:
        sys.stderr.write("bench: needs root, for a user without shell start-up files\n")
        return 2
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    try:
        kit = build()
        with folder() as place, ExitStack() as stack:
            bench = Bench(stack, given.n)
            bench.start(place, kit)
            bench.run()
            bench.move_much(place)
            report.finish(bench.results.machine)
    except (BenchError, KitError) as error:
        sys.stderr.write(f"\nbench: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    _tell("")
    print(bench.results.text())
    report.write(given.json, bench.results.json())
    print(f"\nwritten: {given.json}")
    return 0


def _tell(text: str) -> None:
    with suppress(OSError):
        sys.stderr.write(f"\r\033[K{text}" if sys.stderr.isatty() else f"{text}\n" if text else "")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
