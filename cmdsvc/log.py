"""The service's log: one line per event on stderr, as text or as JSON.

As text an exception's lines follow, indented.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

from cmdsvc.errors import printable


def set_up(style: Literal["text", "json"]) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if style == "json" else _Text())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("cmdsvc").setLevel(logging.INFO)
    # What strangers send is not worth a line; what matters is logged by ssh/ itself.
    logging.getLogger("asyncssh").setLevel(logging.ERROR)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = getattr(record, "fields", {})
        words = [
            _time(record),
            record.levelname.lower(),
            record.name,
            record.getMessage(),
            *(f"{key}={value}" for key, value in fields.items()),
        ]
        line = printable(" ".join(words)).replace("\n", " ")
        if not record.exc_info:
            return line
        # Indented, so that no error's text can pass for an event of its own.
        trace = printable(self.formatException(record.exc_info)).replace("\n", "\n  ")
        return f"{line}\n  {trace}"


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
