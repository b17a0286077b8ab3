"""A real `cmdsvc serve` in a process of its own, and the real ssh client to talk to it."""

from __future__ import annotations

import itertools
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cmdsvc.ssh.keys import add_user
from tests.e2e import forked
from tests.e2e.forked import Forked

WARM = 3
"""Sandboxes at most that wait for runs: what a test left behind is to be told from them."""
PATIENCE = 120.0
"""Seconds that a step may take on a busy machine; nothing waits for it to pass."""

_CALLS = itertools.count()

HELLO = b"#!cmd alpine\n#!/bin/sh\necho hello\n"


def elsewhere() -> str:
    """An address of this machine from which nobody called yet: failed logins are counted by it."""
    number = next(_CALLS)
    return f"127.1.{number // 250}.{number % 250 + 1}"


@dataclass(frozen=True)
class Said:
    """What one ssh client printed, and its exit status."""

    out: bytes
    err: bytes
    status: int

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    def ok(self) -> Said:
        assert self.status == 0, self
        return self

    def failed(self, status: int, *words: str) -> Said:
        """It ended so, and said why in one line of the service's that has all these words."""
        assert self.status == status, self
        last = self.err.decode().strip().splitlines()[-1:]
        assert last, self
        assert last[0].startswith("cmdsvc: "), self
        for word in words:
            assert word in last[0], self
        return self


@dataclass
class Service:
    """A server that is started with `start` and stopped with `stop`, and its clients."""

    home: Path
    settings: Mapping[str, str]
    port: int = 0
    url: str = ""
    """Of HTTP; another one after each start."""
    process: subprocess.Popen[bytes] | Forked | None = None
    fresh: bool = False
    """In an interpreter that starts from nothing, as every one does but in tests."""
    users: list[str] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("CMDSVC_")}
        return kept | {
            "CMDSVC_DATA_DIR": str(self.home / "var"),
            "CMDSVC_KEYS_DIR": str(self.home / "keys"),
            "CMDSVC_SSH_LISTEN": f"127.0.0.1:{self.port}",
            "CMDSVC_HTTP_LISTEN": "127.0.0.1:0",
            "CMDSVC_WARM": str(WARM),
            **self.settings,
        }

    @property
    def log(self) -> str:
        return (self.home / "log").read_text()

    def cli(self, *words: str, stdin: bytes = b"", **settings: str) -> Said:
        """The operator's command line."""
        environment = self.environment | settings
        if not self.fresh:
            status, out, err = forked.run(
                ["cmdsvc", *words], environment, self.home, stdin, PATIENCE
            )
            return Said(out, err, status)
        done = subprocess.run(
            [sys.executable, "-m", "cmdsvc", *words],
            env=environment,
            input=stdin,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
            cwd=self.home,
        )
        return Said(done.stdout, done.stderr, done.returncode)

    def key(self, name: str, kind: str = "ed25519") -> Path:
        """A new key pair of `name`'s; the private one's path."""
        path = self.home / f"id_{name}"
        if not path.exists():
            subprocess.run(
                ["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", name, "-f", path], check=True
            )
        return path

    def add_user(self, name: str, *options: str) -> None:
        """By `cmdsvc user add`, or what it does before there is a store, which takes no process."""
        public = Path(f"{self.key(name)}.pub")
        environment = self.environment
        there = (
            "CMDSVC_DATABASE_URL" in environment or Path(environment["CMDSVC_DATA_DIR"]).exists()
        )
        if options or there:
            self.cli("user", "add", name, str(public), *options).ok()
        else:
            add_user(Path(environment["CMDSVC_KEYS_DIR"]), name, public.read_text())
        self.users.append(name)

    def start(self, *module: str) -> None:
        """Starts the server; it listens on return. The same port is used again after a restart.

        `module`, with its arguments, in the place of cmdsvc itself.
        """
        with (self.home / "log").open("ab") as log:
            line = [*(module or ("cmdsvc", "serve"))]
            if self.fresh:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", *line],
                    env=self.environment,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    cwd=self.home,
                )
            else:
                self.process = forked.popen(line, self.environment, self.home, log)
        assert self.process.stdout is not None
        words = self.process.stdout.readline().decode().split()
        assert words[:2] == ["ssh", "-p"], self.log
        self.port = int(words[2])
        self.url = self.process.stdout.readline().decode().strip()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends the server; its exit status."""
        process, self.process = self.process, None
        assert process is not None
        process.send_signal(number)
        try:
            return process.wait(PATIENCE)
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def command_line(
        self, *options: str, user: str = "alice", key: Path | None = None
    ) -> list[str]:
        """The ssh client's, up to the host's name."""
        return [
            *("ssh", "-F", "none", "-p", str(self.port), "-l", user),
            *(
                "-i",
                str(key or self.key(user)),
                "-o",
                "IdentitiesOnly=yes",
                "-o",
                "IdentityAgent=none",
            ),
            *("-o", f"UserKnownHostsFile={self.home / 'known_hosts'}"),
            *(
                "-o",
                "StrictHostKeyChecking=accept-new",
                "-o",
                "LogLevel=ERROR",
                "-o",
                "BatchMode=yes",
            ),
            *options,
            "127.0.0.1",
        ]

    def ssh(
        self,
        *words: str,
        stdin: bytes = b"",
        user: str = "alice",
        options: tuple[str, ...] = (),
        key: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Said:
        """Runs `words`, quoted for the server, to the end."""
        return self.raw(
            shlex.join(words), stdin=stdin, user=user, options=options, key=key, env=env
        )

    def raw(
        self,
        command: str,
        *,
        stdin: bytes = b"",
        user: str = "alice",
        options: tuple[str, ...] = (),
        key: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Said:
        """Sends `command` as it is; "" asks for a shell."""
        done = subprocess.run(
            [*self.command_line(*options, user=user, key=key), *filter(None, [command])],
            input=stdin,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
            env={**os.environ, **(env or {})},
        )
        return Said(done.stdout, done.stderr, done.returncode)

    def popen(
        self, *words: str, user: str = "alice", options: tuple[str, ...] = ()
    ) -> subprocess.Popen[bytes]:
        """A client that goes on; the caller ends it."""
        return subprocess.Popen(
            [*self.command_line(*options, user=user), shlex.join(words)],
            bufsize=0,  # `communicate` would not see what was read ahead
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def create(self, name: str, source: bytes | str, user: str = "alice") -> Said:
        data = source.encode() if isinstance(source, str) else source
        return self.ssh(":create", name, stdin=data, user=user)
