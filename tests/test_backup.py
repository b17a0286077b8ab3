"""A restore that is cancelled ends when nothing of it works on."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from cmdsvc.backup import read

pytestmark = pytest.mark.asyncio


async def test_its_folder_goes_when_nobody_works_in_it(tmp_path: Path):
    file, data = tmp_path / "backup", tmp_path / "data"
    os.mkfifo(file)  # opening it takes until somebody writes
    data.mkdir()
    reading = asyncio.create_task(read(file, f"sqlite:///{data}/cmdsvc.db", data, None))
    while not list(data.iterdir()):
        assert not reading.done()
        await asyncio.sleep(0)
    reading.cancel()
    try:
        await asyncio.wait([reading], timeout=0.1)
        assert not reading.done()
        assert [path.name[:8] for path in data.iterdir()] == [".cmdsvc-"]
    finally:
        end = os.open(file, os.O_RDWR | os.O_NONBLOCK)
        await asyncio.wait([reading])
        os.close(end)
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert not list(data.iterdir())
