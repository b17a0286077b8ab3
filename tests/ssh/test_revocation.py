"""Revoked keys: a list, and the KRLs that ssh-keygen makes."""

from __future__ import annotations

import logging
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmdsvc.errors import UsageError
from cmdsvc.ssh import revocation, watched
from cmdsvc.ssh.blobs import string
from cmdsvc.ssh.certificates import parse as parse_certificate
from cmdsvc.ssh.revocation import MAGIC, Revocations, Revoked, parse
from tests.ssh.keygen import blob, certify, keygen, pair, public

HEADER = MAGIC + struct.pack(">IQQQ", 1, 1, 0, 0) + string(b"") + string(b"a comment")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("revocation")


@pytest.fixture(scope="module")
def ca(folder: Path) -> Path:
    return pair(folder / "ca")


@pytest.fixture(scope="module")
def key(folder: Path) -> Path:
    return pair(folder / "key")


@pytest.fixture(scope="module")
def other(folder: Path) -> Path:
    return pair(folder / "other", "rsa")


def krl(folder: Path, *words: str | Path, spec: str = "") -> Revoked:
    """Of what `ssh-keygen -k` makes of these files and this specification."""
    (folder / "spec").write_text(spec)
    keygen("-k", "-f", folder / "krl", *words, *([folder / "spec"] if spec else []))
    return parse((folder / "krl").read_bytes())


def test_an_empty_list():
    assert len(parse(b"")) == 0
    assert len(parse(b"# nobody\n\n")) == 0
    assert len(parse(HEADER)) == 0


def test_a_list_of_keys(key: Path, other: Path, ca: Path):
    text = f"# lost\n{public(key).read_text()}\n  {public(other).read_text()}"
    revoked = parse(text.encode())
    assert [revoked.key(blob(public(path))) for path in (key, other, ca)] == [True, True, False]
    assert not revoked.certificate(blob(public(ca)), 1, b"id")
    assert len(revoked) == 2


@pytest.mark.parametrize(
    "line",
    [
        b"garbage",
        b"ssh-ed25519",
        b"ssh-ed25519 AAAA",
        b"no-pty ssh-ed25519 AAAA",
        b"SHA256:x",
        b"SSHKRL",
        b"\xff\0",
    ],
)
def test_a_line_that_is_no_key(line: bytes, key: Path):
    with pytest.raises(ValueError, match="line 2 is not a public key"):
        parse(public(key).read_bytes() + line + b"\n")


@pytest.mark.parametrize("how", ["", "key", "sha1", "sha256", "hash"])
def test_a_krl_of_keys(how: str, key: Path, other: Path, ca: Path, tmp_path: Path):
    if how == "hash":
        spec = f"hash: {keygen('-l', '-f', public(key)).split()[1]}\n"
        revoked = krl(tmp_path, spec=spec)
    elif how:
        revoked = krl(tmp_path, spec=f"{how}: {public(key).read_text()}")
    else:
        revoked = krl(tmp_path, public(key))
    assert [revoked.key(blob(public(path))) for path in (key, other, ca)] == [True, False, False]


def test_a_krl_of_serials(ca: Path, other: Path, tmp_path: Path):
    spec = "".join(
        f"serial: {word}\n" for word in ("3", "5-9", "100000", *range(200, 260, 2), 2**64 - 1)
    )
    revoked = krl(tmp_path, "-s", public(ca), spec=spec)
    authority = blob(public(ca))
    expected = {3, *range(5, 10), 100000, *range(200, 260, 2), 2**64 - 1}
    near = {0, *expected, *(n + 1 for n in expected), *(n - 1 for n in expected)}
    assert {n for n in near if revoked.certificate(authority, n, b"id")} == expected
    assert not revoked.certificate(blob(public(other)), 3, b"id")
    assert not revoked.key(authority)


def test_a_krl_of_serials_and_ids_of_any_ca(ca: Path, tmp_path: Path):
    revoked = krl(tmp_path, "-s", "none", spec="serial: 3\nid: ann's laptop\n")
    authority = blob(public(ca))
    assert revoked.certificate(authority, 3, b"")
    assert revoked.certificate(authority, 4, b"ann's laptop")
    assert revoked.certificate(authority, 0, b"ann's laptop")
    assert not revoked.certificate(authority, 4, b"ann's laptop2")


def test_a_krl_of_a_certificate(ca: Path, key: Path, tmp_path: Path):
    path = certify(ca, key, "-z", "9", identity="first")
    revoked = krl(tmp_path, "-s", public(ca), path)
    found = parse_certificate(blob(path))
    assert revoked.certificate(found.authority, found.serial, found.key_id)
    assert not revoked.certificate(found.authority, 10, b"second")
    assert not revoked.key(found.key)  # it may have another certificate


