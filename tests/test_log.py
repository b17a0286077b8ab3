"""What the operator reads: a line an event, that nobody can forge."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator

import pytest

from cmdsvc import log

HOSTILE = "x\n2026-01-01T00:00:00.000+00:00 info cmdsvc.run run user=root\r\x1b[2J\u2028\x85y"
STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00"


@pytest.fixture(autouse=True)
def loggers() -> Iterator[None]:
    """Puts back what `set_up` changes."""
    kept = [(logger, logger.level) for logger in map(logging.getLogger, ("", "cmdsvc", "asyncssh"))]
    handlers = logging.getLogger().handlers[:]
    yield
    logging.getLogger().handlers[:] = handlers
    for logger, level in kept:
        logger.setLevel(level)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.endswith("\n")
    return written.err.removesuffix("\n").split("\n")


def refuse(text: str) -> None:
    raise ValueError(text)


def fail(text: str) -> None:
    try:
        refuse(text)
    except ValueError:
        logging.getLogger("cmdsvc.x").exception("it %s", "failed", extra={"fields": {"run": "r1"}})


def test_text(capsys: pytest.CaptureFixture[str]):
    log.set_up("text")
    extra = {"fields": {"user": "ann", "exit_status": 3, "seconds": 0.25}}
    logging.getLogger("cmdsvc.run").info("run %d", 7, extra=extra)
    (line,) = lines(capsys)
    assert re.fullmatch(f"{STAMP} info cmdsvc.run run 7 user=ann exit_status=3 seconds=0.25", line)


def test_json(capsys: pytest.CaptureFixture[str]):
    log.set_up("json")
    extra = {"fields": {"user": "ann", "exit_status": 3, "where": {1}}}
    logging.getLogger("cmdsvc.run").warning("run %d", 7, extra=extra)
    (line,) = lines(capsys)
    event = json.loads(line)
    assert re.fullmatch(STAMP, event.pop("time"))
    assert event == {
        "level": "warning",
        "logger": "cmdsvc.run",
        "message": "run 7",
        "user": "ann",
        "exit_status": 3,
        "where": "{1}",
    }


@pytest.mark.parametrize("style", ["text", "json"])
def test_no_line_is_forged(style: str, capsys: pytest.CaptureFixture[str]):
    log.set_up(style)
    logging.getLogger("cmdsvc").info("%s", HOSTILE, extra={"fields": {"name": HOSTILE}})
    (line,) = lines(capsys)
    assert line.isprintable()


def test_an_exception_as_text(capsys: pytest.CaptureFixture[str]):
    log.set_up("text")
    fail(HOSTILE)
    first, *trace = lines(capsys)
    assert re.fullmatch(f"{STAMP} error cmdsvc.x it failed run=r1", first)
    assert trace[0] == "  Traceback (most recent call last):"
    assert any(line.startswith("  ValueError: x") for line in trace)
    assert all(line.startswith("  ") and line.isprintable() for line in trace)


def test_an_exception_as_json(capsys: pytest.CaptureFixture[str]):
    log.set_up("json")
    fail(HOSTILE)
    (line,) = lines(capsys)
    event = json.loads(line)
    assert (event["level"], event["message"], event["run"]) == ("error", "it failed", "r1")
    assert event["exception"].startswith("Traceback (most recent call last):\n")
    assert HOSTILE in event["exception"]


def test_what_is_worth_a_line(capsys: pytest.CaptureFixture[str]):
    log.set_up("text")
    logging.getLogger("cmdsvc").debug("no")
    logging.getLogger("another").info("no")
    logging.getLogger("asyncssh").warning("no")
    logging.getLogger("another").warning("yes")
    (line,) = lines(capsys)
    assert line.endswith("warning another yes")


def test_set_up_again_does_not_double(capsys: pytest.CaptureFixture[str]):
    log.set_up("json")
    log.set_up("text")
    logging.getLogger("cmdsvc").info("once")
    assert len(lines(capsys)) == 1
