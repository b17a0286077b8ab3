"""How long the real ssh client takes, from its start to its end."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

PATIENCE = 120
"""Seconds after which a program is taken for hanging."""


class BenchError(Exception):
    """It cannot go on; the message says why."""


@dataclass(frozen=True, slots=True)
class Client:
    """The OpenSSH client for one server, with the same options for every server."""

    folder: Path
    port: int
    user: str
    key: Path

    def line(self, *words: str, options: Sequence[str] = (), log: str = "ERROR") -> list[str]:
        """A command line; `words` is what the server is asked to do."""
        settings = [
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "StrictHostKeyChecking=accept-new",
            f"UserKnownHostsFile={self.folder / 'known_hosts'}",
            f"LogLevel={log}",
            "BatchMode=yes",
        ]
        line = ["ssh", "-F", "none", "-p", str(self.port), "-l", self.user, "-i", str(self.key)]
        return [*line, *(f"-o{setting}" for setting in settings), *options, "127.0.0.1", *words]

    @contextmanager
    def kept(self, options: Sequence[str] = ()) -> Iterator[Sequence[str]]:
        """A connection that stays (ControlMaster); the options with which a client uses it."""
        with tempfile.TemporaryDirectory(prefix="kept-", dir=self.folder) as folder:
            option = f"-oControlPath={folder}/socket"
            try:
                run(self.line(options=[*options, "-M", "-N", "-f", option]))
                yield [option]
            finally:
                with suppress(BenchError):
                    run(self.line(options=["-O", "exit", option]))

    def negotiated(self, *words: str) -> dict[str, str]:
        """What a connection agreed on, as the client tells it: `kex` and `cipher`."""
        line = self.line(*words, options=["-n"], log="DEBUG1")
        done = subprocess.run(line, capture_output=True, check=False, timeout=PATIENCE)
        found = {}
        for text in done.stderr.decode(errors="replace").splitlines():
            if "kex: algorithm: " in text:
                found["kex"] = text.split()[3]
            elif "kex: server->client cipher: " in text:
                found["cipher"] = text.split()[4]
        return found


@dataclass
class Contestant:
    """One way to run a command, and how long each run took.

    `connection` is "fresh" or "kept". `line` is the client's; `expected` what it must print, None where that is not kept. `settle` is
    how many seconds the machine gets after a run to finish what the client did not wait for.
    """

    name: str
    connection: str
    line: Sequence[str]
    expected: bytes | None
    settle: float = 0.05
    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    source: Path | None = None
    """What the client sends; None: nothing."""
    begun: float = 0.0
    """When the newest run began (perf_counter)."""

    def warm_up(self, times: int) -> None:
        """Runs that do not count. BenchError where one fails."""
        for _ in range(times):
            self._once()
            time.sleep(self.settle)

    def measure(self) -> None:
        """One run that counts; a failure is kept as such."""
        try:
            self.seconds.append(self._once())
        except BenchError as error:
            self.failures.append(str(error))
        time.sleep(self.settle)

    def _once(self) -> float:
        source = self.source or Path(os.devnull)
        with tempfile.TemporaryFile() as words, source.open("rb") as stdin, deadline(PATIENCE):
            stdout = subprocess.DEVNULL if self.expected is None else subprocess.PIPE
            self.begun = time.perf_counter()
            process = subprocess.Popen(self.line, stdin=stdin, stdout=stdout, stderr=words)
            try:
                out = process.stdout.read() if process.stdout else None
                status = process.wait()
                took = time.perf_counter() - self.begun
            except BaseException:
                process.kill()
                process.wait()
                raise
            finally:
                if process.stdout:
                    process.stdout.close()
            if status or out != self.expected:
                raise BenchError(
                    f"{self.name}, {self.connection}: status {status}, {(out or b'')[:80]!r}{_end(words)}"
                )
        return took

    @property
    def p50(self) -> float:
        return statistics.median(self.seconds)

    @property
    def p95(self) -> float:
        """By linear interpolation between the two nearest."""
        ordered = sorted(self.seconds)
        place = 0.95 * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def run(line: Sequence[str], stdin: IO[bytes] | None = None, user: str | None = None) -> bytes:
    """Runs a program to its end; its stdout. BenchError with its words where it fails.

    As `user`, it has no other groups.
    """
    # A file for its stderr: who goes on in the background would hold a pipe open.
    with tempfile.TemporaryFile() as words:
        try:
            done = subprocess.run(
                line,
                stdin=stdin or subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=words,
                check=False,
                timeout=PATIENCE,
                user=user,
                group=user,
                extra_groups=None if user is None else [],
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BenchError(f"{line[0]}: {error}") from error
        if done.returncode:
            raise BenchError(f"{line[0]} ended with {done.returncode}{_end(words)}")
    return done.stdout


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """BenchError in the middle of a call that blocks for too long.

    A timeout of subprocess's own would poll, with waits as long as what is measured.
    """

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise BenchError(f"no end within {seconds:g} s")

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _end(words: IO[bytes]) -> str:
    words.seek(0)
    text = words.read().decode(errors="replace").strip()
    return f": {text[-500:]}" if text else ""
