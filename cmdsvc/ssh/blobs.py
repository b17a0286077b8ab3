"""Public keys in SSH's own form (RFC 4253, section 6.6), taken apart without any arithmetic."""

from __future__ import annotations

import base64
import binascii
import hashlib

from asyncssh.packet import SSHPacket

SIGNATURES = (
    "ssh-ed25519",
    "sk-ssh-ed25519@openssh.com",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ecdsa-sha2-nistp256@openssh.com",
    "rsa-sha2-512",
    "rsa-sha2-256",
)
"""The algorithms of signatures that prove anything here: none of them is made with SHA-1."""

PARTS = {
    b"ssh-ed25519": 1,
    b"sk-ssh-ed25519@openssh.com": 2,
    b"ecdsa-sha2-nistp256": 2,
    b"ecdsa-sha2-nistp384": 2,
    b"ecdsa-sha2-nistp521": 2,
    b"sk-ecdsa-sha2-nistp256@openssh.com": 3,
    b"ssh-rsa": 2,
    b"ssh-dss": 4,
}
"""How many strings and numbers make up a key of each type."""

HARDWARE = b"sk-"
"""What the types of keys on security keys begin with."""
USER_VERIFIED = 0x04
"""In a security key's signature: its user gave a PIN or a finger (PROTOCOL.u2f)."""


def string(data: bytes) -> bytes:
    """A string of RFC 4251, section 5."""
    return len(data).to_bytes(4, "big") + data


def blob_of(type_: str, text: str) -> bytes:
    """The key that "TYPE BASE64" stands for. ValueError where it is none, or of an unknown type."""
    try:
        blob = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError("not base64") from None
    packet = SSHPacket(blob)
    kind = packet.get_string()
    if kind != type_.encode(errors="replace") or kind not in PARTS:
        raise ValueError("not a public key")
    for _ in range(PARTS[kind]):
        packet.get_string()
    packet.check_end()
    return blob


def line_of(blob: bytes) -> str:
    """The two words that `blob_of` takes."""
    kind = SSHPacket(blob).get_string()
    return f"{kind.decode()} {base64.b64encode(blob).decode()}"


def fingerprint(blob: bytes) -> str:
    """As ssh-keygen prints it."""
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode()
    return f"SHA256:{digest.rstrip('=')}"


def is_hardware(blob: bytes) -> bool:
    return blob[4:].startswith(HARDWARE)


def verified(signature: bytes) -> bool:
    """Whether a security key's signature says that its user was verified (PROTOCOL.u2f)."""
    packet = SSHPacket(signature)
    packet.get_string()  # the algorithm
    packet.get_string()  # the signature itself
    return bool(packet.get_byte() & USER_VERIFIED)
