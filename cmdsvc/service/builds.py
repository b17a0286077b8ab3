"""Package layers: one build of each at a time, shared by all who want it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from cmdsvc.engine import Engine, Invocation, Progress
from cmdsvc.errors import BusyError, DataError, EngineError, printable
from cmdsvc.model import SEARCH_PATH, Limits, Network, Outcome, Reason
from cmdsvc.recipe import Recipe
from cmdsvc.service.figures import Figures

AT_ONCE = 2
WAITING = 32
"""Builds that may be wanted at once, those going on among them."""
KNOWN = 4096
"""Layers and programs that are remembered as being together."""

PACKAGES = {
    "bash": "bash",
    "curl": "curl",
    "fish": "fish",
    "gawk": "gawk",
    "git": "git",
    "jq": "jq",
    "lua": "lua5.4",
    "node": "nodejs",
    "perl": "perl",
    "php": "php",
    "python": "python3",
    "python3": "python3",
    "qrencode": "libqrencode-tools",
    "ruby": "ruby",
    "zsh": "zsh",
}
"""The package that brings a program, where the two bases agree or nearly so."""

# As execvp(3) looks: `command -v` would take a word of the shell's own, or any file, for a program.
_LOOK = b"""\
IFS=:
for p; do
  for f in $PATH; do
    case $p in */*) f=$p ;; *) f=$f/$p ;; esac
    if [ -f "$f" ] && [ -x "$f" ]; then continue 2; fi
  done
  printf %s "$p"
  exit 1
done
"""


@dataclass(slots=True)
class _Build:
    task: asyncio.Task[None] | None = None
    listeners: list[Progress] = field(default_factory=list)

    def tell(self, line: str) -> None:
        for listener in self.listeners:
            listener(line)


class Builds:
    def __init__(self, engine: Engine, limits: Limits, figures: Figures) -> None:
        self._engine = engine
        self._figures = figures
        self._limits = limits
        self._building: dict[str, _Build] = {}
        self._room = asyncio.Semaphore(AT_ONCE)
        self._programs: dict[tuple[str, tuple[str, ...]], None] = {}
        self._held: Counter[str] = Counter()
        self.failed = 0
        """Builds that failed since the start."""

    @property
    def wanted(self) -> int:
        """Builds that go on or wait."""
        return len(self._building)

    @contextlib.contextmanager
    def held(self, recipe: Recipe) -> Iterator[None]:
        """Its layer is not to be removed meanwhile, though no version needs it yet."""
        self._held[recipe.digest] += 1
        try:
            yield
        finally:
            self._held[recipe.digest] -= 1
            if not self._held[recipe.digest]:
                del self._held[recipe.digest]

    def holds(self, name: str) -> bool:
        """Whether a layer of that name (Layer.name) is held."""
        return any(digest.startswith(name) for digest in (*self._held, *self._building))

    async def ensure(self, recipe: Recipe, progress: Progress) -> None:
        """The layer is here on return. The last one who stops waiting stops the build.

        Errors: as Engine.build, and BusyError where too many builds wait.
        """
        if await self._engine.has(recipe):
            return
        build = self._building.get(recipe.digest)
        if build is None:
            if len(self._building) >= WAITING:
                raise BusyError(f"{WAITING} builds are waiting", "try again in a minute")
            build = self._building[recipe.digest] = _Build()
            build.task = asyncio.create_task(self._build(recipe, build))
        assert build.task is not None  # noqa: S101 - set where it is made, without an await between
        build.listeners.append(progress)
        try:
            await asyncio.shield(build.task)
        finally:
            build.listeners.remove(progress)
            if not build.listeners and not build.task.done():
                self._forget(recipe, build)  # who comes now begins another
                build.task.cancel()
                await asyncio.gather(build.task, return_exceptions=True)

    async def _build(self, recipe: Recipe, build: _Build) -> None:
        try:
            async with self._room:
                with self._figures.building():
                    await self._engine.build(recipe, build.tell)
        except Exception:
            self.failed += 1
            raise
        finally:
            self._forget(recipe, build)

    def _forget(self, recipe: Recipe, build: _Build) -> None:
        if self._building.get(recipe.digest) is build:
            del self._building[recipe.digest]

    async def check_programs(self, recipe: Recipe, programs: Sequence[str]) -> None:
        """DataError where the layer lacks one of the programs (absolute, or looked up on PATH).

        EngineError where it cannot be told.
        """
        known = (recipe.digest, tuple(programs))
        if not programs or known in self._programs:
            return
        outcome, missing = await self._look(recipe, programs)
        if outcome.exit_status == 0:
            while len(self._programs) >= KNOWN:
                self._programs.pop(next(iter(self._programs)))
            self._programs[known] = None
            return
        if outcome.exit_status != 1 or not missing:
            why = outcome.message or f"status {outcome.exit_status}"
            raise EngineError(f"the image could not be searched: {why}", "try again")
        program = printable(missing.decode(errors="replace"))
        package = PACKAGES.get(program.rpartition("/")[2])
        raise DataError(
            f"{program} is not in the image",
            f"add the package {package} to the #!cmd line"
            if package
            else "add the package that brings it to the #!cmd line",
        )

    async def _look(self, recipe: Recipe, programs: Sequence[str]) -> tuple[Outcome, bytes]:
        """How the search in the layer ended, and the program that it missed first."""
        try:
            job = await self._engine.start(
                Invocation(
                    run_id=f"look-{secrets.token_hex(8)}",
                    recipe=recipe,
                    argv=(b"/bin/sh", b"-c", _LOOK, b"sh", *map(os.fsencode, programs)),
                    script=None,
                    env={b"PATH": SEARCH_PATH},
                    limits=self._limits,
                    network=Network.NONE,
                )
            )
        except LookupError:
            raise BusyError("the layer was removed meanwhile", "try again") from None
        missing = b""
        try:
            async with asyncio.timeout(self._limits.timeout):
                await job.send_eof()
                async for fd, data in job.output():
                    if fd == 1:
                        missing = (missing + data)[:256]
                return await job.wait(), missing
        except TimeoutError:
            return Outcome(124, Reason.TIMEOUT, "timed out"), missing
        finally:
            await job.aclose()
