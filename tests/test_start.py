"""What a start does not import: it would take time each time, and memory for good."""

import subprocess
import sys
from pathlib import Path

import pytest

SERVER = """
import asyncio, sys
import cmdsvc.app, cmdsvc.cli, cmdsvc.engine.bubblewrap
from cmdsvc.store import open_store

async def main():
    store = await open_store("sqlite+aiosqlite:///" + sys.argv[1])
    await store.ensure_user("ann")
    await store.aclose()

asyncio.run(main())
"""
VERSION = """
import sys
from cmdsvc.__main__ import main

sys.argv = ["cmdsvc", "--version"]
main()
"""


@pytest.mark.parametrize(
    ("program", "spared"),
    [
        (
            SERVER,
            {
                "alembic",
                "asyncpg",
                "docker",
                "requests",
                "rich",
                "sqlalchemy.dialects.postgresql",
            },
        ),
        (VERSION, {"asyncio", "asyncssh", "cmdsvc.cli", "pydantic", "sqlalchemy", "typer"}),
    ],
    ids=["a server on SQLite and bubblewrap", "--version"],
)
def test_what_is_not_imported(program: str, spared: set[str], tmp_path: Path) -> None:
    program += "\nprint(*sys.modules)\n"
    line = [sys.executable, "-c", program, str(tmp_path / "store.db")]
    done = subprocess.run(line, capture_output=True, check=True, text=True)
    assert not spared & set(done.stdout.split())
