"""From inside a pooled network namespace the Internet is there, and nothing else."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from cmdsvc.engine import firewall
from cmdsvc.engine.bubblewrap import netns, network
from cmdsvc.engine.bubblewrap.network import Namespace, NetworkPool, finding
from cmdsvc.engine.firewall import Destination
from cmdsvc.engine.resolvers import Resolvers
from cmdsvc.errors import EngineError
from tests.engine import netlab
from tests.engine.netlab import (
    DNS,
    HOST,
    HOST_PUBLIC,
    INTERNET,
    INTERNET6,
    LAN,
    OTHER,
    PRIVATE,
    WEB,
)

pytestmark = [pytest.mark.root, pytest.mark.skipif(netlab.missing() != "", reason=netlab.missing())]

INSTANCE = "nettest"
PREFIX = netns.Plumbing(INSTANCE).prefix
TABLE = firewall.pool_table(INSTANCE)
QUICK = 0.5
"""Seconds: what is refused is refused at once, not by a timeout (2 s in the probe)."""


@pytest.fixture
async def outside(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    monkeypatch.setattr(netns, "host_resolvers", lambda: Resolvers((IPv4Address(LAN),)))
    async with netlab.lab() as fd:
        yield fd


@pytest.fixture
async def pool(outside: int) -> AsyncIterator[NetworkPool]:
    pool = NetworkPool(INSTANCE, size=2)
    await pool.open()
    yield pool
    await pool.aclose()


@pytest.fixture
async def namespace(pool: NetworkPool) -> Namespace:
    return await pool.take()


async def test_reaches_the_internet_with_the_hosts_address(namespace: Namespace) -> None:
    answers = await netlab.probe(
        namespace.fd, ("tcp", INTERNET, WEB), ("udp", INTERNET, OTHER), ("tcp", INTERNET, DNS)
    )
    assert [answer for answer, _ in answers] == [HOST] * 3


async def test_reaches_nothing_else(namespace: Namespace) -> None:
    targets = [
        *(("tcp", address, WEB) for address in PRIVATE),
        *(("tcp", address, WEB) for address in (HOST, HOST_PUBLIC)),
        *(("tcp", address, DNS) for address in (HOST, HOST_PUBLIC, *PRIVATE[1:])),
    ]
    from_host = await netlab.probe(-1, *targets)
    assert all(answer[0].isdigit() for answer, _ in from_host), "all of them are there"
    for target, (answer, seconds) in zip(
        targets, await netlab.probe(namespace.fd, *targets), strict=True
    ):
        assert answer == "ECONNREFUSED", target
        assert seconds < QUICK, target


async def test_udp_is_refused_too(namespace: Namespace) -> None:
    for target in [("udp", LAN, OTHER), ("udp", HOST, OTHER), ("udp", HOST_PUBLIC, DNS)]:
        ((answer, _),) = await netlab.probe(-1, target)
        assert answer[0].isdigit()
        ((answer, seconds),) = await netlab.probe(namespace.fd, target)
        assert answer == "EHOSTUNREACH", target
        assert seconds < QUICK


async def test_loopback_is_its_own(namespace: Namespace) -> None:
    assert (await netlab.probe(-1, ("tcp", "127.0.0.1", 9090)))[0][0] == "127.0.0.1"
    assert (await netlab.probe(namespace.fd, ("tcp", "127.0.0.1", 9090)))[0][0] == "ECONNREFUSED"
    with netlab.inside(namespace.fd):
        async with netlab.listening((9090,), address="127.0.0.1"):
            ((answer, _),) = await netlab.probe(namespace.fd, ("tcp", "127.0.0.1", 9090))
    assert answer == "127.0.0.1"


async def test_binding_to_the_device_is_no_way_out(namespace: Namespace) -> None:
    with netlab.inside(namespace.fd):
        sock = socket.socket()
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        sock.setblocking(False)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.get_running_loop().sock_connect(sock, (HOST, WEB))


async def test_a_resolver_on_a_private_address_answers_on_port_53_only(
    namespace: Namespace,
) -> None:
    assert namespace.resolv_conf == f"nameserver {LAN}\n".encode()
    answers = await netlab.probe(
        namespace.fd, ("udp", LAN, DNS), ("tcp", LAN, DNS), ("tcp", LAN, WEB), ("udp", LAN, OTHER)
    )
    assert [answer for answer, _ in answers] == [HOST, HOST, "ECONNREFUSED", "EHOSTUNREACH"]


async def test_a_resolver_on_the_host_itself_answers_on_port_53_only(
    outside: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(netns, "host_resolvers", lambda: Resolvers((IPv4Address(HOST),)))
    pool = NetworkPool(INSTANCE, size=1)
    await pool.open()
    try:
        fd = (await pool.take()).fd
        answers = await netlab.probe(fd, ("udp", HOST, DNS), ("tcp", HOST, WEB), ("udp", LAN, DNS))
    finally:
        await pool.aclose()
    assert answers[0][0].startswith(("100.", "198."))
    assert [answer for answer, _ in answers[1:]] == ["ECONNREFUSED", "EHOSTUNREACH"]


async def test_no_other_run(pool: NetworkPool, namespace: Namespace) -> None:
    other = await pool.take()
    with netlab.inside(other.fd):
        address = netlab.output("ip", "-4", "-o", "address", "show", "dev", "eth0").split()[3]
        async with netlab.listening((WEB,), (OTHER,)):
            target = address.partition("/")[0]
            answers = await netlab.probe(namespace.fd, ("tcp", target, WEB), ("udp", target, OTHER))
    assert [answer for answer, _ in answers] == ["ECONNREFUSED", "EHOSTUNREACH"]
    assert all(seconds < QUICK for _, seconds in answers)


async def test_nothing_from_outside(namespace: Namespace, outside: int) -> None:
    with netlab.inside(namespace.fd):
        address = netlab.output("ip", "-4", "-o", "address", "show", "dev", "eth0").split()[3]
        target = address.partition("/")[0]
        with netlab.inside(outside):
            netlab.ip(f"route add {target}/32 via {HOST}\n")
        async with netlab.listening((WEB,)):
            ((answer, _),) = await netlab.probe(outside, ("tcp", target, WEB))
    assert answer == "ECONNREFUSED"


async def test_a_cable_has_no_ipv6_at_either_end(namespace: Namespace) -> None:
    host = netlab.output("ip", "-6", "-o", "address")
    with netlab.inside(namespace.fd):
        inside = netlab.output("ip", "-6", "-o", "address")
    assert PREFIX not in host
    assert "eth0" not in inside


async def test_no_ipv6_even_where_somebody_configures_it(namespace: Namespace) -> None:
    assert (await netlab.probe(-1, ("tcp", INTERNET6, WEB + 6)))[0][0] == "fd99::2"
    assert (await netlab.probe(namespace.fd, ("tcp", INTERNET6, WEB + 6)))[0][0] == "ENETUNREACH"
    name = next(n for n in sorted(netlab.interfaces()) if n.startswith(PREFIX))
    netlab.ip(f"address add fd77::1/64 dev {name} nodad\n")
    with netlab.inside(namespace.fd):
        netlab.ip("address add fd77::2/64 dev eth0 nodad\nroute add ::/0 via fd77::1\n")
    ((answer, _),) = await netlab.probe(namespace.fd, ("tcp", "fd77::1", WEB + 6))
    assert answer in ("timeout", "EHOSTUNREACH")


async def test_what_the_host_sends_elsewhere_is_not_reached(namespace: Namespace) -> None:
    netlab.nft(
        "table ip published { chain p { type nat hook prerouting priority dstnat;\n"
        f"ip daddr {HOST_PUBLIC} tcp dport 7777 dnat to {INTERNET}:{WEB}\n}}\n}}\n"
    )
    ((answer, _),) = await netlab.probe(namespace.fd, ("tcp", HOST_PUBLIC, 7777))
    assert answer == "ECONNREFUSED"


async def test_ping(namespace: Namespace) -> None:
    with netlab.inside(namespace.fd):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
    with sock:
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_sendto(sock, b"\x08\0\0\0\0\0\0\0", (INTERNET, 0))
        async with asyncio.timeout(5):
            assert (await loop.sock_recv(sock, 100))[0] == 0


async def test_the_cable_takes_no_larger_packets_than_the_uplink(outside: int) -> None:
    netlab.ip("link set eth0 mtu 1380\n")
    pool = NetworkPool(INSTANCE, size=1)
    await pool.open()
    try:
        with netlab.inside((await pool.take()).fd):
            assert "mtu 1380" in netlab.output("ip", "link", "show", "eth0")
    finally:
        await pool.aclose()


async def test_every_one_is_new_and_none_is_inherited(pool: NetworkPool) -> None:
    with netlab.inside((first := await pool.take()).fd):
        netlab.ip("link add mark0 type veth peer name mark1\n")
    await first.aclose()
    await first.aclose()
    held = [await pool.take() for _ in range(8)]
    assert len({os.fstat(namespace.fd).st_ino for namespace in held}) == 8
    for namespace in held:
        assert not os.get_inheritable(namespace.fd)
        with netlab.inside(namespace.fd):
            assert netlab.interfaces() == {"lo", "eth0"}


async def test_more_takers_than_there_are_ready(pool: NetworkPool) -> None:
    takers = [asyncio.create_task(pool.take()) for _ in range(12)]
    await asyncio.sleep(0)
    for taker in takers[4:8]:
        taker.cancel()
    done = await asyncio.gather(*takers, return_exceptions=True)
    taken = [namespace for namespace in done if isinstance(namespace, Namespace)]
    assert len(taken) == 8
    for namespace in taken:
        await namespace.aclose()
    assert (await netlab.probe((await pool.take()).fd, ("tcp", INTERNET, WEB)))[0][0] == HOST


async def test_closing_leaves_nothing(outside: int) -> None:
    descriptors = netlab.descriptors()
    before = netlab.interfaces()
    assert netlab.forwarding("eth0") == "0"
    pool = NetworkPool(INSTANCE)
    await pool.open()
    assert netlab.forwarding("eth0") == "1"
    taken = await pool.take()
    closed = await pool.take()
    await closed.aclose()
    await pool.aclose()
    await pool.aclose()
    await taken.aclose()
    assert netlab.interfaces() == before
    assert netlab.output("nft", "list", "ruleset") == ""
    assert netlab.forwarding("eth0") == "0"
    assert netlab.descriptors() == descriptors
    with pytest.raises(EngineError, match="closed"):
        await pool.take()


async def test_a_process_left_in_one_is_cut_off(outside: int) -> None:
    pool = NetworkPool(INSTANCE, size=1)
    await pool.open()
    fd = (await pool.take()).fd
    with netlab.inside(fd):
        child = await asyncio.create_subprocess_exec("cat", stdin=asyncio.subprocess.PIPE)
    await pool.aclose()
    assert not any(name.startswith(PREFIX) for name in netlab.interfaces())
    await child.communicate(b"")


async def test_a_killed_server_leaves_its_rules_and_the_next_clears_them(outside: int) -> None:
    script = (
        "import asyncio; from cmdsvc.engine.bubblewrap.network import NetworkPool\n"
        f"async def main():\n p = NetworkPool({INSTANCE!r})\n await p.open()\n n = await p.take()\n"
        " print('open', flush=True)\n await asyncio.Event().wait()\nasyncio.run(main())\n"
    )
    before = netlab.interfaces()
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    assert await child.stdout.readline() == b"open\n"
    assert len([name for name in netlab.interfaces() if name.startswith(PREFIX)]) >= 4
    child.kill()
    await child.communicate()
    await netlab.gone(PREFIX)
    assert netlab.interfaces() == before
    assert netlab.output("nft", "list", "tables").split() == ["table", "inet", TABLE]
    pool = NetworkPool(INSTANCE, size=1)
    await pool.open()
    assert (await netlab.probe((await pool.take()).fd, ("tcp", INTERNET, WEB)))[0][0] == HOST
    await pool.aclose()
    assert netlab.output("nft", "list", "ruleset") == ""
    assert netlab.forwarding("eth0") == "0", "as it was before the one that was killed"


async def test_an_interface_left_behind_is_removed(outside: int) -> None:
    netlab.ip(f"link add {PREFIX}7 type veth peer name other0\n")
    pool = NetworkPool(INSTANCE, size=0)
    await pool.open()
    assert f"{PREFIX}7" not in netlab.interfaces()
    await pool.aclose()


async def test_rules_that_somebody_flushed_come_back(pool: NetworkPool) -> None:
    netlab.nft("flush ruleset\n")
    await pool._care()
    assert firewall.is_applied(TABLE)
    ((answer, _),) = await netlab.probe((await pool.take()).fd, ("tcp", LAN, WEB))
    assert answer == "ECONNREFUSED"


async def test_the_keeper_looks_after_the_rules(
    outside: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "CARE_INTERVAL", 0.01)
    looked = asyncio.Event()
    care = NetworkPool._care

    async def watched(self: NetworkPool) -> None:
        await care(self)
        looked.set()

    monkeypatch.setattr(NetworkPool, "_care", watched)
    pool = NetworkPool(INSTANCE, size=1)
    await pool.open()
    try:
        async with asyncio.timeout(10):
            await looked.wait()
    finally:
        await pool.aclose()


async def test_a_firewall_that_drops_all_is_told_and_nothing_handed_out(
    pool: NetworkPool,
) -> None:
    netlab.nft(
        "table inet theirs { chain fw { type filter hook forward priority filter; policy drop;\n}\n}\n"
    )
    await pool._care()
    with pytest.raises(EngineError, match=f"inet theirs fw.*{PREFIX}"):
        await pool.take()
    assert finding(INSTANCE).level == "warning"
    with pytest.raises(EngineError, match="inet theirs fw"):
        await NetworkPool("another").open()
    for way in ("iifname", "oifname"):
        netlab.nft(f'add rule inet theirs fw {way} "{PREFIX}*" accept\n')
    await pool._care()
    assert (await netlab.probe((await pool.take()).fd, ("tcp", INTERNET, WEB)))[0][0] == HOST


@pytest.mark.skipif(shutil.which("iptables") is None, reason="no iptables")
async def test_dockers_policy_of_drop_is_lived_with(outside: int) -> None:
    netlab.output("iptables", "-P", "FORWARD", "DROP")
    before = netlab.output("iptables", "-S", "FORWARD")
    assert finding(INSTANCE).level == "ok"
    pool = NetworkPool(INSTANCE, size=1)
    await pool.open()
    await pool._care()
    rules = netlab.output("iptables", "-S", "FORWARD")
    answers = await netlab.probe(
        (await pool.take()).fd, ("tcp", INTERNET, WEB), ("tcp", LAN, WEB), ("tcp", HOST, WEB)
    )
    await pool.aclose()
    assert [answer for answer, _ in answers] == [HOST, "ECONNREFUSED", "ECONNREFUSED"]
    assert rules.count(PREFIX) == 2
    assert netlab.output("iptables", "-S", "FORWARD") == before


async def test_forwarding_that_somebody_wants_meanwhile_stays(outside: int) -> None:
    pool = NetworkPool(INSTANCE, size=1)
    await pool.open()
    netlab.forward_everything("1")
    await pool.aclose()
    assert netlab.forwarding("eth0") == "1"


async def test_two_servers_on_one_host(pool: NetworkPool, namespace: Namespace) -> None:
    other = NetworkPool("another", size=1)
    await other.open()
    try:
        theirs = await other.take()
        with netlab.inside(theirs.fd):
            address = netlab.output("ip", "-4", "-o", "address", "show", "dev", "eth0").split()[3]
            async with netlab.listening((WEB,)):
                answers = await netlab.probe(
                    namespace.fd,
                    ("tcp", address.partition("/")[0], WEB),
                    ("tcp", INTERNET, WEB),
                )
        assert [answer for answer, _ in answers] == ["ECONNREFUSED", HOST]
    finally:
        await other.aclose()
    await pool._care()
    assert (await netlab.probe(namespace.fd, ("tcp", INTERNET, WEB)))[0][0] == HOST


async def test_two_servers_that_chose_the_same_addresses(
    pool: NetworkPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(netns.Plumbing, "_choose_block", lambda _: pool._plumbing._block)
    other = NetworkPool("another", size=2)
    await other.open()
    try:
        taken = [await pool.take(), await other.take(), await other.take()]
        for namespace in taken:
            assert (await netlab.probe(namespace.fd, ("tcp", INTERNET, WEB)))[0][0] == HOST
    finally:
        await other.aclose()


async def test_addresses_that_the_host_uses_are_not_taken(outside: int) -> None:
    netlab.ip(f"route add 100.64.0.0/10 via {LAN}\n")
    pool = NetworkPool(INSTANCE, size=1)
    await pool.open()
    try:
        assert str(pool._plumbing._block).startswith("198.1")
        assert (await netlab.probe((await pool.take()).fd, ("tcp", INTERNET, WEB)))[0][0] == HOST
    finally:
        await pool.aclose()


async def test_the_check_changes_nothing(outside: int) -> None:
    before = netlab.output("nft", "list", "ruleset"), netlab.interfaces()
    assert finding(INSTANCE).level == "ok"
    assert (netlab.output("nft", "list", "ruleset"), netlab.interfaces()) == before
    assert netlab.forwarding("eth0") == "0"


async def test_without_root_it_says_so(outside: int) -> None:
    os.seteuid(65534)
    try:
        found = finding(INSTANCE)
        with pytest.raises(EngineError, match="root"):
            await NetworkPool(INSTANCE).open()
    finally:
        os.seteuid(0)
    assert (found.level, found.hint) == ("warning", "run the server as root")


@pytest.mark.parametrize(("tool", "package"), [("ip", "iproute2"), ("nft", "nftables")])
async def test_without_a_tool_it_names_the_package(
    tool: str, package: str, outside: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in {"ip", "nft"} - {tool}:
        (tmp_path / other).symlink_to(shutil.which(other) or "")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(firewall, "SYSTEM_PATH", str(tmp_path))
    assert package in finding(INSTANCE).hint
    with pytest.raises(EngineError, match=package):
        await NetworkPool(INSTANCE).open()


async def test_without_capabilities_it_says_which(outside: int) -> None:
    script = (
        "from cmdsvc.engine.bubblewrap.network import finding\n"
        f"f = finding({INSTANCE!r}); print(f.level, f.what)\n"
    )
    drop = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-all"]
    said = netlab.output(*drop, sys.executable, "-c", script)
    assert said.startswith("warning")
    assert "CAP_NET_ADMIN" in said


async def test_what_is_allowed_is_reached_and_nothing_beside_it(outside: int) -> None:
    allowed = [Destination.parse(text) for text in (f"{LAN}:{WEB}", f"{HOST}:{WEB}", "172.16.5.5")]
    pool = NetworkPool(INSTANCE, size=1, allowed=allowed)
    await pool.open()
    try:
        fd = (await pool.take()).fd
        reached = await netlab.probe(
            fd, ("tcp", LAN, WEB), ("tcp", HOST, WEB), ("tcp", "172.16.5.5", DNS)
        )
        refused = await netlab.probe(
            fd, ("tcp", LAN, OTHER), ("tcp", HOST, DNS), ("tcp", "10.1.2.3", WEB)
        )
    finally:
        await pool.aclose()
    assert all(answer[0].isdigit() for answer, _ in reached), reached
    assert [answer for answer, _ in refused] == ["ECONNREFUSED"] * 3


@pytest.mark.parametrize(
    "text", ["", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:65536", "x", "10.0.0.1:8o"]
)
def test_a_destination_that_is_none(text: str) -> None:
    with pytest.raises(ValueError):
        Destination.parse(text)
