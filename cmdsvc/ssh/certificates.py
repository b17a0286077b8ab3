"""OpenSSH user certificates (PROTOCOL.certkeys), and whom we believe them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import asyncssh
from asyncssh.packet import SSHPacket

from cmdsvc.errors import UsageError
from cmdsvc.ssh.blobs import PARTS, SIGNATURES, string
from cmdsvc.ssh.restrictions import Restrictions, networks, public_key
from cmdsvc.ssh.watched import Watched

SUFFIX = b"-cert-v01@openssh.com"
USER = 1
PRINCIPALS_MAX = 256
"""As many as OpenSSH takes."""


@dataclass(frozen=True, slots=True)
class Certificate:
    key: bytes
    """The plain public key that it is for."""
    serial: int
    kind: int
    key_id: bytes
    principals: frozenset[bytes]
    valid_after: int
    valid_before: int
    """Seconds since the epoch: from the first, before the second."""
    critical: Mapping[bytes, bytes]
    extensions: Mapping[bytes, bytes]
    authority: bytes
    """The public key that signed it."""
    signed: bytes
    signature: bytes

    def refusal(self, user: str, now: float) -> str:
        """Why it does not make its bearer `user` at `now`, in words; "" where it does."""
        if self.kind != USER:
            return "not a user certificate"
        if now < self.valid_after:
            return "not valid yet"
        if now >= self.valid_before:
            return "expired"
        if user.encode() not in self.principals:
            return "the user is not among its principals"
        return ""

    def restrictions(self) -> Restrictions:
        """ValueError, in words, where a critical option is not understood."""
        command = sources = None
        verify = False
        for name, data in self.critical.items():
            match name:
                case b"force-command":
                    command = _text(data)
                case b"source-address":
                    sources = networks(_text(data))
                case b"verify-required" if not data:
                    verify = True
                case _:
                    words = name.decode(errors="replace")
                    raise ValueError(f"the critical option {words} is not known here")
        return Restrictions(
            command=command,
            pty=b"permit-pty" in self.extensions,
            agent_forwarding=b"permit-agent-forwarding" in self.extensions,
            verify=verify,
            sources=sources,
        )


def is_certificate(data: bytes) -> bool:
    size = int.from_bytes(data[:4], "big")
    return data[4 : 4 + size].endswith(SUFFIX)


def parse(data: bytes) -> Certificate:
    """ValueError for what is no certificate.

    Nothing in it is to be believed before `Authorities.vouch` has looked at it.
    """
    packet = SSHPacket(data)
    algorithm = packet.get_string()
    plain = algorithm.removesuffix(SUFFIX)
    if plain.startswith(b"sk-"):
        plain += b"@openssh.com"
    if plain not in PARTS or algorithm == plain:
        raise ValueError("not a certificate of a known type")
    packet.get_string()  # the nonce
    parts = [packet.get_string() for _ in range(PARTS[plain])]
    serial = packet.get_uint64()
    kind = packet.get_uint32()
    key_id = packet.get_string()
    principals = _strings(packet.get_string())
    if len(principals) > PRINCIPALS_MAX:
        raise ValueError("too many principals")
    valid_after = packet.get_uint64()
    valid_before = packet.get_uint64()
    critical = _options(packet.get_string())
    extensions = _options(packet.get_string())
    packet.get_string()  # reserved
    authority = packet.get_string()
    signed = packet.get_consumed_payload()
    signature = packet.get_string()
    packet.check_end()
    return Certificate(
        key=b"".join(map(string, [plain, *parts])),
        serial=serial,
        kind=kind,
        key_id=key_id,
        principals=frozenset(principals),
        valid_after=valid_after,
        valid_before=valid_before,
        critical=critical,
        extensions=extensions,
        authority=authority,
        signed=signed,
        signature=signature,
    )


def _strings(data: bytes) -> list[bytes]:
    packet = SSHPacket(data)
    found = []
    while packet:
        found.append(packet.get_string())
    return found


def _options(data: bytes) -> dict[bytes, bytes]:
    words = _strings(data)
    options = dict(zip(words[::2], words[1::2], strict=True))
    if len(options) * 2 != len(words):
        raise ValueError("an option twice")
    return options


def _text(data: bytes) -> str:
    packet = SSHPacket(data)
    text = packet.get_string().decode()
    packet.check_end()
    return text


class Authorities:
    """The keys in some files, one a line, whose certificates count; read again when they change."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._keys = Watched(paths, self.load)

    def load(self) -> dict[bytes, asyncssh.SSHKey]:
        """The files as they are. UsageError where one cannot be read, or a line is no key."""
        keys = {}
        for path in self._paths:
            try:
                text = path.read_text(encoding="utf-8", errors="replace")
            except OSError as error:
                raise UsageError(
                    f"the CA keys cannot be read: {error}", "see CMDSVC_USER_CA_KEYS"
                ) from None
            for number, line in enumerate(text.splitlines(), 1):
                if not line.strip() or line.lstrip().startswith("#"):
                    continue
                try:
                    key = public_key(line.strip())
                except asyncssh.KeyImportError:
                    raise UsageError(
                        f"{path}, line {number}: not a public key",
                        "CMDSVC_USER_CA_KEYS takes files of a CA's public keys, one a line",
                    ) from None
                keys[key.public_data] = key
        return keys

    def trusts(self, authority: bytes) -> bool:
        return authority in (self._keys.get() or {})

    def vouch(self, certificate: Certificate) -> bool:
        """Whether one of them signed it, and not with SHA-1."""
        key = (self._keys.get() or {}).get(certificate.authority)
        if key is None:
            return False
        algorithm = SSHPacket(certificate.signature).get_string()
        return algorithm.decode(errors="replace") in SIGNATURES and key.verify(
            certificate.signed, certificate.signature
        )
