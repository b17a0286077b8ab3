"""A server that kills itself: `python -m tests.e2e.mortal VERB POINT`; "" is at no point.

VERB is what it dies of: create or delete. A POINT is "after METHOD" of those below, "in the midst
of the build", "at STATEMENT" of the database's, or "put N": when the Nth file or folder of the
build is about to be put in its place.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cmdsvc.__main__ import main
from cmdsvc.service.builds import Builds
from cmdsvc.service.commands import Commands
from cmdsvc.store.sql import SqlStore
from tests.store.lab import at

VERB, POINT = sys.argv[1:]
ARMED: set[str] = set()
"""Methods that were called: a statement or a file is meant within one only."""


def reached(point: str) -> None:
    if point == POINT:
        os.kill(os.getpid(), signal.SIGKILL)


def around(owner: type, method: str) -> None:
    function = getattr(owner, method)

    async def called(*args: Any, **keywords: Any) -> Any:
        ARMED.add(method)
        result = await function(*args, **keywords)
        ARMED.discard(method)
        reached(f"after {method}")
        return result

    setattr(owner, method, called)


def telling() -> None:
    ensure = Builds.ensure

    async def called(builds: Any, recipe: Any, progress: Any, **keywords: Any) -> None:
        def tell(line: str) -> None:
            progress(line)
            reached("in the midst of the build")

        await ensure(builds, recipe, tell, **keywords)

    Builds.ensure = called  # type: ignore[method-assign]


def putting(method: str, count: list[None]) -> None:
    function: Callable[..., Path] = getattr(Path, method)

    def called(path: Path, target: Path) -> Path:
        if "ensure" in ARMED:
            count.append(None)
            reached(f"put {len(count)}")
        return function(path, target)

    setattr(Path, method, called)


if __name__ == "__main__":
    telling()
    for owner, method in (
        (Commands, "check_new"),
        (Builds, "ensure"),
        (Builds, "check_programs"),
        (SqlStore, VERB),
    ):
        around(owner, method)
    puts: list[None] = []
    for method in ("rename", "replace"):
        putting(method, puts)
    statement = POINT.removeprefix("at ")
    with at(statement, lambda: VERB in ARMED and reached(f"at {statement}")):
        sys.argv[1:] = ["serve"]
        main()
