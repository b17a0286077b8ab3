"""A rotation of the key that dies at a step: URL, FOLDER, KIND, COUNT, before|after.

KIND is write, put, seal or record; it dies at the COUNTth of those.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cmdsvc.service import secretkey
from cmdsvc.store import open_store

URL, FOLDER, KIND, COUNT, MOMENT = sys.argv[1:]
REACHED: list[None] = []


def reached(step: str, when: str) -> None:
    if (step, when) == (KIND, MOMENT):
        REACHED.append(None)
        if len(REACHED) == int(COUNT):
            os.kill(os.getpid(), signal.SIGKILL)


def step(name: str, function: Callable[..., Any]) -> Any:
    def called(*args: Any, **keywords: Any) -> Any:
        reached(name, "before")
        result = function(*args, **keywords)
        reached(name, "after")
        return result

    return called


def astep(name: str, function: Callable[..., Any]) -> Any:
    async def called(*args: Any, **keywords: Any) -> Any:
        reached(name, "before")
        result = await function(*args, **keywords)
        reached(name, "after")
        return result

    return called


async def main() -> None:
    store: Any = await open_store(URL)
    secretkey.BATCH = 2
    secretkey._fill = step("write", secretkey._fill)
    Path.replace = step("put", Path.replace)  # type: ignore[method-assign]
    store.reseal = astep("seal", store.reseal)
    store.record = astep("record", store.record)
    await secretkey.rotate(Path(FOLDER), store)
    print("never killed", file=sys.stderr)


asyncio.run(main())
