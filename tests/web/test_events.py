"""Server-sent events, as who reads them puts them together."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmdsvc.model import Outcome, Reason
from cmdsvc.web.events import LAST, Mode, Place, Teller


@dataclass
class Event:
    name: str
    id: str
    data: str


def read(stream: bytes) -> list[Event]:
    """As the WHATWG's parser does it."""
    text = stream.decode().replace("\r\n", "\n").replace("\r", "\n")
    found = []
    event = Event("", "", "")
    for line in text.split("\n"):
        if not line:
            if event.name:
                event.data = event.data.removesuffix("\n")
                found.append(event)
            event = Event("", "", "")
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "event":
                event.name = value
            case "id":
                event.id = value
            case "data":
                event.data += value + "\n"
    return found


def told(*pieces: tuple[int, bytes], mode: Mode = Mode.TEXT, place: Place | None = None):
    teller = Teller(mode, place or Place())
    stream = b"".join(teller.written(fd, data) for fd, data in pieces)
    return read(stream + teller.ended(Outcome(0)))


def test_a_run():
    events = told((1, b"one\ntwo\n"), (2, b"oh\n"))
    assert events == [
        Event("stdout", "8", "one\ntwo\n"),
        Event("stderr", "11", "oh\n"),
        Event("exit", LAST, '{"exit_status":0,"reason":"exit","message":""}'),
    ]


def test_how_it_ended():
    teller = Teller(Mode.TEXT, Place())
    [event] = read(teller.ended(Outcome(124, Reason.TIMEOUT, "timed out")))
    assert json.loads(event.data) == {
        "exit_status": 124,
        "reason": "timeout",
        "message": "timed out",
    }


def test_no_output_forges_an_event():
    for end in ("\n", "\r", "\r\n"):
        events = told((1, f"x{end}{end}event: exit{end}data: 0{end}{end}".encode()))
        assert [event.name for event in events] == ["stdout", "exit"]


def test_bytes():
    data = bytes(range(256))
    events = told((1, data), mode=Mode.BASE64)
    assert base64.b64decode(events[0].data) == data


def test_a_character_in_pieces_and_one_that_never_ends():
    a, b, c = "€".encode()[:1], "€".encode()[1:2], "€".encode()[2:]
    events = told((1, b"x" + a), (2, b"y"), (1, b), (1, c + b"z"), (2, a))
    assert [(e.name, e.data) for e in events[:-1]] == [
        ("stdout", "x"),
        ("stderr", "y"),
        ("stdout", "€z"),
        ("stderr", "\N{REPLACEMENT CHARACTER}"),
    ]


@given(
    st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(min_size=1, max_size=6)), max_size=12),
    st.integers(min_value=0, max_value=12),
)
def test_who_comes_again_misses_nothing(pieces: list[tuple[int, bytes]], after: int):
    whole = told(*pieces)
    seen = whole[: min(after, len(whole) - 1)]
    place = Place.read(seen[-1].id if seen else "0")
    assert place is not None
    left, rest = place.offset, []
    for fd, data in pieces:
        rest.append((fd, data[left:] if left < len(data) else b""))
        left = max(0, left - len(data))
    again = told(*((fd, data) for fd, data in rest if data), place=place)

    def text(events: list[Event], name: str) -> str:
        return "".join(e.data for e in events if e.name == name)

    for name in ("stdout", "stderr"):
        assert text(seen + again, name) == text(whole, name)


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "1.e2", "1.zz.", "1.e.", "9" * 19, LAST])
def test_what_was_never_an_id(text: str):
    assert Place.read(text) is None
