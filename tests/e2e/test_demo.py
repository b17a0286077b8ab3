"""`cmdsvc demo` shows the whole road on each engine, ends by itself and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import docker
import pytest

from tests.e2e.service_lab import PATIENCE

pytestmark = pytest.mark.slow


def left(settings: dict[str, str]) -> set[str]:
    """What a demo could leave: folders, and in the Docker engine images, containers, networks."""
    found = {str(path) for path in Path("/tmp").glob("cmdsvc-demo-*")}
    if host := settings.get("DOCKER_HOST"):
        client = docker.DockerClient(base_url=host, version="auto")
        try:
            found |= {image.id for image in client.images.list(all=True)}
            found |= {container.id for container in client.containers.list(all=True)}
            found |= {network.id for network in client.networks.list()}
        finally:
            client.close()
    return found


def test_the_demo(settings: dict[str, str]):
    before = left(settings)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CMDSVC_")}
    done = subprocess.run(
        [sys.executable, "-m", "cmdsvc", "demo"],
        env=kept | settings,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"# engine: {settings['CMDSVC_ENGINE']}\n" in done.stdout
    assert "\n203.0.113.7\n" in done.stdout
    assert "# exit status 65\n" in done.stdout
    assert done.stdout.endswith("# all as it should be\n")
    assert left(settings) == before


def test_without_an_alpine_it_says_what_to_do(settings: dict[str, str]):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CMDSVC_")}
    done = subprocess.run(
        [sys.executable, "-m", "cmdsvc", "demo"],
        env=kept | settings | {"CMDSVC_BASE_ALPINE": "/nowhere/base.tar"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert "cmdsvc: :create: " in done.stderr
    assert "/nowhere/base.tar" in done.stderr
