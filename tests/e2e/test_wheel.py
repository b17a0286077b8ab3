"""The built wheel, in an empty environment away from the checkout, is the whole program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit import Kit, Server

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`cmdsvc` as pip installs it from the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder / "dist", CHECKOUT)
    (wheel,) = (folder / "dist").glob("*.whl")
    # A pip of its own would take longer than all else; what is not imported need not be compiled.
    python = folder / "venv" / "bin" / "python"
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-compile", wheel)
    return folder / "venv" / "bin" / "cmdsvc"


def run(*words: str | Path, **settings: str) -> str:
    done = subprocess.run(
        words,
        env={k: v for k, v in os.environ.items() if not k.startswith("CMDSVC_")} | settings,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd="/",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_demo_runs_from_the_wheel(program: Path, kit: Kit, mirror: Server):
    said = run(
        program,
        "demo",
        CMDSVC_ENGINE="bubblewrap",
        CMDSVC_BASE_ALPINE=str(kit.base),
        CMDSVC_APK_KEYS=str(kit.keys),
        CMDSVC_ALPINE_MIRROR=mirror.url,
    )
    assert said.endswith("# all as it should be\n")
    assert "$ ssh cmd :create http < http.cmd" in said


def test_the_wheel_says_its_version(program: Path):
    assert run(program, "--version").startswith("cmdsvc 0.")
