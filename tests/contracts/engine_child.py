"""A server's engine in a process of its own, to be killed: `python -m tests.contracts.engine_child`.

Its one argument is JSON. It opens an engine, starts runs of the script with the marks as their
argument, and says "ready" when each has said so. At a line on stdin it closes the engine, says
"closed", and stays until stdin ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from cmdsvc.engine import EngineSettings, Sources
from cmdsvc.recipe import Recipe
from tests.contracts.engine_lab import LIMITS, WARM, Lab, Progress, Transcript, maker


async def main(given: dict[str, Any]) -> None:
    settings = EngineSettings(
        data_dir=Path(given["data_dir"]),
        instance=given["instance"],
        sources=Sources(bases={"alpine": given["base"]}),
        limits=LIMITS,
        warm=WARM,
    )
    make = maker(given["engine"], given["docker_host"])
    recipe = Recipe("alpine", "", (), given["base"])
    lab = Lab(given["engine"], make(settings), settings, make, recipe)
    await lab.engine.open()
    await lab.engine.build(recipe, Progress())
    jobs = [await lab.engine.start(lab.invocation(given["script"], m)) for m in given["marks"]]
    for job in jobs:
        transcript = Transcript(job)
        for _ in range(given["lines"]):
            await transcript.line()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await lab.engine.aclose()
    print("closed", flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
