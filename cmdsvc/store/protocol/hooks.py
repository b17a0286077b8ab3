"""Hooks."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from cmdsvc.model import Hook


class Hooks(Protocol):
    async def add_hook(self, hook: Hook, *, by: str) -> Hook:
        """With its id. ExistsError (73) for a name the command has; NotFoundError: it is gone."""
        ...

    async def hooks(self, owner: str, name: str) -> list[Hook]:
        """Of a command, sorted by name."""
        ...

    async def hook(self, owner: str, name: str, hook: str) -> Hook | None:
        """One indexed read: it begins every delivery."""
        ...

    async def rotate_hook(self, hook: Hook, secret: bytes, at: datetime, *, by: str) -> Hook:
        """A new sealed secret; the one before becomes `previous`. NotFoundError: it is gone."""
        ...

    async def remove_hook(self, owner: str, name: str, hook: str, *, by: str) -> bool:
        """With its deliveries."""
        ...
