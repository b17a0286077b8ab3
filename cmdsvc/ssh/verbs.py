"""What a builtin is made of: its words, what it is given, and how it answers."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import unicodedata
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

from cmdsvc.engine import Progress
from cmdsvc.errors import DataError, UsageError, one_line, printable
from cmdsvc.model import Identity, Terminal
from cmdsvc.relay import Caller
from cmdsvc.service.commands import Commands
from cmdsvc.service.editor import Editor
from cmdsvc.service.environment import Environment
from cmdsvc.service.hooks import Hooks
from cmdsvc.service.invocation import Request
from cmdsvc.service.keeping import Keeping
from cmdsvc.service.notices import Notices
from cmdsvc.service.runs import Runs
from cmdsvc.service.schedules import Schedules
from cmdsvc.service.sharing import Sharing
from cmdsvc.service.top import Top
from cmdsvc.service.versions import Versions
from cmdsvc.ssh.ownkeys import OwnKeys

PROGRESS_MAX = 1000
"""Lines of progress kept for a client that reads slowly; the oldest are dropped."""
LINE_BREAKS = (b"\r\n", b"\n")


@dataclass(frozen=True, slots=True)
class Services:
    """The behaviour that a door has at hand."""

    commands: Commands
    runs: Runs
    sharing: Sharing
    env: Environment
    hooks: Hooks
    schedules: Schedules
    top: Top
    versions: Versions
    keys: OwnKeys
    keeping: Keeping
    notices: Notices
    editor: Editor
    max_source: int
    address: Callable[[], tuple[str, int]]
    """Where SSH is served."""


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
        # What follows a = may be a secret.
        raise UsageError(printable(message.partition("=")[0]), f"see {self.prog} --help")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise UsageError(message or str(status), f"see {self.prog} --help")


def grants(parser: Parser, metavar: str, what: str) -> None:
    """The arguments of what lists, grants and revokes."""
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("what", nargs="?", choices=["ls", "grant", "revoke"], default="ls")
    parser.add_argument("subjects", nargs="*", metavar=metavar, help=what)
    parser.add_argument("-j", "--json", action="store_true", help="a list of objects")


def granted(options: argparse.Namespace) -> list[str]:
    """Whom `grants` names; UsageError where it names nobody to grant or revoke, or one to list."""
    subjects: list[str] = options.subjects
    if bool(subjects) == (options.what == "ls"):
        raise UsageError("name who is meant", "NAME [ls | grant WHO... | revoke WHO...]")
    return subjects


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a builtin."""

    identity: Identity
    services: Services
    caller: Caller
    terminal: Terminal | None
    options: argparse.Namespace
    request: Callable[[str, Sequence[str]], Request]
    """Asks for a run of that command with these arguments, as the caller would by itself."""

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

    async def value(self, most: int, example: str) -> bytes:
        """All of stdin, less one line break at its end; no more than is more than `most` bytes."""
        if self.terminal:  # where what is typed would have to be hidden, and edited
            raise UsageError("a value is read from a pipe", f"ssh HOST {example} < FILE")
        value = bytearray()
        async for data in self.caller.stdin():
            value += data
            if len(value) > most + max(map(len, LINE_BREAKS)):
                break
        for ending in LINE_BREAKS:
            if value.endswith(ending):
                return bytes(value.removesuffix(ending))
        return bytes(value)

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
        for line in layout(columns, clean, self.terminal.columns):
            await self.out(f"{line}\n")

    async def typed(self, keys: bytes) -> bool:
        """Whether one of `keys` was typed on the terminal before its input ended."""
        async for data in self.caller.stdin():
            if any(key in data for key in keys):
                return True
        return False


@dataclass(frozen=True, slots=True)
class Builtin:
    """A verb. `words` is how it is used, for the help; `arguments` adds them to the parser."""

    verb: str
    summary: str
    example: str
    run: Callable[[Call], Awaitable[int]]
    arguments: Callable[[Parser], None] = lambda _: None
    alias: str | None = None
    own: Callable[[Sequence[str]], int] | None = None
    """How many of the words are the builtin's, where others follow that are not to be parsed:
    `options.rest` has them."""

    def parser(self) -> Parser:
        parser = Parser(self.verb, self.summary, self.example)
        self.arguments(parser)
        return parser


def layout(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """The lines of a table with its header, each cut to `width` columns of a terminal."""
    table = [[column.upper() for column in columns], *rows]
    widths = [max(map(_width, cells)) for cells in zip(*table, strict=True)]
    for row in table:
        cells = (c + " " * (w - _width(c)) for c, w in zip(row, widths, strict=True))
        yield _fit("  ".join(cells).rstrip(), width)


def _cell(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else one_line(str(value))


def spell_size(size: float) -> str:
    """Bytes in powers of 1024, three digits."""
    for unit in ("", "K", "M", "G"):
        if size < 1000:
            return f"{size:.0f}{unit}" if not unit or size >= 100 else f"{size:.1f}{unit}"
        size /= 1024
    return f"{size:.1f}T"


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
