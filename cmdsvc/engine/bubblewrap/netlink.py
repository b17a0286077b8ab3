"""Interfaces, addresses and routes by rtnetlink(7): what a run's network needs, no more.

`ip` does the same in a process for each namespace it is asked about: of a run that was most of what
its network cost.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from ipaddress import IPv4Address
from typing import Self

from cmdsvc.errors import EngineError

# linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/veth.h
NLMSG_ERROR = 2
REQUEST, ACK, EXCL, CREATE = 0x1, 0x4, 0x200, 0x400
RTM_NEWLINK, RTM_NEWADDR, RTM_NEWROUTE = 16, 20, 24
IFLA_IFNAME, IFLA_MTU, IFLA_LINKINFO, IFLA_AF_SPEC, IFLA_NET_NS_FD = 3, 4, 18, 26, 28
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFLA_INET6_ADDR_GEN_MODE, GEN_MODE_NONE = 8, 1
IFA_ADDRESS, IFA_LOCAL = 1, 2
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PREFSRC = 1, 4, 5, 7
RT_TABLE_MAIN, RTPROT_BOOT, RTN_UNICAST = 254, 3, 1
SCOPE_UNIVERSE, SCOPE_LINK = 0, 253
IFF_UP = 1

HEADER = struct.Struct("=IHHII")
INTERFACE = struct.Struct("=BxHiII")
"""Family, type, index, flags, which flags change."""
NUMBER = struct.Struct("=I")


class Netlink:
    """Of the network namespace in which it is made, and so is whoever calls it. EngineError."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def add_cable(self, name: str, peer: str, namespace: int, mtu: int) -> None:
        """A veth pair: one end is here, `peer` in the namespace of that descriptor."""
        size = _attribute(IFLA_MTU, NUMBER.pack(mtu))
        end = (
            INTERFACE.pack(0, 0, 0, 0, 0)
            + _text(IFLA_IFNAME, peer)
            + size
            + _attribute(IFLA_NET_NS_FD, NUMBER.pack(namespace))
        )
        kind = _text(IFLA_INFO_KIND, "veth") + _attribute(
            IFLA_INFO_DATA, _attribute(VETH_INFO_PEER, end)
        )
        self._ask(
            RTM_NEWLINK,
            CREATE | EXCL,
            INTERFACE.pack(0, 0, 0, 0, 0),
            _text(IFLA_IFNAME, name) + size + _attribute(IFLA_LINKINFO, kind),
        )

    def up(self, name: str, *, quiet: bool = False) -> None:
        """`quiet`: it gives itself no IPv6 address; for kernels that know IPv6."""
        index = socket.if_nametoindex(name)
        if quiet:  # by a request of its own: within one the kernel brings it up first
            mode = _attribute(IFLA_INET6_ADDR_GEN_MODE, bytes([GEN_MODE_NONE]))
            families = _attribute(IFLA_AF_SPEC, _attribute(socket.AF_INET6, mode))
            self._ask(RTM_NEWLINK, 0, INTERFACE.pack(0, 0, index, 0, 0), families)
        self._ask(RTM_NEWLINK, 0, INTERFACE.pack(0, 0, index, IFF_UP, IFF_UP))

    def add_address(self, name: str, address: IPv4Address) -> None:
        body = struct.pack("=4BI", socket.AF_INET, 32, 0, 0, socket.if_nametoindex(name))
        local = _attribute(IFA_LOCAL, address.packed) + _attribute(IFA_ADDRESS, address.packed)
        self._ask(RTM_NEWADDR, CREATE | EXCL, body, local)

    def add_route(
        self,
        name: str,
        to: IPv4Address | None,
        via: IPv4Address | None = None,
        source: IPv4Address | None = None,
    ) -> None:
        """To one address or to all, directly or `via` another."""
        attributes = _attribute(RTA_OIF, NUMBER.pack(socket.if_nametoindex(name)))
        for kind, address in ((RTA_DST, to), (RTA_GATEWAY, via), (RTA_PREFSRC, source)):
            if address is not None:
                attributes += _attribute(kind, address.packed)
        length = 0 if to is None else 32
        scope = SCOPE_LINK if via is None else SCOPE_UNIVERSE
        body = struct.pack(
            "=8BI",
            *(socket.AF_INET, length, 0, 0),
            *(RT_TABLE_MAIN, RTPROT_BOOT, scope, RTN_UNICAST),
            0,
        )
        self._ask(RTM_NEWROUTE, CREATE | EXCL, body, attributes)

    def _ask(self, kind: int, flags: int, body: bytes, attributes: bytes = b"") -> None:
        """One request, which is done on return."""
        size = HEADER.size + len(body) + len(attributes)
        header = HEADER.pack(size, kind, REQUEST | ACK | flags, 0, 0)
        self._socket.sendto(header + body + attributes, (0, 0))
        answer = self._socket.recv(65536)
        _size, kind, _flags, _number, _port = HEADER.unpack_from(answer)
        (error,) = struct.unpack_from("=i", answer, HEADER.size)
        if kind != NLMSG_ERROR or error:
            raise EngineError(f"netlink failed: {os.strerror(-error or errno.EPROTO)}")


def _attribute(kind: int, value: bytes) -> bytes:
    size = 4 + len(value)
    return struct.pack("=HH", size, kind) + value + bytes(-size % 4)


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")