def test_a_krl_that_was_added_to(ca: Path, key: Path, other: Path, tmp_path: Path):
    krl(tmp_path, "-s", public(ca), spec="serial: 3\n")
    revoked = krl(tmp_path, "-u", "-s", public(other), public(key), spec="serial: 4\nid: x\n")
    assert revoked.key(blob(public(key)))
    assert revoked.certificate(blob(public(ca)), 3, b"")
    assert not revoked.certificate(blob(public(ca)), 4, b"")
    assert revoked.certificate(blob(public(other)), 4, b"")
    assert revoked.certificate(blob(public(other)), 9, b"x")


def section(kind: int, *strings: bytes) -> bytes:
    return bytes([kind]) + string(b"".join(map(string, strings)))


def test_signatures_and_extensions_are_passed_over():
    signed = b"\x04" + string(b"a key") + string(b"a signature")
    extension = b"\xff" + string(string(b"x@example.org") + b"\0" + string(b""))
    revoked = parse(HEADER + section(2, b"one") + extension + signed)
    assert revoked.keys == {b"one"}


@pytest.mark.parametrize(
    "content",
    [
        MAGIC,
        MAGIC + struct.pack(">IQQQ", 2, 1, 0, 0) + string(b"") * 2,
        HEADER + b"\x09" + string(b""),
        HEADER + b"\x02",
        HEADER + b"\x02" + string(b"\0\0\0\x09x"),
        HEADER + b"\xff" + string(string(b"x@example.org") + b"\1" + string(b"")),
        HEADER + b"\x04" + string(b"a key"),
        HEADER + b"\x01" + string(string(b"") * 2 + b"\x20" + string(b"1234567")),
        HEADER + b"\x01" + string(string(b"") * 2 + b"\x21" + string(b"12345678")),
        HEADER + b"\x01" + string(string(b"") * 2 + b"\x39" + string(string(b"x") + b"\1")),
        HEADER + b"\x01" + string(string(b"") * 2 + b"\x77" + string(b"")),
    ],
)
def test_what_is_not_understood(content: bytes):
    with pytest.raises(ValueError, match="a key revocation list"):
        parse(content)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.integers(0, 400), st.integers(0, 255))
def test_no_damage_is_more_than_a_refusal(
    folder: Path, ca: Path, key: Path, place: int, value: int
):
    path = folder / "whole"
    if not path.exists():
        krl(folder, "-s", public(ca), public(key), spec="serial: 3-9\nid: x\nserial: 77\n")
        path.write_bytes((folder / "krl").read_bytes())
    whole = path.read_bytes()
    for data in (whole[: place % len(whole)], whole[:place] + bytes([value]) + whole[place + 1 :]):
        try:
            parse(data)
        except ValueError:
            continue


def test_serials_and_ranges_that_meet():
    found = revocation.Serials([(9, 12), (1, 3), (4, 4), (10, 10), (20, 15)], [(64, b"\x01\x05")])
    found.settle()
    assert [n for n in range(99) if found.has(n, b"")] == [1, 2, 3, 4, 9, 10, 11, 12, 64, 66, 72]


class TestRevocations:
    @pytest.fixture(autouse=True)
    def always(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(watched, "RECHECK", 0)

    def test_none(self):
        assert not Revocations(None).key(b"x")
        assert not Revocations(None).certificate(b"x", 1, b"")

    def test_changes_count_and_a_broken_file_lets_nobody_in(
        self, key: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ):
        path = tmp_path / "revoked"
        path.write_text("# none\n")
        found = Revocations(path)
        mine = blob(public(key))
        assert not found.key(mine)
        path.write_text(public(key).read_text())
        assert found.key(mine)
        assert not found.key(b"x")
        for broken in (b"garbage", HEADER + b"\x09", None):
            if broken is None:
                path.unlink()
            else:
                path.write_bytes(broken)
            with caplog.at_level(logging.ERROR):
                assert found.key(b"x")
                assert found.certificate(b"x", 1, b"")
        assert len(caplog.messages) == 3  # each said once
        path.write_text("")
        assert not found.key(mine)

    @pytest.mark.parametrize("content", [b"garbage", MAGIC, None, b"#" * 100])
    def test_one_that_cannot_be_used(
        self, content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(revocation, "MAX", 99)
        path = tmp_path / "revoked"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UsageError, match="cannot be used") as caught:
            Revocations(path).load()
        assert "nobody can log in" in caught.value.hint
