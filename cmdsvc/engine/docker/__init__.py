"""Layers and runs on a Docker engine."""

from cmdsvc.engine.docker.engine import DockerEngine, bridge_name

__all__ = ["DockerEngine", "bridge_name"]
