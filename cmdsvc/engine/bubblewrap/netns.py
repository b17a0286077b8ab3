"""Network namespaces, made by hand: each at the end of a cable of its own (a veth pair).

All of it blocks for some milliseconds, and `Plumbing.make` moves the thread that calls it from one
namespace to another: it is for one thread that does nothing else. Nothing here has a name in the
file system. A namespace lives as long as a descriptor or a process holds it, and its cable with
it, so the kernel clears away what a killed server leaves.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from cmdsvc.engine import firewall
from cmdsvc.engine.bubblewrap.forwarding import gates, lock, locked, unlock
from cmdsvc.engine.bubblewrap.netlink import Netlink
from cmdsvc.engine.resolvers import Resolvers, host_resolvers
from cmdsvc.errors import EngineError

CLONE_NEWNET = 0x40000000  # linux/sched.h
SIOCGIFMTU = 0x8921  # linux/sockios.h
RTMGRP_LINK = 1  # linux/rtnetlink.h
CAP_NET_ADMIN, CAP_SYS_ADMIN = 12, 21  # linux/capability.h

RANGES = (IPv4Network("100.64.0.0/10"), IPv4Network("198.18.0.0/15"))
"""Where runs have their addresses: blocked as destinations, and seldom used on a host."""

BLOCK_PREFIX = 18
"""Of the part of `RANGES` that one server takes: 8192 pairs of addresses. An address comes back
late, after what conntrack remembers of its last holder's UDP is forgotten."""

SOMEWHERE = IPv4Address("1.1.1.1")
"""An address on the Internet; asked only which way to it is."""

GONE_TIMEOUT = 1.0
"""Seconds for the kernel to clear closed namespaces away; it takes a few milliseconds."""

