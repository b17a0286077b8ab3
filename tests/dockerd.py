"""A real Docker engine for tests: the one that answers already, else a dockerd of the tests' own."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path

import docker

from cmdsvc.engine.docker.images import repository

ATTEMPTS = 3
"""Starts: one fails where another daemon changes the firewall at that moment."""
START_TIMEOUT = 60
"""Seconds until a dockerd has to answer, and until it has to be gone."""


class NoDockerError(RuntimeError):
    """There is no Docker engine here and none can be started; the message says why."""


class Dockerd:
    """A dockerd with data, sockets and containers of its own below a temporary folder.

    `host` is the value for DOCKER_HOST. `stop` ends it as an init system does, `crash` as a power
    cut would, the containers and containerd included; after both `start` brings it back.
    """

    def __init__(self) -> None:
        if os.geteuid() != 0:
            raise NoDockerError("no Docker engine answers, and only root can start one")
        if shutil.which("dockerd") is None:
            _install()
        self.folder = Path(tempfile.mkdtemp(prefix="dockerd-"))
        self.host = f"unix://{self.folder}/docker.sock"
        self._process: subprocess.Popen[str] | None = None
        self._log: deque[str] = deque(maxlen=50)

    @property
    def pid(self) -> int:
        if self._process is None:
            raise NoDockerError("it is not running")
        return self._process.pid

    def start(self) -> None:
        """Starts it and waits until it answers; one after the other of all that tests start."""
        with (Path(tempfile.gettempdir()) / "cmdsvc-dockerd.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for _ in range(ATTEMPTS):
                self._log.clear()
                if self._start():
                    return
        raise NoDockerError(f"dockerd did not start:\n{''.join(self._log)}")

    def _start(self) -> bool:
        _remove(self.folder / "pid", self.folder / "exec" / "containerd" / "containerd.pid")
        self._process = subprocess.Popen(
            ["dockerd", "--data-root", self.folder / "data", "--exec-root", self.folder / "exec",
             "--host", self.host, "--pidfile", self.folder / "pid", "--log-level", "info"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip
        listens: Future[bool] = Future()
        threading.Thread(target=self._read, args=(self._process, listens), daemon=True).start()
        with suppress(TimeoutError):
            if listens.result(START_TIMEOUT):
                return True
        self.crash()
        return False

    def stop(self) -> None:
        """Ends it and waits; its containers end with it."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(START_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
        self._end_others()

    def crash(self) -> None:
        """Kills it, and what it leaves behind with it."""
        self.kill()
        self._end_others()

    def kill(self) -> None:
        """Kills dockerd alone: containerd and the containers go on."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Makes it hang: connections are accepted, nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def remove(self) -> None:
        """Stops it and removes its folder, and the interfaces of its networks with it."""
        if self._process is None and (self.folder / "data").exists():
            with suppress(NoDockerError):
                self.start()
        if self._process is not None:
            self._remove_networks()
        self.stop()
        for mount in reversed(_mounts(self.folder)):
            subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _remove_networks(self) -> None:
        client = docker.DockerClient(base_url=self.host, version="auto")
        try:
            for container in client.containers.list(all=True):
                with suppress(docker.errors.APIError):
                    container.remove(force=True)
            for network in client.networks.list(filters={"type": "custom"}):
                with suppress(docker.errors.APIError):
                    network.remove()
        finally:
            client.close()

    def _read(self, process: subprocess.Popen[str], listens: Future[bool]) -> None:
        """Keeps the end of its log; `listens` is told whether it came so far."""
        if process.stderr is None:
            return
        with process.stderr:
            for line in process.stderr:
                self._log.append(line)
                if "API listen on" in line and not listens.done():
                    listens.set_result(True)
        if not listens.done():
            listens.set_result(False)

    def _end_others(self) -> None:
        """Containerd and the shims: they name our folder on their command line."""
        for pid in _naming(str(self.folder)):
            # A container's processes are its shim's: in a process namespace of their own, they
            # end with their first one.
            for child in _children(pid):
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def dockerd() -> Iterator[Dockerd]:
    """A dockerd that was started for this, and is gone afterwards."""
    daemon = Dockerd()
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.remove()


@contextmanager
def docker_host() -> Iterator[str]:
    """The value for DOCKER_HOST: of the engine that answers there already, else of one of our own."""
    host = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    if answers(host):
        yield host
        return
    with dockerd() as daemon:
        yield daemon.host


def answers(host: str) -> bool:
    """Whether a Docker engine is there."""
    kind, _, place = host.partition("://")
    if kind == "ssh":
        return True  # whoever has set it means it
    with socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET) as client:
        client.settimeout(10)
        try:
            name, _, port = place.rpartition(":")
            client.connect(place if kind == "unix" else (name, int(port)))
            client.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            return b" 200 " in client.recv(4096)
        except (OSError, ValueError):
            return False


def purge(host: str, instance: str) -> None:
    """Removes the containers, images, volumes and networks that carry this instance's label or name."""
    client = docker.DockerClient(base_url=host, version="auto")
    try:
        mine = {"label": f"cmdsvc.instance={instance}"}
        for container in client.containers.list(all=True, filters=mine):
            with suppress(docker.errors.APIError):
                container.remove(force=True, v=True)
        tags = [tag for image in client.images.list() for tag in image.tags]
        for tag in tags:
            if tag.startswith((f"{repository(instance)}:", f"{repository(instance)}-base:")):
                with suppress(docker.errors.APIError):
                    client.images.remove(tag, force=True)
        for volume in client.volumes.list(filters=mine):
            with suppress(docker.errors.APIError):
                volume.remove()
        for network in client.networks.list(filters=mine):
            with suppress(docker.errors.APIError):
                network.remove()
    finally:
        client.close()


def _install() -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "docker.io", "iptables"]):
        done = subprocess.run(
            command, env=environment, check=False, capture_output=True, text=True, timeout=600
        )
        if done.returncode:
            raise NoDockerError(f"{' '.join(command)} failed: {done.stderr[-500:]}")


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _mounts(folder: Path) -> list[str]:
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [target for line in lines if (target := line.split()[1]).startswith(f"{folder}/")]


def _naming(text: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                program = words[0].rpartition(b"/")[2]
                if program.startswith((b"containerd", b"docker")) and text.encode() in b" ".join(
                    words
                ):
                    found.append(int(entry.name))
    return found


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return []
