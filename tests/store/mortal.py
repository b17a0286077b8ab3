"""`python -m tests.store.mortal URL PROGRAM`: a process that works on a store until it kills itself."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from datetime import UTC, datetime, timedelta

from cmdsvc import model
from cmdsvc.store import Notice, open_store
from tests.store import lab


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def main(url: str, program: str) -> None:
    store = await open_store(url, server="one")
    await store.ensure_user("ann")
    names = {**vars(model), **vars(lab), "UTC": UTC, "datetime": datetime, "timedelta": timedelta}
    names |= {"asyncio": asyncio, "Notice": Notice, "die": die, "store": store}
    exec(f"async def work():\n{program}", names)
    await names["work"]()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
