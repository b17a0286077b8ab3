"""Both engines on one machine, each with a server of its own: neither is in the other's way."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cmdsvc.engine import EngineSettings
from tests.contracts.engine_lab import LIMITS, Lab, Progress, kit_sources, maker
from tests.engine.bubblewrap_lab import recipe_on

if TYPE_CHECKING:
    from tests.kit import Kit, Server


@pytest.mark.skipif("config.getoption('--engine')", reason="one engine is asked for")
async def test_they_build_and_run_at_the_same_time(
    host: str, kit: Kit, mirror: Server, tmp_path: Path
) -> None:
    labs = []
    for name in ("bubblewrap", "docker"):
        settings = EngineSettings(
            data_dir=tmp_path / name,
            instance=f"test-{secrets.token_hex(6)}",
            sources=kit_sources(kit, mirror.url),
            limits=LIMITS,
            build_timeout=120.0,
        )
        make = maker(name, host)
        labs.append(Lab(name, make(settings), settings, make, recipe_on(kit), host))
    try:
        for lab in labs:
            await lab.engine.open()
        await asyncio.gather(
            *(
                lab.engine.build(lab.layer(*packages), Progress())
                for lab in labs
                for packages in (("jq",), ("bash", "jq"))
            )
        )
        results = await asyncio.gather(
            *(lab.run("bash -c 'jq -n 1'", recipe=lab.layer("bash", "jq")) for lab in labs)
        )
        assert [result.ok() for result in results] == [b"1\n", b"1\n"]
    finally:
        for lab in labs:
            await lab.engine.purge()
            await lab.engine.aclose()
