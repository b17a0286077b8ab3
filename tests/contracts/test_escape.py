"""What a script must not see or do, tried from inside, for real.

`probe.c` tries it call by call; here is what each engine lets through, and why that does no harm.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from cmdsvc.model import Network, Terminal
from tests.availability import unavailable
from tests.contracts import engine_host as host
from tests.contracts.engine_lab import CANARY, PATIENCE, Lab, Result, Transcript, marker

pytestmark = pytest.mark.asyncio(loop_scope="session")

ALLOWED = {
    "kill all": "only its own processes are in its namespace",
    "memfd_create": "own memory",
    "write /tmp": "own",
    "write /cmd": "own",
    "socket": "in a network of its own",
    "read /proc/self/status": "about itself",
    "write /dev/null": "",
}
"""Allowed everywhere; a probe that could not do these would prove nothing."""

DIFFERENCES: Mapping[str, Mapping[str, str]] = {
    "bubblewrap": {},
    "docker": {
        "open /proc/1/mem": "docker-init, of its own container and user, with nothing in it",
    },
}
"""What one engine lets through besides, with the reason. It may, it need not."""

REFUSALS = {
    errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOENT, errno.ENODATA, errno.ESRCH, errno.EROFS,
    errno.ENXIO, errno.EIO, errno.ENOTDIR, errno.ECONNREFUSED, errno.ENETUNREACH,
    errno.EHOSTUNREACH, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT,
    errno.ETXTBSY,
}  # fmt: skip
"""What a refusal looks like. Another error may mean that the call got further than it should."""

OTHER_REFUSALS = {
    **{name: {errno.EINVAL} for name in ("setuid", "setgid", "chown")},  # an id that is not mapped
    "TIOCLINUX": {errno.ENOTTY},  # not a virtual console
}

TERMINAL_ALLOWED = {
    "bubblewrap": {"TIOCGWINSZ"},
    # Its terminal is made for the run alone and nobody reads it afterwards.
    "docker": {"TIOCGWINSZ", "TIOCSTI", "TIOCSTI with high bits"},
}


@dataclass(frozen=True)
class Outside:
    """What is on the host for a script to find."""

    file: Path
    secret: str
    port: int
    abstract: str
    process: subprocess.Popen[bytes]
    mark: str
    shm_key: int

    def arguments(self, mode: str) -> list[str]:
        return [
            mode, str(self.file), str(self.port), self.abstract, str(self.process.pid), str(self.shm_key),
        ]  # fmt: skip


@pytest.fixture(scope="module")
def outside() -> Iterator[Outside]:
    """A file that all may read, listeners, and a process with a secret."""
    with tempfile.TemporaryDirectory(prefix="outside-") as name, on_the_host(Path(name)) as things:
        yield things


@contextlib.contextmanager
def on_the_host(folder: Path) -> Iterator[Outside]:
    folder.chmod(0o755)
    file = folder / "host-file"
    secret, abstract, mark = secrets.token_hex(16), f"cmdsvc-{secrets.token_hex(8)}", marker()
    file.write_text(secret)
    file.chmod(0o644)
    with socket.socket() as inet, socket.socket(socket.AF_UNIX) as unix:
        inet.bind(("0.0.0.0", 0))
        unix.bind(f"\0{abstract}")
        inet.listen()
        unix.listen()
        process = subprocess.Popen(
            [sys.executable, "-c", "print('up', flush=True); input()", mark],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "SECRET": secret},
        )
        with process:
            assert process.stdout
            process.stdout.readline()
            port = inet.getsockname()[1]
            yield Outside(file, secret, port, abstract, process, mark, secrets.randbits(30) + 1)
            process.terminate()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def neighbour(lab: Lab, probe: bytes, outside: Outside) -> AsyncIterator[Transcript]:
    """Another run, at the same time, with a file, sockets and shared memory of the same names."""
    async with lab.job(probe, "share", *_inside(outside)) as job:
        talk = Transcript(job)
        assert (await talk.line()).startswith("ready\t")
        yield talk


def _inside(outside: Outside) -> list[str]:
    return ["/tmp/neighbour", *outside.arguments("")[2:]]


def verdicts(result: Result) -> dict[str, tuple[str, int]]:
    assert result.status == 0, result
    rows = [line.split("\t") for line in result.lines]
    assert rows[-1] == ["end", "allowed", "0"], "the probe did not get to its end"
    return {name: (what, int(number)) for name, what, number in rows[:-1]}


def surprises(
    seen: Mapping[str, tuple[str, int]], required: set[str], tolerated: set[str]
) -> dict[str, str]:
    found = {}
    for name, (what, number) in seen.items():
        refused = (what == "killed" and number == 31) or (
            what == "denied" and number in REFUSALS | OTHER_REFUSALS.get(name, set())
        )
        if name in required:
            if what != "allowed":
                found[name] = f"{what} {errno.errorcode.get(number, number)}, should be allowed"
        elif not refused and not (what == "allowed" and name in tolerated):
            found[name] = f"{what} {errno.errorcode.get(number, number)}"
    return found


async def test_what_a_script_can_do(
    lab: Lab, probe: bytes, outside: Outside, neighbour: Transcript
) -> None:
    result = await lab.run(probe, *outside.arguments("all"))
    seen = verdicts(result)
    assert len(seen) > 100
    assert set(ALLOWED) <= set(seen)
    assert set(DIFFERENCES[lab.name]) <= set(seen)
    assert not surprises(seen, set(ALLOWED), set(DIFFERENCES[lab.name]))


async def test_the_neighbours_things_are_not_there(
    lab: Lab, probe: bytes, outside: Outside, neighbour: Transcript
) -> None:
    """The same names, looked for where the other run has them."""
    result = await lab.run(probe, "all", *_inside(outside))
    seen = verdicts(result)
    for name in (
        "host file",
        "host loopback",
        "host abstract socket",
        "shared memory of another run",
    ):
        assert seen[name][0] == "denied", name
    told = (await lab.run("cat /proc/*/cmdline; ls -A /tmp /cmd /dev/shm")).ok()
    assert b"neighbour" not in told
    assert b"share" not in told


async def test_what_a_script_can_do_to_its_terminal(
    lab: Lab, probe: bytes, outside: Outside
) -> None:
    async with lab.job(
        probe, *outside.arguments("terminal"), terminal=Terminal("xterm", 80, 24)
    ) as job:
        seen = verdicts(await Transcript(job).end())
    assert seen["TIOCGWINSZ"][0] == "allowed", "not a terminal"
    assert not surprises(seen, {"TIOCGWINSZ"}, TERMINAL_ALLOWED[lab.name])


async def test_host_processes_are_not_seen(lab: Lab, outside: Outside) -> None:
    result = await lab.run(
        "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline; cat $p/environ; echo; done"
    )
    told = result.ok().decode(errors="replace")
    assert outside.mark not in told
    assert outside.secret not in told
    assert os.environ[CANARY] not in told
    count = await lab.run("set -- /proc/[0-9]*; echo $#")
    assert int(count.ok()) < 6, "more processes than a sandbox has"


async def test_a_script_has_no_privileges(lab: Lab) -> None:
    result = await lab.run("cat /proc/self/status")
    status = dict(line.split(":\t", 1) for line in result.lines if ":\t" in line)
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"


async def test_a_script_is_nobody_on_the_host(lab: Lab) -> None:
    """Its user, as the host knows it, is not root."""
    mark = marker()
    async with lab.job("echo ready; read -r x", mark) as job:
        await Transcript(job).line()
        pids = host.with_argument(mark)
        assert pids
        users = {host.user_of(pid) for pid in pids}
    assert 0 not in users


async def test_devices(lab: Lab) -> None:
    result = await lab.run("ls -A /dev; find /dev -type b")
    assert set(result.lines) <= {
        "console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm",
        "stderr", "stdin", "stdout", "tty", "urandom", "zero",
    }  # fmt: skip


async def test_mounts(lab: Lab) -> None:
    """No block device, and nothing of the host, is mounted where a script can write or read it."""
    result = await lab.run("cat /proc/self/mountinfo")
    for line in result.lines:
        fields, _, source = line.partition(" - ")
        where, options = fields.split()[4], fields.split()[5].split(",")
        kind = source.split()[0]
        if where in ("/etc/hosts", "/etc/resolv.conf", "/etc/hostname"):
            assert lab.name == "docker"  # files that the engine makes for the container
            continue
        assert kind in {
            "overlay",
            "proc",
            "tmpfs",
            "devpts",
            "mqueue",
            "sysfs",
            "cgroup",
            "cgroup2",
            "devtmpfs",
            "ext4",
            "xfs",
            "btrfs",
        }, line
        if kind in {"ext4", "xfs", "btrfs", "devtmpfs"}:
            # Single device nodes and files that a sandbox is given; none of them a folder.
            assert where.startswith(
                ("/dev/", "/proc/", "/sbin/docker-init", "/usr/sbin/docker-init")
            ), line
        if kind in {"sysfs", "cgroup", "cgroup2"}:
            assert "ro" in options, line


async def test_host_files_are_not_there(lab: Lab, outside: Outside) -> None:
    result = await lab.run(
        'cat "$1" 2>/dev/null; ls -d /work /home/* /var/lib/docker /oldroot /newroot 2>/dev/null;'
        "cat /etc/hostname /etc/shadow 2>/dev/null; true",
        str(outside.file),
    )
    told = result.ok().decode(errors="replace")
    assert outside.secret not in told
    assert "/oldroot" not in told
    assert "/var/lib/docker" not in told


async def test_without_a_network_there_is_none(lab: Lab, outside: Outside) -> None:
    result = await lab.run("tail -n +3 /proc/net/dev; cat /proc/net/route | tail -n +2")
    names = re.findall(r"^\s*(\w+):", result.ok().decode(), re.MULTILINE)
    assert set(names) <= {
        "lo",
        "tunl0",
        "sit0",
        "ip6tnl0",
        "ip_vti0",
        "ip6_vti0",
        "gre0",
        "gretap0",
        "erspan0",
        "ip6gre0",
    }
    result = await lab.run(REACH, str(outside.port), *host_addresses())
    assert result.ok() == b"no way out\n"


REACH = """
    port=$1; shift
    gateways=$(ip -4 route show default 2>/dev/null | awk '{ print $3 }')
    for address in "$@" $gateways; do
        (echo | nc -w 2 "$address" "$port" >/dev/null 2>&1 && echo "reached $address") &
    done
    wait
    [ "$gateways" ] && echo "a way out" || echo "no way out"
