"""Users: known, renamed, removed."""

from __future__ import annotations

from typing import Protocol

from cmdsvc.store.protocol.sealed import Reseal


class Users(Protocol):
    async def ensure_user(self, name: str) -> None:
        """Makes it known that there is such a user. Free of cost where that is known already."""
        ...

    async def users(self) -> list[str]:
        """Sorted."""
        ...

    async def rename_user(
        self, old: str, new: str, *, by: str, reseal: Reseal | None = None
    ) -> bool:
        """With commands, grants, tokens and runs. ExistsError where `new` is taken.

        Sealed values are bound to their owner's name: `reseal`, which gets their new place, makes
        them the new one's, and what it raises takes all of it back. None leaves them as they are,
        which then nobody opens.
        """
        ...

    async def remove_user(self, name: str, *, by: str) -> bool:
        """With commands, grants and tokens; what ran is kept."""
        ...
