"""How secrets are kept: sealed by a key that is not where they are; pure.

A sealed value is a byte for the format, four that name the key, a random nonce, and what AES-256-GCM
makes of the value. Where the value belongs, its place, is authenticated with it: moved to another
place it does not open. A key may seal 2**32 values before two nonces are too likely the same
(NIST SP 800-38D, 8.3).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cmdsvc.errors import InternalError

FORMAT = b"\x01"
KEY = 32
_ID = 4
_NONCE = 12
_TAG = 16
_HEAD = len(FORMAT) + _ID
OVERHEAD = _HEAD + _NONCE + _TAG
"""Bytes that a sealed value is longer than the value."""

_HEADING = """\
# What cmdsvc seals secrets with. Nobody can read them again without it: keep a copy of this file,
# apart from those of the store.
"""


class BrokenSealError(InternalError):
    """It was changed, is of another place, or was sealed with a key that is not here."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The secrets of a service. `previous` is there while what it sealed is sealed anew."""

    current: bytes = field(repr=False)
    hashing: bytes = field(repr=False)
    """For what is only compared; it stays when the other is replaced."""
    previous: bytes | None = field(default=None, repr=False)

    @classmethod
    def new(cls) -> Keys:
        return cls(secrets.token_bytes(KEY), secrets.token_bytes(KEY))

    @property
    def id(self) -> str:
        """Names the current key, and tells nothing of it."""
        return _id(self.current).hex()

    def rotated(self) -> Keys:
        """With a new key, and the current one as the previous."""
        return Keys(secrets.token_bytes(KEY), self.hashing, self.current)

    def settled(self) -> Keys:
        """Without the previous one."""
        return Keys(self.current, self.hashing)


def render(keys: Keys) -> str:
    """`keys` as the text of a file."""
    lines = [
        f"seal {_id(key).hex()} {_text(key)}\n"
        for key in (keys.current, keys.previous)
        if key is not None
    ]
    return "".join([_HEADING, *lines, f"hash {_id(keys.hashing).hex()} {_text(keys.hashing)}\n"])


def parse(text: str) -> Keys:
    """What `render` made. ValueError names what is wrong, and repeats nothing of it."""
    seal: list[bytes] = []
    hashing: list[bytes] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            kind, name, coded = words
            key = base64.b64decode(coded, validate=True)
            into = {"seal": seal, "hash": hashing}[kind]
        except (ValueError, KeyError):
            raise ValueError(f"line {number} is not a key") from None
        if len(key) != KEY or _id(key).hex() != name:
            raise ValueError(f"the key in line {number} is damaged")
        into.append(key)
    if not 1 <= len(seal) <= 2 or len(hashing) != 1:
        raise ValueError("it is not complete")
    return Keys(seal[0], hashing[0], *seal[1:])


class Sealer:
    """Seals with the current key; opens what either sealed."""

    def __init__(self, keys: Keys) -> None:
        self._current = _id(keys.current)
        self._hashing = keys.hashing
        used = [key for key in (keys.current, keys.previous) if key is not None]
        self._ciphers = {_id(key): AESGCM(key) for key in used}

    def seal(self, value: bytes, *place: str) -> bytes:
        head = FORMAT + self._current
        nonce = secrets.token_bytes(_NONCE)
        cipher = self._ciphers[self._current]
        return head + nonce + cipher.encrypt(nonce, value, _bound(head, place))

    def open(self, sealed: bytes, *place: str) -> bytes:
        """The value that was sealed for this place. BrokenSealError."""
        head, nonce = sealed[:_HEAD], sealed[_HEAD : _HEAD + _NONCE]
        cipher = self._ciphers.get(self._key(sealed))
        if cipher is None:
            raise BrokenSealError(f"{'/'.join(place)} was sealed with a key that is not here")
        try:
            return cipher.decrypt(nonce, sealed[_HEAD + _NONCE :], _bound(head, place))
        except InvalidTag:
            raise BrokenSealError(f"what is kept as {'/'.join(place)} is not what it was") from None

    def knows(self, sealed: bytes) -> bool:
        """Whether the key that sealed it is here."""
        return self._key(sealed) in self._ciphers

    def is_current(self, sealed: bytes) -> bool:
        return self._key(sealed) == self._current

    def hash(self, data: bytes) -> bytes:
        """A keyed hash (HMAC-SHA-256), the same as long as the service keeps its key file."""
        return hmac.digest(self._hashing, data, "sha256")

    def _key(self, sealed: bytes) -> bytes:
        """Names the key of a value; of what is none, nothing."""
        if not sealed.startswith(FORMAT) or len(sealed) < OVERHEAD:
            return b""
        return sealed[len(FORMAT) : _HEAD]


def _bound(head: bytes, place: tuple[str, ...]) -> bytes:
    return head + json.dumps(place).encode()


def _id(key: bytes) -> bytes:
    return hashlib.sha256(b"cmdsvc key\0" + key).digest()[:_ID]


def _text(key: bytes) -> str:
    return base64.b64encode(key).decode()
