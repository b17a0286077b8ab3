"""Who the client is, behind proxies."""

from __future__ import annotations

import pytest

from cmdsvc.web.forwarded import Origin, Proxies

PEER = Origin("10.0.0.1", "http", "127.0.0.1", 8022)
OURS = Proxies(["10.0.0.0/8", "fd00::1"])


def seen(proxies: Proxies = OURS, peer: Origin = PEER, **headers: str) -> Origin:
    named = [(k.replace("_", "-").encode(), v.encode("latin-1")) for k, v in headers.items()]
    return proxies.origin(peer, named)


@pytest.mark.parametrize(
    ("said", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1, 10.0.0.2", "192.0.2.1"),
        ("6.6.6.6, 192.0.2.1", "192.0.2.1"),
        ("6.6.6.6, 192.0.2.1, 10.1.1.1, 10.2.2.2", "192.0.2.1"),
        ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("192.0.2.1:443", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("unknown", "10.0.0.1"),
        ("evil\n", "10.0.0.1"),
        ("evil, 10.0.0.2", "10.0.0.2"),
        (",,", "10.0.0.1"),
        ("192.0.2.1, " * 5000 + "192.0.2.9", "192.0.2.9"),
    ],
)
def test_by_x_forwarded_for(said: str, address: str):
    assert seen(x_forwarded_for=said).address == address


@pytest.mark.parametrize(
    ("said", "origin"),
    [
        ("for=192.0.2.1", Origin("192.0.2.1", "http", "127.0.0.1", 8022)),
        ('for=192.0.2.1;proto=https;host="h.example"',
         Origin("192.0.2.1", "https", "h.example", 443)),
        ('For="[2001:db8::1]:5", for=10.0.0.2;host=h:99', Origin("2001:db8::1", "http", "h", 99)),
        ("for=6.6.6.6, for=192.0.2.1", Origin("192.0.2.1", "http", "127.0.0.1", 8022)),
        ("for=_hidden", PEER),
        ("nonsense", PEER),
        ("for=192.0.2.1;proto=javascript", Origin("192.0.2.1", "http", "127.0.0.1", 8022)),
    ],
)  # fmt: skip
def test_by_forwarded(said: str, origin: Origin):
    assert seen(forwarded=said) == origin


def test_what_it_was_asked_by():
    said = {"x_forwarded_for": "192.0.2.1", "x_forwarded_proto": "https"}
    assert seen(**said) == Origin("192.0.2.1", "https", "127.0.0.1", 443)
    found = seen(**said, host="in.example:81", x_forwarded_host="a.example:8443")
    assert found == Origin("192.0.2.1", "https", "a.example", 8443)
    found = seen(**said, x_forwarded_host="a.example", x_forwarded_port="444")
    assert found.port == 443  # of whoever sent it: proxies that do not know that header pass it on
    assert seen(**said, host="a.example").port == 443
    assert seen(**said, host="a.example:8443") == Origin("192.0.2.1", "https", "a.example", 8443)
    said["x_forwarded_proto"] = "http"
    assert seen(**said, host="a.example") == Origin("192.0.2.1", "http", "a.example", 80)
    found = seen(forwarded="for=192.0.2.1;proto=https", host="a.example:8443")
    assert found == Origin("192.0.2.1", "https", "a.example", 8443)


def test_the_header_that_most_proxies_write_counts_where_both_are():
    found = seen(x_forwarded_for="192.0.2.1", forwarded="for=6.6.6.6;proto=https")
    assert (found.address, found.scheme) == ("192.0.2.1", "http")


@pytest.mark.parametrize("proxies", [Proxies(), OURS])
def test_nobody_else_is_believed(proxies: Proxies):
    peer = Origin("192.0.2.66", "http", "127.0.0.1", 8022)
    headers = {"x_forwarded_for": "1.2.3.4", "x_forwarded_proto": "https",
               "x_forwarded_host": "h", "forwarded": "for=1.2.3.4"}  # fmt: skip
    assert seen(proxies, peer, **headers) == peer


def test_the_host_is_the_one_that_was_asked_and_the_port_the_connections():
    assert seen(Proxies(), host="Cmd.Example:99") == Origin("10.0.0.1", "http", "cmd.example", 8022)
    assert seen(Proxies(), host="[::1]:99").host == "[::1]"
    for wrong in ("a b", "a/b", "a\0", "[x]", "h:port", "", "h" * 300):
        assert seen(Proxies(), host=wrong).host == "127.0.0.1"


def test_an_ipv4_client_of_an_ipv6_socket():
    peer = Origin("::ffff:10.0.0.1", "http", "::", 1)
    assert seen(peer=peer).address == "10.0.0.1"
    assert seen(peer=peer, x_forwarded_for="192.0.2.1").address == "192.0.2.1"


def test_what_is_no_network():
    with pytest.raises(ValueError, match="does not appear"):
        Proxies(["everybody"])
