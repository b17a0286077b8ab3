"""Layers and runs on a Docker engine."""

from cmdsvc.engine.docker.bridge import bridge_name
from cmdsvc.engine.docker.engine import DockerEngine

__all__ = ["DockerEngine", "bridge_name"]