"""
"""Tells which of the addresses, and of the gateways, take a connection to a port."""


@pytest.fixture
def block_list(lab: Lab) -> Iterator[None]:
    """What `cmdsvc firewall` installs, for an engine that leaves that to root."""
    if lab.name != "docker":
        yield
        return
    from cmdsvc.engine import firewall
    from cmdsvc.engine.docker import bridge_name
    from cmdsvc.engine.resolvers import host_resolvers

    if os.geteuid() != 0:
        unavailable("only root can install the block list")
    instance = lab.settings.instance
    firewall.apply(
        firewall.bridge_ruleset(instance, bridge_name(instance), host_resolvers().addresses)
    )
    yield
    firewall.remove(firewall.bridge_table(instance))


async def test_the_internet_is_not_the_host(lab: Lab, outside: Outside, block_list: None) -> None:
    """No address of the host, no private one, no metadata service: where the engine claims so."""
    if Network.INTERNET not in lab.engine.networks:
        pytest.skip("the engine does not claim to give exactly the Internet")
    addresses = [*host_addresses(), "127.0.0.1", "169.254.169.254", "10.0.0.1", "192.168.0.1"]
    result = await lab.run(REACH, str(outside.port), *addresses, network=Network.INTERNET)
    assert result.ok() == b"a way out\n"


async def test_two_runs_do_not_reach_each_other(lab: Lab) -> None:
    network = Network.INTERNET if Network.INTERNET in lab.engine.networks else Network.NONE
    serve = "ip -4 -o addr show scope global | awk '{print $4}'; echo listening; nc -l -p 8765"
    async with lab.job(serve, network=network) as job:
        talk = Transcript(job)
        addresses = [
            line.split("/")[0] for line in (await talk.until(b"listening\n")).decode().split()[:-1]
        ]
        for address in addresses or ["127.0.0.1"]:
            result = await lab.run(
                'echo x | nc -w 1 "$1" 8765; echo "status $?"', address, network=network
            )
            assert result.ok() != b"status 0\n", address


async def test_scripts_cannot_reach_each_others_processes(lab: Lab) -> None:
    async with lab.job("echo ready; read -r x; echo alive") as job:
        talk = Transcript(job)
        await talk.line()
        await lab.run("kill -KILL -1; for p in $(seq 2 40000); do kill -KILL $p; done 2>/dev/null")
        await job.send(b"\n")
        async with asyncio.timeout(PATIENCE):
            assert await talk.line() == "alive"


def host_addresses() -> list[str]:
    """The IPv4 addresses of this machine but for the loopback's."""
    told = subprocess.run(["ip", "-4", "-o", "addr"], capture_output=True, text=True, check=False)
    return [a for a in re.findall(r"inet ([\d.]+)", told.stdout) if not a.startswith("127.")]
