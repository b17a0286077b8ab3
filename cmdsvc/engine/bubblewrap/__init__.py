"""Sandboxes by bubblewrap: no daemon, installed by pip."""

from cmdsvc.engine.bubblewrap.engine import BubblewrapEngine

__all__ = ["BubblewrapEngine"]
