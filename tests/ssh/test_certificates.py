"""Certificates as ssh-keygen makes them: what they say, and whether they count."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmdsvc.errors import UsageError
from cmdsvc.ssh import watched
from cmdsvc.ssh.blobs import string
from cmdsvc.ssh.certificates import Authorities, is_certificate, parse
from tests.ssh.keygen import blob, certify, pair, public

NOW = time.time()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def ca(folder: Path) -> Path:
    return pair(folder / "ca")


@pytest.fixture(scope="module")
def key(folder: Path) -> Path:
    return pair(folder / "key")


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
@pytest.mark.parametrize("ca_kind", ["ed25519", "ecdsa", "rsa"])
def test_what_it_says(kind: str, ca_kind: str, tmp_path: Path):
    ca, key = pair(tmp_path / "ca", ca_kind), pair(tmp_path / "key", kind)
    data = blob(certify(ca, key, "-z", "77", "-V", "always:forever", principals="ann,bob"))
    assert is_certificate(data)
    assert not is_certificate(blob(public(key)))
    found = parse(data)
    assert found.key == blob(public(key))
    assert found.authority == blob(public(ca))
    assert (found.serial, found.kind, found.key_id) == (77, 1, b"id")
    assert found.principals == {b"ann", b"bob"}
    assert (found.valid_after, found.valid_before) == (0, 2**64 - 1)
    assert Authorities([public(ca)]).vouch(found)
    assert found.refusal("bob", NOW) == ""
    given = found.restrictions()
    assert given.pty
    assert given.agent_forwarding
    assert (given.command, given.sources, given.verify) == (None, None, False)


def test_what_takes_something_away(ca: Path, key: Path):
    options = [
        *("-O", "clear", "-O", "force-command=echo 'é'", "-O", "verify-required"),
        *("-O", "source-address=192.0.2.0/24,2001:db8::1"),
    ]
    given = parse(blob(certify(ca, key, *options))).restrictions()
    assert (given.pty, given.agent_forwarding, given.verify) == (False, False, True)
    assert given.command == "echo 'é'"
    assert given.sources is not None
    for address, admitted in {
        "192.0.2.7": True,
        "::ffff:192.0.2.7": True,
        "2001:db8::1": True,
        "2001:db8::1%eth0": True,
        "192.0.3.7": False,
        "2001:db8::2": False,
        "": False,
        "ann": False,
    }.items():
        assert given.sources.admits(address) is admitted
        assert bool(given.refusal(address, NOW)) is not admitted


@pytest.mark.parametrize(
    ("options", "principals", "says"),
    [
        (["-V", "-2h:-1h"], "ann", "expired"),
        (["-V", "+1h:+2h"], "ann", "not valid yet"),
        ([], "bob", "not among its principals"),
        ([], "ann.b", "not among its principals"),
        ([], None, "not among its principals"),
        (["-h"], "ann", "not a user certificate"),
    ],
)
def test_what_does_not_count(
    options: list[str], principals: str | None, says: str, ca: Path, key: Path
):
    found = parse(blob(certify(ca, key, *options, principals=principals)))
    assert says in found.refusal("ann", NOW)


@pytest.mark.parametrize(
    "option", ["critical:no-such-option@example.org", "critical:verify-required=1"]
)
def test_a_critical_option_that_is_not_known(option: str, ca: Path, key: Path):
    found = parse(blob(certify(ca, key, "-O", option)))
    with pytest.raises(ValueError, match="is not known here"):
        found.restrictions()


def test_an_extension_that_is_not_known(ca: Path, key: Path):
    assert parse(blob(certify(ca, key, "-O", "extension:x@example.org=1"))).restrictions().pty


def test_a_source_address_that_is_none(ca: Path, key: Path):
    data = blob(certify(ca, key, "-O", "source-address=192.0.2.0/24"))
    for bad in (b"192.0.2.1/24", b"192.0.2.*/24", b"           ,", b",,,,,,,,,,,,"):
        found = parse(data.replace(b"192.0.2.0/24", bad))
        with pytest.raises(ValueError):
            found.restrictions()


def test_another_ca_another_content_another_signature(ca: Path, key: Path, tmp_path: Path):
    data = blob(certify(ca, key))
    trusted = Authorities([public(ca)])
    assert trusted.vouch(parse(data))
    assert not Authorities([]).vouch(parse(data))
    assert not Authorities([public(pair(tmp_path / "other"))]).vouch(parse(data))
    assert not trusted.vouch(parse(data.replace(b"\0\0\0\x03ann", b"\0\0\0\x03bob")))
    assert not trusted.vouch(parse(data[:-1] + bytes([data[-1] ^ 1])))


def test_a_signature_with_sha1(tmp_path: Path):
    ca, key = pair(tmp_path / "ca", "rsa"), pair(tmp_path / "key")
    for algorithm, counts in (("ssh-rsa", False), ("rsa-sha2-256", True)):
        found = parse(blob(certify(ca, key, "-t", algorithm)))
        assert Authorities([public(ca)]).vouch(found) is counts


@settings(deadline=None, derandomize=True, max_examples=300)
@given(
    st.integers(0, 2000), st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), max_size=4)
)
def test_no_content_whatever_is_more_than_a_refusal(
    folder: Path, ca: Path, key: Path, end: int, changes: list[tuple[int, int]]
):
    path = folder / "certificate"
    if not path.exists():
        path.write_bytes(blob(certify(ca, key, "-O", "source-address=192.0.2.0/24")))
    whole = path.read_bytes()
    data = bytearray(whole)
    for place, value in changes:
        if place < len(data):
            data[place] = value
    data = data[: end + 1]
    try:
        found = parse(bytes(data))
    except ValueError:
        return
    try:
        counts = Authorities([public(ca)]).vouch(found)
    except ValueError:
        counts = False
    assert counts is (data == whole)


class TestAuthorities:
    @pytest.fixture(autouse=True)
    def always(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(watched, "RECHECK", 0)

    def test_several_files_and_several_keys(self, ca: Path, tmp_path: Path):
        others = [pair(tmp_path / name) for name in "ab"]
        keys = tmp_path / "keys"
        keys.write_text("# ours\n\n" + "".join(public(path).read_text() for path in others))
        found = Authorities([public(ca), keys])
        assert len(found.load()) == 3
        assert all(found.trusts(blob(public(path))) for path in (ca, *others))

    @pytest.mark.parametrize(
        "text", ["garbage", "ssh-ed25519 AAAA", "cert-authority ssh-ed25519 AAAA", "\0"]
    )
    def test_a_line_that_is_no_key(self, text: str, ca: Path, tmp_path: Path):
        path = tmp_path / "keys"
        path.write_text(f"{public(ca).read_text()}{text}\n")
        with pytest.raises(UsageError, match="line 2: not a public key"):
            Authorities([path]).load()

    def test_changes_count_and_a_broken_file_makes_nobody_trusted(self, ca: Path, tmp_path: Path):
        path, other = tmp_path / "keys", pair(tmp_path / "other")
        path.write_text(public(ca).read_text())
        found = Authorities([path])
        ours, theirs = blob(public(ca)), blob(public(other))
        assert (found.trusts(ours), found.trusts(theirs)) == (True, False)
        path.write_text(public(other).read_text())
        assert (found.trusts(ours), found.trusts(theirs)) == (False, True)
        path.write_text("garbage")
        assert not found.trusts(theirs)
        path.unlink()
        assert not found.trusts(theirs)
        path.write_text(public(ca).read_text())
        assert found.trusts(ours)

    def test_a_file_that_is_not_there(self, tmp_path: Path):
        with pytest.raises(UsageError, match="cannot be read"):
            Authorities([tmp_path / "none"]).load()


def test_what_is_no_certificate():
    for data in (b"", b"\0\0\0\1", string(b"ssh-ed25519"), string(b"-cert-v01@openssh.com")):
        with pytest.raises(ValueError):
            parse(data)
