"""Keys and certificates that nobody gets in with: a list of public keys, or OpenSSH's KRL."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from asyncssh.packet import PacketDecodeError, SSHPacket

from cmdsvc.errors import UsageError
from cmdsvc.ssh.blobs import blob_of
from cmdsvc.ssh.watched import Watched

MAGIC = b"SSHKRL\n\0"
MAX = 16 << 20
"""Bytes of a file."""


class Section(IntEnum):
    """Of a KRL (PROTOCOL.krl)."""

    CERTIFICATES = 1
    KEYS = 2
    SHA1 = 3
    SIGNATURE = 4
    SHA256 = 5
    EXTENSION = 255


class Part(IntEnum):
    """Of a section on certificates."""

    SERIALS = 0x20
    RANGE = 0x21
    BITMAP = 0x22
    KEY_IDS = 0x23
    EXTENSION = 0x39


@dataclass(slots=True)
class Serials:
    """What is revoked of one CA's certificates."""

    ranges: list[tuple[int, int]] = field(default_factory=list)
    """First and last; sorted and apart once `settle` was called."""
    bitmaps: list[tuple[int, bytes]] = field(default_factory=list)
    """The serial of bit 0, and the bits, the last byte's lowest first."""
    key_ids: set[bytes] = field(default_factory=set)

    def settle(self) -> None:
        merged: list[tuple[int, int]] = []
        for first, last in sorted(self.ranges):
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = merged[-1][0], max(last, merged[-1][1])
            else:
                merged.append((first, last))
        self.ranges = merged

    def has(self, serial: int, key_id: bytes) -> bool:
        if key_id in self.key_ids:
            return True
        if serial == 0:  # what a CA gives that does not number them (PROTOCOL.certkeys)
            return False
        at = bisect.bisect_right(self.ranges, (serial, 1 << 64)) - 1
        if at >= 0 and serial <= self.ranges[at][1]:
            return True
        for start, bits in self.bitmaps:
            byte, bit = divmod(serial - start, 8)
            if 0 <= byte < len(bits) and bits[-1 - byte] >> bit & 1:
                return True
        return False


@dataclass(slots=True)
class Revoked:
    keys: set[bytes] = field(default_factory=set)
    sha1: set[bytes] = field(default_factory=set)
    sha256: set[bytes] = field(default_factory=set)
    certificates: dict[bytes, Serials] = field(default_factory=dict)
    """By the CA's key; b"" stands for any CA."""

    def key(self, blob: bytes) -> bool:
        """Of a plain key, also of one in a certificate, or of a CA."""
        return (
            blob in self.keys
            or hashlib.sha256(blob).digest() in self.sha256
            or hashlib.sha1(blob, usedforsecurity=False).digest() in self.sha1
        )

    def certificate(self, authority: bytes, serial: int, key_id: bytes) -> bool:
        found = (self.certificates.get(authority), self.certificates.get(b""))
        return any(serials is not None and serials.has(serial, key_id) for serials in found)

    def __len__(self) -> int:
        """How many entries it has."""
        return (
            sum(map(len, (self.keys, self.sha1, self.sha256)))
            + sum(len(s.ranges) + len(s.bitmaps) + len(s.key_ids) for s in self.certificates.values())
        )  # fmt: skip


def parse(data: bytes) -> Revoked:
    """Of a file's content. ValueError, in words, where anything in it is not understood."""
    if len(data) > MAX:
        raise ValueError(f"larger than {MAX} bytes")
    if data.startswith(MAGIC):
        try:
            return _krl(SSHPacket(data))
        except PacketDecodeError:
            raise ValueError("a key revocation list that is cut off or damaged") from None
    return _list(data)


def _list(data: bytes) -> Revoked:
    revoked = Revoked()
    for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            revoked.keys.add(blob_of(words[0], words[1] if words[1:] else ""))
        except ValueError:
            raise ValueError(f"line {number} is not a public key") from None
    return revoked


def _krl(packet: SSHPacket) -> Revoked:
    packet.get_bytes(len(MAGIC))
    if packet.get_uint32() != 1:
        raise ValueError("a key revocation list of an unknown format")
    for _ in range(3):  # its version, its date, flags
        packet.get_uint64()
    packet.get_string()  # reserved
    packet.get_string()  # a comment
    revoked = Revoked()
    while packet:
        kind = packet.get_byte()
        content = SSHPacket(packet.get_string())
        match kind:
            case Section.CERTIFICATES:
                _certificates(content, revoked)
            case Section.KEYS:
                revoked.keys.update(_strings(content))
            case Section.SHA1:
                revoked.sha1.update(_strings(content))
            case Section.SHA256:
                revoked.sha256.update(_strings(content))
            case Section.SIGNATURE:
                packet.get_string()  # the first was the signer's key
            case Section.EXTENSION:
                _extension(content)
            case _:
                raise ValueError(f"a key revocation list with an unknown section {kind}")
    for serials in revoked.certificates.values():
        serials.settle()
    return revoked


def _strings(packet: SSHPacket) -> Iterable[bytes]:
    while packet:
        yield packet.get_string()


def _extension(packet: SSHPacket) -> None:
    name = packet.get_string()
    if packet.get_boolean():
        words = name.decode(errors="replace")
        raise ValueError(f"a key revocation list with an unknown critical extension {words}")


def _certificates(packet: SSHPacket, revoked: Revoked) -> None:
    serials = revoked.certificates.setdefault(packet.get_string(), Serials())
    packet.get_string()  # reserved
    while packet:
        kind = packet.get_byte()
        content = SSHPacket(packet.get_string())
        match kind:
            case Part.SERIALS:
                while content:
                    serial = content.get_uint64()
                    serials.ranges.append((serial, serial))
            case Part.RANGE:
                serials.ranges.append((content.get_uint64(), content.get_uint64()))
                content.check_end()
            case Part.BITMAP:
                start = content.get_uint64()
                serials.bitmaps.append((start, content.get_string()))
                content.check_end()
            case Part.KEY_IDS:
                serials.key_ids.update(_strings(content))
            case Part.EXTENSION:
                _extension(content)
            case _:
                raise ValueError(f"a key revocation list with an unknown part {kind:#x}")


class Revocations:
    """A file, or none; read again when it changes."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._revoked = Watched([] if path is None else [path], self.load)

    def load(self) -> Revoked:
        """The file as it is. UsageError where it cannot be read or understood."""
        if self._path is None:
            return Revoked()
        hint = "until it is mended nobody can log in; see CMDSVC_REVOKED_KEYS"
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX + 1)
            return parse(data)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"the revoked keys {self._path} cannot be used: {error}", hint
            ) from None

    def key(self, blob: bytes) -> bool:
        """Whether it is revoked; every key is while the file cannot be used."""
        revoked = self._revoked.get()
        return revoked is None or revoked.key(blob)

    def certificate(self, authority: bytes, serial: int, key_id: bytes) -> bool:
        revoked = self._revoked.get()
        return revoked is None or revoked.certificate(authority, serial, key_id)
