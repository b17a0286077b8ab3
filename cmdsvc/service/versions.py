"""What a command was: applied, listed, compared, and brought back."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from io import BytesIO
from itertools import takewhile

from cmdsvc.access import Action
from cmdsvc.engine import Progress
from cmdsvc.errors import ExistsError, UsageError
from cmdsvc.model import READY_MADE, Command, Entry, Identity, VersionInfo
from cmdsvc.service.builds import Builds
from cmdsvc.service.commands import Commands
from cmdsvc.store import Store

COMPARED = 1000
"""Lines, of each side, that are compared with one another: it takes time by their square. Where
more lie between the first difference and the last, they are shown as replaced."""
CONTEXT = 3
"""Lines around a difference, as diff -u has them."""


Opcode = tuple[str, int, int, int, int]


class Applied(StrEnum):
    """What became of an `apply`."""

    CREATED = "created"
    UPDATED = "updated"
    UNCHANGED = "unchanged"


class Versions:
    def __init__(self, store: Store, commands: Commands, builds: Builds) -> None:
        self._store = store
        self._commands = commands
        self._builds = builds

    async def apply(
        self,
        identity: Identity,
        name: str,
        source: bytes,
        progress: Progress,
        *,
        rebuild: bool = False,
    ) -> tuple[Applied, Command]:
        """Makes the command what `source` says; a new version only where it is another source.

        `rebuild`: its layer is made again in any case, on its base fetched again, and that is
        recorded. Errors: those of Commands.create and Commands.edit.
        """
        applied, command = await self._apply(identity, name, source, progress, rebuild=rebuild)
        if rebuild:
            now = datetime.now(UTC)
            await self._store.record(Entry(now, identity.user, "rebuild", command.full_name))
        return applied, command

    async def _apply(
        self, identity: Identity, name: str, source: bytes, progress: Progress, *, rebuild: bool
    ) -> tuple[Applied, Command]:
        owner, slash, short = name.rpartition("/")
        if (not slash or owner == identity.user) and not await self._store.find(
            identity.user, short
        ):
            try:
                return Applied.CREATED, await self._commands.create(
                    identity, name, source, progress, again=rebuild
                )
            except ExistsError:  # another made it meanwhile
                pass
        command = await self._commands.find(identity, name, Action.EDIT)
        if command.version.source == source:
            if rebuild:
                await self._commands.rebuild(command, progress)
            return Applied.UNCHANGED, command
        return Applied.UPDATED, await self._commands.edit(
            identity, name, source, progress, again=rebuild
        )

    async def history(self, identity: Identity, name: str) -> list[VersionInfo]:
        """Newest first."""
        return await self._history(await self._commands.find(identity, name, Action.READ))

    async def source(self, identity: Identity, name: str, number: int | None = None) -> bytes:
        """Of that version, or of the current one. UsageError (64) where there is no such version."""
        command = await self._commands.find(identity, name, Action.READ)
        return await self._source(command, number)

    async def diff(self, identity: Identity, name: str, old: int, new: int) -> bytes:
        """How to come from version `old` to `new`: a unified diff, empty where they are equal.

        UsageError (64) where one of them is not there.
        """
        command = await self._commands.find(identity, name, Action.READ)
        before, after = await self._source(command, old), await self._source(command, new)
        titles = (f"{command.full_name} version {number}".encode() for number in (old, new))
        return await asyncio.to_thread(unified_diff, before, after, *titles)

    async def rollback(
        self, identity: Identity, name: str, number: int | None, progress: Progress
    ) -> Command:
        """Makes that version the current one, by default the one before the current.

        It needs no package source as long as its layer is here, else the layer is made first.
        UsageError (64) where there is no such version; whatever the build says.
        """
        command = await self._commands.find(identity, name, Action.EDIT)
        current = command.version.number
        if number is None:
            older = [v.number for v in await self._history(command) if v.number < current]
            if not older:
                raise UsageError(
                    f"there is no version before {current}, the current one",
                    f"see :history {command.name}",
                )
            number = older[0]
        source = await self._source(command, number)
        if number == current:
            return command
        _, layer = await asyncio.to_thread(self._commands.parse, source)
        await self._builds.ensure(layer, progress)
        return await self._store.set_current(command.owner, command.name, number, by=identity.user)

    async def _history(self, command: Command) -> list[VersionInfo]:
        if command.owner != READY_MADE:
            return await self._store.history(command.owner, command.name)
        v = command.version
        return [
            VersionInfo(v.number, v.author, v.created_at, v.digest, len(v.source), current=True)
        ]

    async def _source(self, command: Command, number: int | None) -> bytes:
        if number in (None, command.version.number):
            return command.version.source
        source = await self._store.source(command.owner, command.name, number)
        if source is None:
            raise UsageError(
                f"there is no version {number} of {command.full_name}",
                f"see :history {command.name}",
            )
        return source


def unified_diff(before: bytes, after: bytes, old: bytes, new: bytes) -> bytes:
    """As diff -u prints it, empty where they are equal; `old` and `new` are its titles."""
    if before == after:
        return b""
    a, b = BytesIO(before).readlines(), BytesIO(after).readlines()
    head = _alike(zip(a, b, strict=False))
    tail = min(_alike(zip(reversed(a), reversed(b), strict=False)), len(a) - head, len(b) - head)
    start, above, below = max(head - CONTEXT, 0), min(head, CONTEXT), min(tail, CONTEXT)
    a, b = a[start : len(a) - tail + below], b[start : len(b) - tail + below]
    groups: Iterable[list[Opcode]]
    if max(len(a), len(b)) <= COMPARED:
        groups = difflib.SequenceMatcher(None, a, b).get_grouped_opcodes(CONTEXT)
    else:
        groups = [
            [
                ("equal", 0, above, 0, above),
                ("replace", above, len(a) - below, above, len(b) - below),
                ("equal", len(a) - below, len(a), len(b) - below, len(b)),
            ]
        ]
    parts = [b"--- %b\n+++ %b\n" % (old, new)]
    for group in groups:
        (_, a1, _, b1, _), (_, _, a2, _, b2) = group[0], group[-1]
        parts.append(b"@@ -%b +%b @@\n" % (_range(start, a1, a2), _range(start, b1, b2)))
        for tag, i1, i2, j1, j2 in group:
            if tag == "equal":
                parts += [_line(b" ", line) for line in a[i1:i2]]
                continue
            parts += [_line(b"-", line) for line in a[i1:i2]]
            parts += [_line(b"+", line) for line in b[j1:j2]]
    return b"".join(parts)


def _alike(pairs: Iterable[tuple[bytes, bytes]]) -> int:
    """How many of the first are alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _range(start: int, first: int, last: int) -> bytes:
    """The lines `first` to `last`, counted from 0 at `start`, as a hunk's heading has them."""
    count = last - first
    return b"%d,%d" % (start + first + (1 if count else 0), count)


def _line(mark: bytes, line: bytes) -> bytes:
    ended = line if line.endswith(b"\n") else line + b"\n\\ No newline at end of file\n"
    return mark + ended
