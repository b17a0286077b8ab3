"""What a builtin is made of: its words, what it is given, and how it answers."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import unicodedata
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from cmdsvc.engine import Progress
from cmdsvc.errors import DataError, UsageError, one_line, printable
from cmdsvc.model import Identity, Terminal
from cmdsvc.relay import Caller
from cmdsvc.service.commands import Commands
from cmdsvc.service.editor import Editor
from cmdsvc.service.runs import Runs

PROGRESS_MAX = 1000
"""Lines of progress kept for a client that reads slowly; the oldest are dropped."""


@dataclass(frozen=True, slots=True)
class Services:
    """The behaviour that a door has at hand."""

    commands: Commands
    runs: Runs
    editor: Editor
    max_source: int


class Parser(argparse.ArgumentParser):
    """argparse, whose errors are UsageErrors and whose help is returned instead of printed."""

    def __init__(self, verb: str, summary: str, example: str) -> None:
        super().__init__(
            prog=verb,
            description=summary,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=False,
            allow_abbrev=False,
        )
        self.add_argument("--help", action="store_true", help="show this help")

    def error(self, message: str) -> NoReturn:
        raise UsageError(printable(message), f"see {self.prog} --help")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise UsageError(message or str(status), f"see {self.prog} --help")


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a builtin."""

    identity: Identity
    services: Services
    caller: Caller
    terminal: Terminal | None
    options: argparse.Namespace

    async def out(self, text: str) -> None:
        """Text for stdout, as it is but for a terminal's line ends."""
        await self._write(1, text)

    async def err(self, text: str) -> None:
        await self._write(2, text)

    async def _write(self, fd: int, text: str) -> None:
        if self.terminal:
            text = text.replace("\n", "\r\n")
        if text:
            await self.caller.write(fd, text.encode(errors="replace"))

    async def source(self) -> bytes:
        """All of stdin, within the limit: one byte over it and DataError says so at once."""
        limit = self.services.max_source
        parts, size = [], 0
        async for data in self.caller.stdin():
            if self.terminal:
                await self.caller.write(1, data.replace(b"\r", b"\r\n"))
                data = data.replace(b"\r", b"\n")  # noqa: PLW2901 - as the line discipline does
                if b"\x03" in data:
                    raise UsageError("interrupted", "nothing was stored")
            typed, end, _ = data.partition(b"\x04") if self.terminal else (data, b"", b"")
            parts.append(typed)
            size += len(typed)
            if size > limit:
                raise DataError(
                    f"the source is larger than {limit} bytes",
                    "make it smaller, or ask the operator",
                )
            if end:
                break
        return b"".join(parts)

    @contextlib.asynccontextmanager
    async def progress(self) -> AsyncIterator[Progress]:
        """Takes lines and shows them: one that changes on a terminal, else all of them on stderr."""
        lines: deque[str] = deque(maxlen=PROGRESS_MAX)
        wake = asyncio.Event()
        over = False

        def tell(line: str) -> None:
            lines.append(printable(line))
            wake.set()

        async def show() -> None:
            while lines or not over:
                if not lines:
                    wake.clear()
                    await wake.wait()
                    continue
                line = lines.popleft()
                if self.terminal:
                    await self._write(2, f"\r\x1b[K{_fit(line, self.terminal.columns - 1)}")
                else:
                    await self._write(2, f"{line}\n")

        shower = asyncio.create_task(show())
        try:
            yield tell
        finally:
            over = True
            wake.set()
            await shower
            if self.terminal:
                await self._write(2, "\r\x1b[K")

    async def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A listing: JSON if asked for, a table with a header on a terminal, else tab-separated."""
        if getattr(self.options, "json", False):
            keys = [column.lower() for column in columns]
            listing = [dict(zip(keys, row, strict=True)) for row in rows]
            text = json.dumps(listing, indent=2, ensure_ascii=False)
            if not text.replace("\n", "").isprintable():  # what could move a terminal's cursor
                text = json.dumps(listing, indent=2)
            await self.out(f"{text}\n")
            return
        clean = [[_cell(cell) for cell in row] for row in rows]
        if self.terminal is None:
            await self.out("".join("\t".join(row) + "\n" for row in clean))
            return
        table = [[column.upper() for column in columns], *clean]
        widths = [max(map(_width, cells)) for cells in zip(*table, strict=True)]
        for row in table:
            cells = (c + " " * (w - _width(c)) for c, w in zip(row, widths, strict=True))
            await self.out(_fit("  ".join(cells).rstrip(), self.terminal.columns) + "\n")


@dataclass(frozen=True, slots=True)
class Builtin:
    """A verb. `words` is how it is used, for the help; `arguments` adds them to the parser."""

    verb: str
    summary: str
    example: str
    run: Callable[[Call], Awaitable[int]]
    arguments: Callable[[Parser], None] = lambda _: None
    alias: str | None = None

    def parser(self) -> Parser:
        parser = Parser(self.verb, self.summary, self.example)
        self.arguments(parser)
        return parser


def _cell(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else one_line(str(value))


def _width(text: str) -> int:
    """Columns that a terminal needs for `text` (Unicode Standard Annex 11)."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def _fit(text: str, columns: int) -> str:
    room = max(columns, 20)
    for index, character in enumerate(text):
        room -= _width(character)
        if room < 0:
            return text[:index]
    return text
