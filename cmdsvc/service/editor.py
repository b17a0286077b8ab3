"""An editor for a source, on the caller's terminal, in a sandbox like any other."""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from cmdsvc.engine import Engine, Invocation
from cmdsvc.errors import DataError, EngineError
from cmdsvc.model import SCRIPT_PATH, SEARCH_PATH, WORK_DIR, Limits, Network, Reason, Terminal
from cmdsvc.recipe import Recipe
from cmdsvc.relay import Caller, Event, relay
from cmdsvc.service.builds import Builds

BASE = "alpine"
"""Its busybox has vi."""
SESSION = 3600.0
"""Seconds that an editor may be open."""

_EDIT = (
    b'cp "$1" source.cmd && chmod 600 source.cmd && vi source.cmd && '
    b'printf "%s" "$2" && base64 source.cmd'
)


@dataclass(slots=True)
class _Captured:
    """The caller, but for what the sandbox prints behind the mark, which is kept here."""

    caller: Caller
    mark: bytes
    limit: int
    kept: bytes | None = None
    _held: bytes = b""

    def stdin(self) -> AsyncIterator[bytes]:
        return self.caller.stdin()

    def events(self) -> AsyncIterator[Event]:
        return self.caller.events()

    async def write(self, fd: int, data: bytes) -> None:
        if self.kept is not None:
            self.kept = (self.kept + data)[: self.limit]
            return
        data = self._held + data
        shown, mark, rest = data.partition(self.mark)
        if mark:
            self.kept, self._held = rest, b""
        else:
            tail = _overlap(data, self.mark)
            shown, self._held = data[: len(data) - tail], data[len(data) - tail :]
        if shown:
            await self.caller.write(fd, shown)


def _overlap(data: bytes, mark: bytes) -> int:
    """How many of the last bytes of `data` may be the first of `mark`."""
    return next(n for n in range(min(len(data), len(mark)), -1, -1) if data.endswith(mark[:n]))


class Editor:
    def __init__(
        self, engine: Engine, builds: Builds, limits: Limits, bases: Mapping[str, str], largest: int
    ) -> None:
        self._engine = engine
        self._builds = builds
        self._limits = limits
        self._recipe = Recipe(BASE, "", (), bases[BASE])
        self._largest = largest

    async def edit(self, source: bytes, caller: Caller, terminal: Terminal) -> bytes:
        """The source as the caller left it. Nothing is stored where it fails."""
        await self._builds.ensure(self._recipe, lambda _: None)
        mark = secrets.token_hex(16).encode()
        job = await self._engine.start(
            Invocation(
                run_id=f"edit-{secrets.token_hex(8)}",
                recipe=self._recipe,
                argv=(b"/bin/sh", b"-c", _EDIT, b"sh", SCRIPT_PATH, mark),
                script=source,
                env={b"PATH": SEARCH_PATH, b"HOME": WORK_DIR, b"TERM": terminal.term.encode()},
                limits=self._limits,
                network=Network.NONE,
                terminal=terminal,
            )
        )
        captured = _Captured(caller, mark, 2 * self._largest)
        outcome = await relay(captured, job, timeout=SESSION)
        if outcome.reason in {Reason.TIMEOUT, Reason.MEMORY, Reason.ENGINE}:
            raise EngineError(f"the editor ended early: {outcome.message}", "nothing was stored")
        if outcome.exit_status != 0 or captured.kept is None:
            raise DataError("the editor failed", "nothing was stored")
        try:
            return base64.b64decode(captured.kept)
        except binascii.Error:
            raise DataError(
                f"the source is larger than {self._largest} bytes", "nothing was stored"
            ) from None
