"""Our chacha20-poly1305 against asyncssh's."""

from __future__ import annotations

import os

import pytest
from asyncssh.crypto import ChachaCipher
from asyncssh.encryption import get_encryption

from cmdsvc.ssh import ciphers

KEY = bytes(range(64))


@pytest.mark.parametrize("seq", [0, 1, 0x80000000, 0xFFFFFFFF])
@pytest.mark.parametrize("size", [8, 63, 64, 65, 32776])
def test_it_is_the_same_cipher(seq: int, size: int) -> None:
    header, data, nonce = size.to_bytes(4, "big"), os.urandom(size), seq.to_bytes(8, "big")
    theirs = ChachaCipher(KEY)
    sealed, mac = ciphers.Chacha(KEY).encrypt_packet(seq, header, data)
    assert (sealed, mac) == theirs.encrypt_and_sign(header, data, nonce)
    opening = ciphers.Chacha(KEY)
    first, rest = sealed[:8], sealed[8:]
    assert opening.decrypt_header(seq, first, 4) == (first, header)
    assert opening.decrypt_packet(seq, first, rest, 4, mac) == data


def test_what_was_changed_on_the_way_is_refused_and_spoils_nothing() -> None:
    sealing, opening = ciphers.Chacha(KEY), ciphers.Chacha(KEY)
    header, data = (16).to_bytes(4, "big"), os.urandom(16)
    sealed, mac = sealing.encrypt_packet(7, header, data)
    for place in range(len(sealed)):
        other = bytearray(sealed)
        other[place] ^= 1
        assert opening.decrypt_packet(7, bytes(other[:8]), bytes(other[8:]), 4, mac) is None
    assert opening.decrypt_packet(8, sealed[:8], sealed[8:], 4, mac) is None
    assert opening.decrypt_packet(7, sealed[:8], sealed[8:], 4, mac[:15]) is None
    assert opening.decrypt_packet(7, sealed[:8], sealed[8:], 4, mac) == data


def test_asyncssh_takes_it() -> None:
    ciphers.use()
    assert isinstance(get_encryption(ciphers.NAME, KEY, b""), ciphers.Chacha)
