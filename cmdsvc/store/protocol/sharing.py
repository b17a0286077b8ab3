"""What hangs on a command: who may run or change it, and its environment."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from cmdsvc.store.protocol.commands import Listing


class Sharing(Protocol):
    async def set_access(
        self,
        owner: str,
        name: str,
        *,
        grant: Collection[str] = (),
        revoke: Collection[str] = (),
        by: str,
    ) -> None:
        """Who may run it: users, ids of tokens, PUBLIC. All of it or nothing; twice is once.

        NotFoundError where the command is gone, or one of `grant` is neither a user nor a token
        nor PUBLIC (the error names it).
        """
        ...

    async def set_admins(
        self,
        owner: str,
        name: str,
        *,
        grant: Collection[str] = (),
        revoke: Collection[str] = (),
        by: str,
    ) -> None:
        """Who may change it beside its owner: users."""
        ...

    async def runnable(self, subject: str) -> list[Listing]:
        """Others' commands that are granted to `subject`, administered by it, or public.

        It is a user or a token's id. Sorted by full name.
        """
        ...

    async def set_env(
        self,
        owner: str,
        name: str,
        *,
        put: Mapping[str, bytes],
        remove: Collection[str] = (),
        by: str,
    ) -> None:
        """Sealed values by name. The record has the names."""
        ...
