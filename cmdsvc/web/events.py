"""Server-sent events of a run (https://html.spec.whatwg.org/multipage/server-sent-events.html); pure.

An event's id says how much of the output was told with it, so that who comes again gets the rest.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import json
import re
from dataclasses import dataclass, field
from enum import Enum

from cmdsvc.model import Outcome

EVENT_HEADERS = (
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-store"),
    ("x-accel-buffering", "no"),  # nginx hands it on as it comes
)
LAST = "end"
"""The id of the last event: nothing comes after it."""

_NAMES = {1: "stdout", 2: "stderr"}
_LINE = re.compile(r"\r\n|\r|\n")
_PLACE = re.compile(r"([0-9]{1,18})(?:\.([0-9a-f]{0,6})\.([0-9a-f]{0,6}))?")


class Mode(Enum):
    TEXT = "text"
    """What is no UTF-8 is replaced."""
    BASE64 = "base64"


@dataclass(slots=True)
class Place:
    """How far a run's output was told."""

    offset: int = 0
    """Bytes of both streams."""
    begun: dict[int, bytes] = field(default_factory=dict)
    """Of a stream's character that had not come to its end."""

    @classmethod
    def read(cls, text: str) -> Place | None:
        """None for what no event had as its id."""
        match = _PLACE.fullmatch(text)
        if match is None:
            return None
        try:
            begun = {fd: binascii.unhexlify(match[fd + 1] or "") for fd in _NAMES}
        except ValueError:
            return None
        return cls(int(match[1]), begun)

    def __str__(self) -> str:
        if not any(self.begun.values()):
            return str(self.offset)
        return f"{self.offset}.{self.begun.get(1, b'').hex()}.{self.begun.get(2, b'').hex()}"


class Teller:
    def __init__(self, mode: Mode, place: Place) -> None:
        self._mode = mode
        self._place = place
        self._decoders = {fd: codecs.getincrementaldecoder("utf-8")("replace") for fd in _NAMES}
        for fd, begun in place.begun.items():
            self._decoders[fd].decode(begun)

    def written(self, fd: int, data: bytes) -> bytes:
        """The event of it; b"" where it is only a part of a character."""
        self._place.offset += len(data)
        if self._mode is Mode.BASE64:
            return self._event(_NAMES[fd], base64.b64encode(data).decode())
        decoder = self._decoders[fd]
        text = decoder.decode(data)
        self._place.begun[fd] = decoder.getstate()[0]
        return self._event(_NAMES[fd], text) if text else b""

    def left_out(self, size: int) -> bytes:
        """So many bytes are not kept."""
        self._place.offset += size
        return self._event("gap", str(size))

    def ended(self, outcome: Outcome) -> bytes:
        rest = b""
        for fd, decoder in self._decoders.items():
            text = decoder.decode(b"", final=True)
            self._place.begun[fd] = b""
            if text and self._mode is Mode.TEXT:
                rest += self._event(_NAMES[fd], text)
        said = {
            "exit_status": outcome.exit_status,
            "reason": outcome.reason,
            "message": outcome.message,
        }
        return rest + _event("exit", LAST, json.dumps(said, separators=(",", ":")))

    def _event(self, name: str, data: str) -> bytes:
        return _event(name, str(self._place), data)


def _event(name: str, id_: str, data: str) -> bytes:
    lines = "".join(f"data: {line}\n" for line in _LINE.split(data))
    return f"event: {name}\nid: {id_}\n{lines}\n".encode()
