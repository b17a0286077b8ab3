"""What a failure is to a caller: a status and one harmless line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmdsvc import errors
from cmdsvc.errors import CmdError, one_line, printable

STATUSES = {
    "CmdError": (70, 500),
    "UsageError": (64, 400),
    "DataError": (65, 422),
    "InternalError": (70, 500),
    "ExistsError": (73, 409),
    "BusyError": (75, 503),
    "TooManyError": (75, 429),
    "ForbiddenError": (77, 403),
    "TimedOutError": (124, 504),
    "EngineError": (125, 502),
    "NotExecutableError": (126, 500),
    "NotFoundError": (127, 404),
}


def test_every_class_has_its_statuses():
    classes = {
        name: (kind.exit_status, kind.http_status)
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, CmdError)
    }
    assert classes == STATUSES


@pytest.mark.parametrize("name", STATUSES)
def test_what_and_hint(name: str):
    error = getattr(errors, name)("it broke", "mend it")
    assert isinstance(error, CmdError)
    assert (error.what, error.hint, str(error)) == ("it broke", "mend it", "it broke; mend it")


def test_without_a_hint():
    assert str(CmdError("it broke")) == "it broke"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ""),
        ("a  b", "a b"),
        (" a\tb\n\nc\n", "a b c"),
        ("a\r\nb", "a\N{REPLACEMENT CHARACTER} b"),
        ("\x1b[2Jx", "\N{REPLACEMENT CHARACTER}[2Jx"),
        ("\x9b2Jx", "\N{REPLACEMENT CHARACTER}2Jx"),
        ("a\u2028b", "a\N{REPLACEMENT CHARACTER}b"),
        ("a\u202eb", "a\N{REPLACEMENT CHARACTER}b"),
        ("a\udcffb", "a\N{REPLACEMENT CHARACTER}b"),
        ("Grüße, 世界 🎉", "Grüße, 世界 🎉"),
    ],
)
def test_one_line(text: str, line: str):
    assert one_line(text) == line
    assert str(CmdError(text)) == line


def test_printable_keeps_lines_and_columns():
    assert (
        printable("a\tb\nc\x00d\x7f")
        == "a\tb\nc\N{REPLACEMENT CHARACTER}d\N{REPLACEMENT CHARACTER}"
    )


@given(st.text(), st.text())
def test_no_error_moves_a_cursor_or_forges_a_line(what: str, hint: str):
    line = str(CmdError(what, hint))
    assert line.isprintable()
    assert len((line + "|").splitlines()) == 1
    line.encode()
