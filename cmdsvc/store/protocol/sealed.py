"""All that is sealed, of environments and of hooks: for another key, or another owner."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

Place = tuple[str, str, str, str]
"""Where a sealed value is: "env" (a variable) or "hook" (a secret), owner, command, name."""

Reseal = Callable[[Place, bytes], bytes]
"""Takes a place and its sealed value, and returns another sealed value."""


class Sealed(Protocol):
    def sealed(self) -> AsyncIterator[tuple[Place, bytes]]:
        """Every sealed value, for a new key. A hook has two of them while both secrets hold.

        Few at a time; `reseal` may be called meanwhile.
        """
        ...

    async def reseal(self, values: Sequence[tuple[Place, bytes, bytes]]) -> int:
        """Replaces sealed values where they still are what they were; how many were.

        Each is place, old, new.
        """
        ...