_IPV4 = Path("/proc/sys/net/ipv4")
_INSIDE = {"ping_group_range": "0 2147483647", "ip_unprivileged_port_start": "0"}
"""So that ping works and a script can listen on any port of its own, as in Docker's containers."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Uplinks:
    """The interfaces by which the Internet and the resolvers are reached, and their smallest MTU."""

    names: frozenset[str]
    mtu: int = 1500


class Plumbing:
    """The host's side of one server's namespaces: rules, forwarding, cables."""

    def __init__(self, instance: str, allowed: Sequence[firewall.Destination] = ()) -> None:
        self._allowed = tuple(allowed)
        self.table = firewall.pool_table(instance)
        token = hashlib.sha256(instance.encode()).hexdigest()[:6]
        self.prefix = f"cs{token}"
        """Of the names of our interfaces: 8 of the 15 characters that there are."""
        self.resolvers = Resolvers(())
        self._start = int(token, 16)
        self._host = -1
        self._live: dict[int, int] = {}
        self._next = 0
        self._block = RANGES[0]
        self._mtu = 1500
        self._opened: frozenset[str] = frozenset()
        self._applied = ""
        self._stale: frozenset[str] = frozenset()

    def preflight(self) -> None:
        """Whether it can be had here. EngineError says why not; changes nothing."""
        if os.geteuid() != 0:
            raise EngineError(
                "network namespaces that reach the Internet need root", "run the server as root"
            )
        if missing := [
            name
            for name, bit in (("CAP_NET_ADMIN", CAP_NET_ADMIN), ("CAP_SYS_ADMIN", CAP_SYS_ADMIN))
            if not _capabilities() >> bit & 1
        ]:
            raise EngineError(
                f"root without {' and '.join(missing)} cannot make network namespaces",
                "give the service these capabilities",
            )
        firewall.find_tool("ip", "iproute2")
        firewall.find_tool("nft", "nftables")
        if _read(_IPV4 / "ip_forward") != "1" and not os.access(_IPV4 / "ip_forward", os.W_OK):
            raise EngineError(
                "IPv4 forwarding is off and /proc/sys is read-only", "set net.ipv4.ip_forward=1"
            )
        for gate in gates(self.prefix):
            if gate.iptables is None:
                raise locked(gate, self.prefix)

    def install(self) -> None:
        """Puts the rules in place, in the stead of a dead server's, whose interfaces are removed."""
        self.preflight()
        self._host = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        self._sweep(self._interfaces())
        self._opened = firewall.opened(self.table)
        self._block = self._choose_block()
        self.mend()

    def mend(self) -> None:
        """Makes what is in force what it should be; costs a few short-lived processes.

        Rules may have been flushed, another firewall started, the host moved to another network.
        """
        self._enter(self._host)
        self.resolvers = host_resolvers()
        uplinks = self._uplinks()
        self._mtu = uplinks.mtu
        closed = {name for name in uplinks.names if _read(_forwarding(name)) == "0"}
        self._opened |= closed
        ruleset = firewall.pool_ruleset(
            self.table,
            prefix=self.prefix,
            block=self._block,
            resolvers=self.resolvers.addresses,
            allowed=self._allowed,
            opened=self._opened,
        )
        if ruleset.text != self._applied or not firewall.is_applied(self.table):
            firewall.apply(ruleset)
            self._applied = ruleset.text
        for name in closed:
            _write(_forwarding(name), "1")
        unlock(self.prefix)
        live = {self._name(slot) for slot in list(self._live)}
        stale = self._interfaces() - live
        self._sweep(stale & self._stale)
        self._stale = stale

    def make(self) -> tuple[int, int]:
        """A new namespace: its slot, for `release`, and a descriptor of it (close-on-exec).

        Inside are `lo`, up, and `eth0`, on the way to the Internet, without IPv6.
        """
        for slot in self._slots():
            try:
                return slot, self._make(slot)
            except EngineError as error:
                # An address or a name that the kernel or another server still holds.
                if "File exists" not in error.what:
                    raise
        raise EngineError("no address is left for another network namespace", "run fewer at once")

    def release(self, slot: int) -> None:
        """Lets a namespace go, for any thread; the kernel removes it with its last process."""
        if (fd := self._live.pop(slot, None)) is not None:
            os.close(fd)

    def remove(self) -> None:
        """Takes away all that was made: namespaces, interfaces, rules, forwarding."""
        for slot in list(self._live):
            self.release(slot)
        if self._host < 0:
            return
        self._enter(self._host)
        try:
            self._await_gone()
            self._sweep(self._interfaces())
            lock(self.prefix)
            # Somebody else who wants this machine to forward says so for all its interfaces.
            if _read(_IPV4 / "ip_forward") == "0":
                for name in self._opened:
                    with contextlib.suppress(FileNotFoundError):
                        _write(_forwarding(name), "0")
            firewall.remove(self.table)
        finally:
            os.close(self._host)
            self._host = -1

    def _make(self, slot: int) -> int:
        name = self._name(slot)
        outside, inside = self._block[2 * slot], self._block[2 * slot + 1]
        self._enter(self._host)
        _check(_libc.unshare(CLONE_NEWNET), "unshare")
        fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        quiet = Path("/proc/thread-self/net/if_inet6").exists()
        try:
            with Netlink() as here:
                here.add_cable("eth0", name, self._host, self._mtu)
                here.up("lo")
                here.up("eth0", quiet=quiet)
                here.add_address("eth0", inside)
                here.add_route("eth0", outside)
                here.add_route("eth0", None, via=outside)
            for key, value in _INSIDE.items():
                with contextlib.suppress(EngineError):  # a convenience, on a read-only /proc/sys
                    _write(_IPV4 / key, value)
            self._enter(self._host)
            with Netlink() as here:
                here.up(name, quiet=quiet)
                here.add_address(name, outside)
                here.add_route(name, inside, source=outside)
            if _read(_forwarding(name)) != "1":
                _write(_forwarding(name), "1")
        except BaseException:
            os.close(fd)
            self._enter(self._host)
            raise
        self._live[slot] = fd
        return fd

    def _slots(self) -> Iterator[int]:
        count = self._block.num_addresses // 2
        for _ in range(count):
            slot, self._next = self._next, (self._next + 1) % count
            if slot not in self._live:
                yield slot

    def _name(self, slot: int) -> str:
        return f"{self.prefix}{slot:x}"

    def _enter(self, fd: int) -> None:
        _check(_libc.setns(fd, CLONE_NEWNET), "setns")

    def _interfaces(self) -> frozenset[str]:
        return frozenset(name for _, name in socket.if_nameindex() if name.startswith(self.prefix))

    def _sweep(self, names: frozenset[str]) -> None:
        """Removes interfaces, with their other ends. Slow (36 ms each), so for leftovers only."""
        if names:
            with contextlib.suppress(EngineError):  # gone meanwhile
                _delete(names)
        if left := names & self._interfaces():
            raise EngineError(f"the interface {min(left)} cannot be removed", "ip link delete it")

    def _await_gone(self) -> None:
        until = time.monotonic() + GONE_TIMEOUT
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as events:
            events.bind((0, RTMGRP_LINK))
            while self._interfaces() and (left := until - time.monotonic()) > 0:
                events.settimeout(left)
                with contextlib.suppress(OSError):  # in time, or too many events to queue
                    events.recv(65536)

    def _choose_block(self) -> IPv4Network:
        """A part of `RANGES` without an address or a route of this host's.

        The same one each time where it can be, and another than other servers'.
        """
        taken = []
        for route in _ip_json("-4 route show table all"):
            with contextlib.suppress(ValueError):  # "default"
                taken.append(IPv4Network(str(route["dst"])))
        for wide in RANGES:
            blocks = list(wide.subnets(new_prefix=BLOCK_PREFIX))
            first = self._start % len(blocks)
            for block in blocks[first:] + blocks[:first]:
                if not any(block.overlaps(network) for network in taken):
                    return block
        raise EngineError(
            f"this host has routes all over {' and '.join(map(str, RANGES))}",
            "free a part of them, from which runs have their addresses",
        )

    def _uplinks(self) -> Uplinks:
        names: set[str] = set()
        for address in (SOMEWHERE, *self.resolvers.addresses):
            with contextlib.suppress(EngineError):  # no way there, for now
                names |= {str(route["dev"]) for route in _ip_json(f"route get {address}")}
        names.discard("lo")
        return Uplinks(frozenset(names), min(map(_mtu, names), default=1500))


