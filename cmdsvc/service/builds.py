"""Package layers: one build of each at a time, shared by all who want it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

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
    recipe: Recipe
    again: bool
    begun: bool = False
    """Whether it may have looked at the base already."""
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
        self._building: dict[tuple[str, bool], _Build] = {}
        """The newest ones, by digest and `again`."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """Of digests: one build at a time."""
        self._room = asyncio.Semaphore(AT_ONCE)
        self._ended = 0
        """Builds, well or not."""
        self._programs: dict[tuple[str, tuple[str, ...]], None] = {}
        self._held: Counter[str] = Counter()
        self.failed = 0
        """Builds that failed since the start."""

    @property
    def wanted(self) -> int:
        """Builds that go on or wait."""
        return len(self._tasks)

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
        waiting = (digest for digest, _ in self._building)
        return any(digest.startswith(name) for digest in (*self._held, *self._turns, *waiting))

    async def ensure(
        self, recipe: Recipe, progress: Progress, *, fresh: bool = False, again: bool = False
    ) -> None:
        """The layer is here on return. The last one who stops waiting stops the build.

        `fresh`: it stands on the base that is here now (Engine.stale). `again`: it was made again
        since the call, its base fetched. Errors: as Engine.build, and BusyError where too many
        builds wait.
        """
        has, stale = self._engine.has, self._engine.stale
        if not again and await has(recipe) and not (fresh and await stale(recipe)):
            return
        build = self._building.get((recipe.digest, again))
        if build is None or (build.begun and (fresh or again)):
            if self.wanted >= WAITING:
                raise BusyError(f"{WAITING} builds are waiting", "try again in a minute")
            build = self._building[recipe.digest, again] = _Build(recipe, again)
            build.task = asyncio.create_task(self._build(build))
            self._tasks.add(build.task)
            build.task.add_done_callback(self._tasks.discard)
        assert build.task is not None  # noqa: S101 - set where it is made, without an await between
        build.listeners.append(progress)
        try:
            await asyncio.shield(build.task)
        finally:
            build.listeners.remove(progress)
            if not build.listeners and not build.task.done():
                self._forget(build)  # who comes now begins another
                build.task.cancel()
                await asyncio.gather(build.task, return_exceptions=True)

    async def _build(self, build: _Build) -> None:
        digest = build.recipe.digest
        try:
            async with self._turns.setdefault(digest, asyncio.Lock()), self._room:
                build.begun = True
                try:
                    with self._figures.building():
                        await self._engine.build(build.recipe, build.tell, again=build.again)
                finally:  # it may have failed with the layer in place
                    self._ended += 1
                    for known in [known for known in self._programs if known[0] == digest]:
                        del self._programs[known]
        except Exception:
            self.failed += 1
            raise
        finally:
            self._forget(build)

    def _forget(self, build: _Build) -> None:
        key = build.recipe.digest, build.again
        if self._building.get(key) is build:
            del self._building[key]

    async def resolve(self, image: str, progress: Progress) -> str:
        """See Engine.resolve; it takes its turn with the builds."""
        async with self._room:
            return await self._engine.resolve(image, progress)

    async def check_programs(self, recipe: Recipe, programs: Sequence[str]) -> None:
        """DataError where the layer lacks one of the programs (absolute, or looked up on PATH).

        EngineError where it cannot be told.
        """
        known = (recipe.digest, tuple(programs))
        if not programs or known in self._programs:
            return
        ended = self._ended
        outcome, missing = await self._look(recipe, programs)
        if outcome.exit_status == 0:
            if ended != self._ended:  # perhaps the layer is another one by now
                return
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
