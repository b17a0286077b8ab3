"""Layers and runs on a Docker engine."""

from cmdsvc.engine.docker.engine import DockerEngine

__all__ = ["DockerEngine"]