def _delete(names: Iterable[str]) -> None:
    ip = firewall.find_tool("ip", "iproute2")
    lines = "".join(f"link delete {name}\n" for name in names)
    firewall.run_tool([ip, "-force", "-batch", "-"], lines)


def _ip_json(arguments: str) -> list[dict[str, object]]:
    ip = firewall.find_tool("ip", "iproute2")
    items: list[dict[str, object]] = json.loads(
        firewall.run_tool([ip, "-j", *arguments.split()]) or "[]"
    )
    return items


def _mtu(interface: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16si12x", interface.encode(), 0)
        answer = fcntl.ioctl(any_socket, SIOCGIFMTU, request)
    return int(struct.unpack("16si12x", answer)[1])


def _forwarding(interface: str) -> Path:
    return _IPV4 / "conf" / interface / "forwarding"


def _capabilities() -> int:
    status = Path("/proc/thread-self/status").read_text(encoding="utf-8")
    return int(status.partition("CapEff:")[2].split()[0], 16)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


def _write(path: Path, value: str) -> None:
    try:
        path.write_text(value, encoding="utf-8")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise EngineError(
            f"{path} cannot be written: {error.strerror}", "make /proc/sys writable, be root"
        ) from error


def _check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise EngineError(f"{what} failed: {os.strerror(number)}", "be root, with CAP_SYS_ADMIN")
