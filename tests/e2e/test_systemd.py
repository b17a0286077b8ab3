"""Under systemd: its units, the socket that it passes, and what it is told."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from cmdsvc.config import Settings
from tests.e2e.service_lab import PATIENCE, Service

pytestmark = pytest.mark.any_engine

EXPOSURE = {"docker": 1.5, "bubblewrap": 6.6}
"""What docs/operating.md says."""

FILE = """\
operators = ["olga", "ann"]
timeout = "5m"
cpus = 0.5
apk_keys = "keys.d"
user_ca_keys = ["one.pub", "/two.pub"]
database_url = "postgresql+asyncpg://ann:sesame@127.0.0.1/x"
metrics_token = "sesame"
"""


def pass_sockets(*listening: socket.socket) -> list[str]:
    """A command line that serves as systemd has it: with the new process's own number."""
    program = (
        "import fcntl, os, sys;"
        "fds = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in sys.argv[1:]];"
        "[os.dup2(fd, to, inheritable=True) for to, fd in enumerate(fds, 3)];"
        "os.environ |= {'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': str(len(fds))};"
        "os.execv(sys.executable, [sys.executable, '-m', 'cmdsvc', 'serve'])"
    )
    return [sys.executable, "-c", program, *(str(sock.fileno()) for sock in listening)]


def test_a_socket_that_is_passed(own_service: Service, tmp_path: Path):
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told,
    ):
        told.bind(str(tmp_path / "n"))
        told.settimeout(PATIENCE)
        own_service.port = listening.getsockname()[1]
        own_service.process = subprocess.Popen(
            pass_sockets(listening),
            env=own_service.environment
            | {"CMDSVC_SSH_LISTEN": "192.0.2.1:1", "NOTIFY_SOCKET": str(tmp_path / "n")},
            stdout=subprocess.PIPE,
            pass_fds=[listening.fileno()],
            cwd=own_service.home,
        )
        # It listens before the server does: who comes early waits.
        assert own_service.ssh(":whoami").ok()
        assert told.recv(100) == b"READY=1"
        assert own_service.process.stdout is not None
        said = own_service.process.stdout.readline()
        assert said == f"ssh -p {own_service.port} 127.0.0.1\n".encode()
        own_service.create("env", b"#!cmd alpine\n#!/bin/sh\nenv\n").ok()
        assert "LISTEN" not in own_service.ssh("env").ok().text
        assert own_service.stop() == 0
        assert told.recv(100) == b"STOPPING=1"
        with socket.create_connection(listening.getsockname()):
            pass  # it is not closed for those who hold it


def test_two_sockets_that_are_passed(own_service: Service):
    """The second is HTTP's, whatever the settings say; who comes early waits for both."""
    with (
        socket.create_server(("127.0.0.1", 0)) as ssh,
        socket.create_server(("127.0.0.1", 0)) as http,
    ):
        own_service.port, port = ssh.getsockname()[1], http.getsockname()[1]
        own_service.process = subprocess.Popen(
            pass_sockets(ssh, http),
            env=own_service.environment
            | {"CMDSVC_SSH_LISTEN": "192.0.2.1:1", "CMDSVC_HTTP_LISTEN": "192.0.2.1:2"},
            stdout=subprocess.PIPE,
            pass_fds=[ssh.fileno(), http.fileno()],
            cwd=own_service.home,
        )
        assert httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=PATIENCE).text == "ok\n"
        own_service.ssh(":whoami").ok()
        assert own_service.process.stdout is not None
        assert own_service.process.stdout.readline().startswith(b"ssh -p ")
        assert own_service.process.stdout.readline() == f"http://127.0.0.1:{port}\n".encode()
        assert own_service.stop() == 0
        with socket.create_connection(("127.0.0.1", port)):
            pass


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_what_is_passed_is_no_listening_socket(own_service: Service, kind: socket.SocketKind):
    with socket.socket(socket.AF_INET, kind) as other:
        other.bind(("127.0.0.1", 0))
        done = subprocess.run(
            pass_sockets(other), env=own_service.environment, pass_fds=[other.fileno()],
            capture_output=True, cwd=own_service.home, check=False, timeout=PATIENCE,
        )  # fmt: skip
    assert done.returncode == 64
    assert b"not a TCP socket that listens" in done.stderr


def printed(folder: Path, *options: str, **settings: str) -> str:
    """A unit, by the settings in `folder` and these."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CMDSVC_")}
    return subprocess.run(
        [sys.executable, "-m", "cmdsvc", "systemd", *options], env={**kept, **settings},
        check=True, capture_output=True, text=True, timeout=PATIENCE, cwd=folder,
    ).stdout  # fmt: skip


@pytest.mark.parametrize("engine", EXPOSURE)
def test_the_units_are_well_formed_and_hardened(tmp_path: Path, engine: str):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze")
    odd = {"CMDSVC_ENGINE": engine, "CMDSVC_BASE_UBUNTU": '/a "b" 100%n $c\\'}
    for option, name in (([], "cmdsvc.service"), (["--socket"], "cmdsvc.socket")):
        (tmp_path / name).write_text(printed(tmp_path, *option, **odd))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "./cmdsvc.service", "./cmdsvc.socket"],
        capture_output=True, text=True, check=False, timeout=PATIENCE, cwd=tmp_path,
    )  # fmt: skip
    complaints = [line for line in done.stderr.splitlines() if "docker.service" not in line]
    assert (done.returncode, complaints) == (0, []), done
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", "./cmdsvc.service"],
        capture_output=True, text=True, check=False, timeout=PATIENCE, cwd=tmp_path,
    )  # fmt: skip
    level = re.search(r"Overall exposure level for cmdsvc.service: ([0-9.]+)", done.stdout)
    assert level, done
    assert float(level[1]) <= EXPOSURE[engine], done.stdout


def test_a_unit_has_what_the_file_sets_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The service runs in another folder, where that file is not."""
    (tmp_path / "cmdsvc.toml").write_text(FILE)
    unit = printed(tmp_path, CMDSVC_TIMEOUT="7m")
    assert "sesame" not in unit, "everybody can read a unit"
    assert 'Environment="CMDSVC_METRICS_TOKEN' not in unit
    assert "CMDSVC_DATABASE_URL, CMDSVC_METRICS_TOKEN: everybody" in unit
    assert "EnvironmentFile=/etc/cmdsvc.env\n" in unit
    for line in re.findall("^Environment=(.*)$", unit, re.MULTILINE):
        (assignment,) = shlex.split(line)
        monkeypatch.setenv(*assignment.split("=", 1))
    assert Settings().model_dump(include={"operators", "timeout", "cpus", "engine"}) == {
        "operators": ("olga", "ann"),
        "timeout": 420.0,
        "cpus": 0.5,
        "engine": "docker",
    }
    assert Settings().apk_keys == tmp_path / "keys.d"
    assert Settings().user_ca_keys == (tmp_path / "one.pub", Path("/two.pub"))
    assert Settings().data_dir == Path("/var/lib/cmdsvc/var")


def test_without_a_secret_there_is_no_file_for_it(tmp_path: Path):
    assert "EnvironmentFile" not in printed(tmp_path)
