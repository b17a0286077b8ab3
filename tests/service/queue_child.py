"""A server that takes one delivery and dies at a step: URL, FOLDER, STEP, before|commit|after."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from cmdsvc.engine import Invocation
from cmdsvc.relay import Job
from tests.service.queue_lab import ScriptedEngine, a_lab
from tests.store.lab import at


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class NotingEngine(ScriptedEngine):
    """Notes in a file what has run."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    async def start(self, invocation: Invocation) -> Job:
        with self.path.open("a") as file:
            file.write(f"{invocation.run_id}\n")
        return await super().start(invocation)


def deadly(owner: object, step: str, when: str) -> None:
    """Calling `owner`'s method `step` is the end."""
    method = getattr(owner, step)

    async def call(*args: object, **more: object) -> object:
        if when == "before":
            die()
        if when == "after":
            result = await method(*args, **more)
            die()
            return result
        with at("COMMIT", die):
            return await method(*args, **more)

    setattr(owner, step, call)


async def main(url: str, folder: str, step: str, when: str) -> None:
    engine = NotingEngine(Path(folder) / "ran")
    async with a_lab(url, Path(folder), engine) as lab:
        if step == "accept" and when == "after":
            step, when = "claim", "before"
        deadly(engine if step == "start" else lab.store, step, when)
        await lab.post(b"x", "d-1")
        print("202", flush=True)
        await lab.deliveries.start()
        await asyncio.sleep(60)


asyncio.run(main(*sys.argv[1:]))
