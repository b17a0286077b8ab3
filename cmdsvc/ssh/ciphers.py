"""chacha20-poly1305@openssh.com (PROTOCOL.chacha20poly1305) as asyncssh has it, at half the cost.

It is what OpenSSH's client chooses by itself. asyncssh makes three cipher contexts for a packet;
here two serve all packets of a direction.
"""

from __future__ import annotations

from asyncssh.encryption import Encryption, register_encryption_alg
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.poly1305 import Poly1305

NAME = b"chacha20-poly1305@openssh.com"
FIRST = bytes(8)
"""The block counter at a packet's beginning."""
BLOCK = bytes(64)
"""ChaCha20's; what the first one becomes is Poly1305's key, the data begins with the second."""
KEY = 32
"""Bytes of one of the two keys."""


class Chacha(Encryption):
    """One direction of a connection."""

    def __init__(self, key: bytes) -> None:
        start = bytes(16)
        self._data = Cipher(ChaCha20(key[:KEY], start), mode=None).encryptor()
        self._length = Cipher(ChaCha20(key[KEY:], start), mode=None).encryptor()

    @classmethod
    def new(  # noqa: PLR0917 - asyncssh calls it so
        cls,
        cipher_name: str,
        key: bytes,
        iv: bytes,
        mac_alg: bytes = b"",
        mac_key: bytes = b"",
        etm: bool = False,
    ) -> Chacha:
        del cipher_name, iv, mac_alg, mac_key, etm
        return cls(key)

    @classmethod
    def needs_mac(cls) -> bool:
        return False

    @classmethod
    def get_mac_params(cls, mac_alg: bytes) -> tuple[int, int, bool]:
        del mac_alg
        return 0, 16, True

    def encrypt_packet(self, seq: int, header: bytes, packet: bytes) -> tuple[bytes, bytes]:
        mac = self._begin(seq)
        sealed = self._crypt_length(seq, header) + self._data.update(packet)
        mac.update(sealed)
        return sealed, mac.finalize()

    def decrypt_header(self, seq: int, first_block: bytes, header_len: int) -> tuple[bytes, bytes]:
        return first_block, self._crypt_length(seq, first_block[:header_len])

    def decrypt_packet(
        self, seq: int, first: bytes, rest: bytes, header_len: int, mac: bytes
    ) -> bytes | None:
        """None where it is not what was sent."""
        expected = self._begin(seq)
        expected.update(first)
        expected.update(rest)
        try:
            expected.verify(mac)
        except InvalidSignature:
            return None
        return self._data.update(first[header_len:]) + self._data.update(rest)

    def _begin(self, seq: int) -> Poly1305:
        self._data.reset_nonce(FIRST + seq.to_bytes(8, "big"))
        return Poly1305(self._data.update(BLOCK)[:KEY])

    def _crypt_length(self, seq: int, header: bytes) -> bytes:
        self._length.reset_nonce(FIRST + seq.to_bytes(8, "big"))
        return self._length.update(header)


def use() -> None:
    """Has asyncssh take it in the place of its own."""
    register_encryption_alg(NAME, Chacha, "chacha20-poly1305", False)
