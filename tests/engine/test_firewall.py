"""The block list, and its rules in front of a bridge as Docker makes it."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmdsvc.engine import firewall
from cmdsvc.errors import EngineError
from tests.engine import netlab
from tests.engine.netlab import DNS, HOST, HOST_PUBLIC, INTERNET, LAN, OTHER, PRIVATE, WEB

INSTANCE = "fwtest"
BRIDGE = "br-fwtest"
QUICK = 0.5
BRIDGED_SHOWN = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")

needs_root = [pytest.mark.root, pytest.mark.skipif(netlab.missing() != "", reason=netlab.missing())]


@given(st.ip_addresses(v=4))
def test_what_is_not_the_internet_is_blocked(address: IPv4Address) -> None:
    blocked = any(address in network for network in firewall.BLOCKED)
    if not address.is_global or address.is_multicast or address.is_reserved:
        assert blocked


@pytest.mark.parametrize(
    "first", ["1.1.1.1", "8.8.8.8", "100.63.0.1", "100.128.0.1", "172.15.0.1", "172.32.0.1",
              "192.0.1.1", "192.169.0.1", "198.17.0.1", "198.20.0.1", "223.255.255.254"]
)  # fmt: skip
def test_the_internet_is_not(first: str) -> None:
    assert not any(IPv4Address(first) in network for network in firewall.BLOCKED)


def test_the_ranges_do_not_overlap() -> None:
    ranges = sorted(firewall.BLOCKED)
    assert not any(a.overlaps(b) for a, b in itertools.pairwise(ranges))


@pytest.mark.parametrize("name", ["", 'a"b', "a b", "a*", "a;drop", "a\nb", "x" * 65, "-a"])
def test_no_name_breaks_out_of_its_quotes(name: str) -> None:
    with pytest.raises(EngineError):
        firewall.bridge_ruleset(INSTANCE, name, [])
    with pytest.raises(EngineError):
        firewall.bridge_ruleset(name, BRIDGE, [])
    with pytest.raises(EngineError):
        firewall.pool_ruleset(
            "t", prefix="cs", block=IPv4Network("100.64.0.0/18"), resolvers=[], opened=[name]
        )


def test_without_nft_it_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(firewall, "SYSTEM_PATH", "")
    with pytest.raises(EngineError, match="install the package nftables"):
        firewall.remove("cmdsvc_absent")


def test_a_program_that_hangs_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firewall, "TOOL_TIMEOUT", 0.05)
    with pytest.raises(EngineError, match="sleep could not be run"):
        firewall.run_tool(["sleep", "60"])


@dataclass
class Bridged:
    """Two containers on a bridge that somebody else (Docker) routes and translates for.

    Their addresses are no private ones: it is the bridge that keeps them apart.
    """

    first: int
    second: int


def container(number: int, host: int) -> int:
    fd = netlab.new_namespace()
    netlab.ip(
        f"link set lo up\nlink add eth0 type veth peer name port{number} netns /proc/self/fd/{host}\n"
        f"address add 12.30.0.{number}/16 dev eth0\nlink set eth0 up\n"
        "route add default via 12.30.0.1\n",
        host,
    )
    netlab.enter(host)
    netlab.ip(f"link set port{number} master {BRIDGE} up\n")
    return fd


@pytest.fixture
async def bridged() -> AsyncIterator[Bridged]:
    async with netlab.lab(), AsyncExitStack() as stack:
        host = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        stack.callback(os.close, host)
        netlab.ip(
            f"link add {BRIDGE} type bridge forward_delay 0\n"
            f"address add 12.30.0.1/16 dev {BRIDGE}\nlink set {BRIDGE} up\n"
        )
        netlab.forward_everything("1")
        netlab.nft(
            "table ip docker {\n chain p { type nat hook postrouting priority srcnat;\n"
            f'ip saddr 12.30.0.0/16 oifname != "{BRIDGE}" masquerade\n}}\n}}\n'
        )
        containers = []
        for number in (2, 3):
            containers.append(container(number, host))
            stack.callback(os.close, containers[-1])
        yield Bridged(*containers)


class TestBridge:
    pytestmark = needs_root

    async def test_before_all_is_open(self, bridged: Bridged) -> None:
        answers = await netlab.probe(
            bridged.first, ("tcp", LAN, WEB), ("tcp", "12.30.0.1", WEB), ("tcp", INTERNET, WEB)
        )
        assert [answer for answer, _ in answers] == [HOST, "12.30.0.2", HOST]

    async def test_the_internet_and_nothing_else(self, bridged: Bridged) -> None:
        firewall.apply(firewall.bridge_ruleset(INSTANCE, BRIDGE, [IPv4Address(LAN)]))
        assert firewall.is_applied(firewall.bridge_table(INSTANCE))
        good = await netlab.probe(
            bridged.first,
            *(("tcp", INTERNET, WEB), ("udp", INTERNET, OTHER)),
            *(("udp", LAN, DNS), ("tcp", LAN, DNS)),
        )
        assert [answer for answer, _ in good] == [HOST] * 4
        targets = [("tcp", address, WEB) for address in (*PRIVATE, HOST, HOST_PUBLIC, "12.30.0.1")]
        for target, (answer, seconds) in zip(
            targets, await netlab.probe(bridged.first, *targets), strict=True
        ):
            assert answer == "ECONNREFUSED", target
            assert seconds < QUICK, target

    @pytest.mark.skipif(not BRIDGED_SHOWN.exists(), reason="this kernel has no br_netfilter")
    async def test_no_other_container(self, bridged: Bridged) -> None:
        target = ("tcp", "12.30.0.3", WEB)
        async with AsyncExitStack() as stack:
            with netlab.inside(bridged.second):
                await stack.enter_async_context(netlab.listening((WEB,)))
            ((before, _),) = await netlab.probe(bridged.first, target)
            firewall.apply(firewall.bridge_ruleset(INSTANCE, BRIDGE, []))
            ((after, _),) = await netlab.probe(bridged.first, target)
        assert (before, after) == ("12.30.0.2", "ECONNREFUSED")

    async def test_it_can_be_put_in_place_and_removed_again_and_again(
        self, bridged: Bridged
    ) -> None:
        before = netlab.output("nft", "list", "ruleset")
        ruleset = firewall.bridge_ruleset(INSTANCE, BRIDGE, [])
        firewall.apply(ruleset)
        once = netlab.output("nft", "list", "ruleset")
        firewall.apply(ruleset)
        assert netlab.output("nft", "list", "ruleset") == once
        firewall.remove(ruleset.table)
        firewall.remove(ruleset.table)
        assert netlab.output("nft", "list", "ruleset") == before

    async def test_a_refused_ruleset_changes_nothing(self, bridged: Bridged) -> None:
        ruleset = firewall.bridge_ruleset(INSTANCE, BRIDGE, [])
        firewall.apply(ruleset)
        before = netlab.output("nft", "list", "ruleset")
        with pytest.raises(EngineError, match="nft failed"):
            firewall.apply(firewall.Ruleset(ruleset.table, ruleset.text + "nonsense\n"))
        assert netlab.output("nft", "list", "ruleset") == before

    async def test_without_the_right_it_says_so(self, bridged: Bridged) -> None:
        script = (
            "from cmdsvc.engine import firewall; from cmdsvc.errors import EngineError\n"
            "try: firewall.remove('cmdsvc_absent')\n"
            "except EngineError as error: print(error)\n"
        )
        drop = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-all"]
        assert "be root" in netlab.output(*drop, sys.executable, "-c", script)
