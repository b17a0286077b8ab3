"""Which name servers a run is told of."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

import pytest

from cmdsvc.engine.resolvers import PUBLIC, host_resolvers


def found(tmp_path: Path, resolv_conf: str, upstream: str = "") -> list[str]:
    (tmp_path / "resolv.conf").write_text(resolv_conf)
    (tmp_path / "upstream").write_text(upstream)
    resolvers = host_resolvers(tmp_path / "resolv.conf", [tmp_path / "upstream"])
    return [str(address) for address in resolvers.addresses]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nameserver 10.0.0.2\n", ["10.0.0.2"]),
        (
            "# comment\nsearch a.example\nnameserver\t8.8.8.8\nnameserver 10.0.0.2\n",
            ["8.8.8.8", "10.0.0.2"],
        ),
        ("nameserver 127.0.0.53\nnameserver 10.0.0.2\n", ["10.0.0.2"]),
        ("nameserver fe80::1%eth0\nnameserver fd00::1\nnameserver 10.0.0.2\n", ["10.0.0.2"]),
        ("nameserver 1.1.1.1\nnameserver 1.1.1.1\n", ["1.1.1.1"]),
        (
            "".join(f"nameserver 10.0.0.{n}\n" for n in range(1, 6)),
            ["10.0.0.1", "10.0.0.2", "10.0.0.3"],
        ),
        ("nameserver\nnameserver 300.1.1.1\nnameserver 10.0.0.2; drop }\n;x\n", []),
    ],
)
def test_the_hosts_own(tmp_path: Path, text: str, expected: list[str]) -> None:
    if not expected:
        expected = [str(address) for address in PUBLIC]
    assert found(tmp_path, text) == expected


def test_behind_a_stub_on_loopback_its_upstream(tmp_path: Path) -> None:
    assert found(tmp_path, "nameserver 127.0.0.53\n", "nameserver 192.168.1.1\n") == ["192.168.1.1"]


def test_public_ones_where_all_are_on_loopback(tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_bytes(b"nameserver 127.0.0.1\n\xff\n")
    resolvers = host_resolvers(tmp_path / "resolv.conf", [tmp_path / "absent"])
    assert (resolvers.addresses, resolvers.from_host) == (PUBLIC, False)


def test_the_text_for_inside_has_no_search_domains(tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_text("search corp.example\nnameserver 10.0.0.2\n")
    resolvers = host_resolvers(tmp_path / "resolv.conf", [])
    assert resolvers.conf == b"nameserver 10.0.0.2\n"
    assert resolvers.addresses == (IPv4Address("10.0.0.2"),)
