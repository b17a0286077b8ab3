"""A real PostgreSQL for tests, of the tests' own, from the system's binaries."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL

ACCOUNT = "postgres"
"""It refuses to run as root; Debian's package makes this user."""
LIMIT = 60
"""Seconds for a program of its to end."""


class NoPostgresError(RuntimeError):
    """None can be started here; the message says why."""


class Postgres:
    """A server with all that is its own below a temporary folder.

    It listens on a socket in there, where no password is asked for, and on a port of the loopback,
    where `password` is.
    """

    def __init__(self, folder: Path) -> None:
        self._bin = _binaries()
        self._account = _account()
        self.folder = folder
        self.port = _free_port()
        self.password = secrets.token_hex(8)
        self._process: subprocess.Popen[str] | None = None

    def make(self) -> None:
        self.folder.mkdir(mode=0o700)
        if self._account is not None:
            shutil.chown(self.folder, self._account)
        secret = self.folder / "password"
        secret.write_text(self.password)
        if self._account is not None:
            shutil.chown(secret, self._account)
        self._run(
            "initdb", "-D", self._data, "-U", ACCOUNT, "--no-sync", "-E", "UTF8", "--locale=C.UTF-8",
            "--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={secret}",
        )  # fmt: skip

    def start(self) -> None:
        """Starts it and waits until it answers."""
        self._process = subprocess.Popen(
            [self._bin / "postgres", "-D", self._data, "-k", self.folder, "-p", str(self.port),
             "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **self._as_account(),
        )  # fmt: skip
        log = self._process.stderr
        assert log is not None
        for line in log:
            if "ready to accept connections" in line:
                # Read on: with its pipe full it would wait.
                self._reader = threading.Thread(target=lambda: list(log), daemon=True)
                self._reader.start()
                return
        log.close()
        self._process.wait()
        raise NoPostgresError("it ended while it started")

    def stop(self, number: int = signal.SIGINT) -> None:
        """SIGQUIT is as if it died in the middle of its work."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(LIMIT)
            self._reader.join(LIMIT)
            if self._process.stderr is not None:
                self._process.stderr.close()
            self._process = None

    @property
    def running(self) -> bool:
        return self._process is not None

    def sql(self, statement: str, database: str = ACCOUNT) -> str:
        words = ["-U", ACCOUNT, "-h", self.folder, "-p", self.port, "-d", database]
        return self._run(
            "psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", *words, "-c", statement
        )

    def url(self, database: str) -> str:
        return URL.create(
            "postgresql+asyncpg",
            ACCOUNT,
            database=database,
            query={"host": str(self.folder), "port": str(self.port)},
        ).render_as_string(hide_password=False)

    def tcp_url(self, database: str, password: str | None = None) -> str:
        word = self.password if password is None else password
        return f"postgresql+asyncpg://{ACCOUNT}:{word}@127.0.0.1:{self.port}/{database}"

    @contextmanager
    def database(self, template: str = "template0") -> Iterator[str]:
        """The name of a new one: a copy of `template`, to which nobody is connected."""
        name = f"test_{secrets.token_hex(6)}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield name
        finally:
            if not self.running:
                self.start()
            self.sql(f"DROP DATABASE {name} WITH (FORCE)")

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _as_account(self) -> dict[str, Any]:
        groups = {} if self._account is None else {"extra_groups": []}
        env = {"PATH": os.defpath, "LC_ALL": "C.UTF-8"}
        return {"cwd": "/", "env": env, "user": self._account, "group": self._account, **groups}

    def _run(self, program: str, *words: object) -> str:
        done = subprocess.run(
            [self._bin / program, *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT,
            check=False,
            **self._as_account(),
        )
        if done.returncode:
            raise NoPostgresError(f"{program} ended with {done.returncode}: {done.stdout[-500:]}")
        return done.stdout.strip()


@contextmanager
def server() -> Iterator[Postgres]:
    """One that is running, gone afterwards. NoPostgresError where there can be none."""
    # Not in the folder of pytest's: the path of a socket is bounded, and it is for one user.
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        Path(name).chmod(0o711)
        started = Postgres(Path(name) / "pg")
        started.make()
        started.start()
        try:
            yield started
        finally:
            if started.running:
                started.stop(signal.SIGQUIT)


def _binaries() -> Path:
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = str(versions[-1]) if versions else shutil.which("initdb")
    if found is None:
        raise NoPostgresError("PostgreSQL is not installed (apt-get install postgresql)")
    return Path(found).resolve().parent


def _account() -> str | None:
    """Whom to run it as; None is oneself."""
    if os.geteuid() != 0:
        return None
    try:
        pwd.getpwnam(ACCOUNT)
    except KeyError:
        raise NoPostgresError(f"root cannot run it and there is no user {ACCOUNT}") from None
    return ACCOUNT


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
