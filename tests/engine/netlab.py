"""A small Internet of network namespaces, with the tests' own process on the host in its middle.

All of it is the test's own, sysctls and firewalls too: this machine's network is not touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

INTERNET = "11.11.11.1"
LAN = "10.99.0.1"
HOST = "10.99.0.2"
HOST_PUBLIC = "11.22.33.44"
METADATA = "169.254.169.254"
PRIVATE = (LAN, METADATA, "10.1.2.3", "172.16.5.5", "192.168.7.7", "100.127.9.9", "198.18.0.7")
"""All on the machine outside, where INTERNET is; so is everything else that is not the host's."""
INTERNET6 = "2a00:11::1"
WEB, DNS, OTHER = 80, 53, 5353

PROBE = """
import ctypes, errno, json, socket, sys, time
fd, targets = int(sys.argv[1]), json.loads(sys.argv[2])
if fd >= 0 and ctypes.CDLL(None).setns(fd, 0x40000000): sys.exit("setns")
def probe(kind, address, port):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as s:
        s.settimeout(2)
        try:
            s.connect((address, port))
            s.send(b"who?\\n")
            return s.recv(100).decode()
        except OSError as error:
            return errno.errorcode.get(error.errno, "timeout")
for target in targets:
    begin = time.monotonic()
    print(json.dumps([probe(*target), time.monotonic() - begin]), flush=True)
"""
"""Prints for each target what the other side answers (who it thinks is asking) or the error."""


def missing() -> str:
    """Why the lab cannot be had here, or nothing."""
    if os.geteuid() != 0:
        return "not root"
    absent = [tool for tool in ("ip", "nft") if shutil.which(tool) is None]
    return f"no {' and '.join(absent)}" if absent else ""


def ip(batch: str, *fds: int) -> None:
    subprocess.run(["ip", "-batch", "-"], input=batch.encode(), pass_fds=fds, check=True)


def nft(text: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=text.encode(), check=True)


def output(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def interfaces() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def forwarding(interface: str) -> str:
    return Path(f"/proc/sys/net/ipv4/conf/{interface}/forwarding").read_text().strip()


def forward_everything(value: str) -> None:
    Path("/proc/sys/net/ipv4/ip_forward").write_text(value)


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def enter(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def new_namespace() -> int:
    """Moves this thread into a new namespace and returns a descriptor of it."""
    if _libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


@contextlib.contextmanager
def inside(fd: int) -> Iterator[None]:
    back = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    enter(fd)
    try:
        yield
    finally:
        enter(back)
        os.close(back)


async def probe(fd: int, *targets: tuple[str, str, int]) -> list[tuple[str, float]]:
    """What a process in the namespace gets from each target, and after how many seconds."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROBE, str(fd), json.dumps(targets)),
        stdout=asyncio.subprocess.PIPE,
        pass_fds=[fd] if fd >= 0 else [],
    )
    out, _ = await child.communicate()
    assert child.returncode == 0
    return [tuple(json.loads(line)) for line in out.splitlines()]


async def gone(prefix: str) -> None:
    """Returns once no interface of that name is left; the kernel says when one goes."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as events:
        events.bind((0, 1))
        events.setblocking(False)
        async with asyncio.timeout(10):
            while any(name.startswith(prefix) for name in interfaces()):
                await asyncio.get_running_loop().sock_recv(events, 65536)


async def _tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readline()
    writer.write(writer.get_extra_info("peername")[0].encode())
    with contextlib.suppress(OSError):
        await writer.drain()
    writer.close()


class _Tell(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.transport.sendto(addr[0].encode(), addr)


@contextlib.asynccontextmanager
async def listening(tcp: tuple[int, ...], udp: tuple[int, ...] = (), address: str = "0.0.0.0") -> AsyncIterator[None]:  # fmt: skip
    """Listeners in this thread's namespace, that tell who asks by which address it came."""
    async with contextlib.AsyncExitStack() as stack:
        for port in tcp:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            sock = socket.create_server((address, port), family=family)
            await stack.enter_async_context(await asyncio.start_server(_tell, sock=sock))
        for port in udp:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind((address, port))
            loop = asyncio.get_running_loop()
            transport, _ = await loop.create_datagram_endpoint(_Tell, sock=sock)
            stack.callback(transport.close)
        yield


@contextlib.asynccontextmanager
async def lab() -> AsyncIterator[int]:
    """This thread on a host between runs and the world outside; yields that world's namespace.

    The host has an address on a LAN and a public one, forwards nothing, and has listeners on
    WEB, DNS and OTHER on all its addresses and on 9090 on loopback only.
    """
    async with contextlib.AsyncExitStack() as stack:
        real = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        stack.callback(os.close, real)
        stack.callback(enter, real)
        host = new_namespace()
        stack.callback(os.close, host)
        outside = new_namespace()
        stack.callback(os.close, outside)
        addresses = "".join(f"address add {a}/32 dev lo\n" for a in (INTERNET, *PRIVATE[1:]))
        ip(
            "link set lo up\n"
            f"link add lan0 type veth peer name eth0 netns /proc/self/fd/{host}\n"
            f"address add {LAN}/24 dev lan0\naddress add fd99::1/64 dev lan0 nodad\n"
            f"link set lan0 up\n{addresses}address add {INTERNET6}/128 dev lo\n",
            host,
        )
        await stack.enter_async_context(listening((WEB, DNS)))
        await stack.enter_async_context(listening((WEB + 6,), address="::"))
        for address in (LAN, INTERNET):
            await stack.enter_async_context(listening((), (DNS, OTHER), address))
        enter(host)
        ip(
            "link set lo up\nlink set eth0 up\n"
            f"address add {HOST}/24 dev eth0\naddress add {HOST_PUBLIC}/32 dev lo\n"
            f"address add fd99::2/64 dev eth0 nodad\nroute add default via {LAN}\n"
            "route add ::/0 via fd99::1\n"
        )
        forward_everything("0")
        await stack.enter_async_context(listening((WEB, DNS)))
        for address in (HOST, HOST_PUBLIC):
            await stack.enter_async_context(listening((), (DNS, OTHER), address))
        await stack.enter_async_context(listening((9090,), address="127.0.0.1"))
        await stack.enter_async_context(listening((WEB + 6,), address="::"))
        yield outside
