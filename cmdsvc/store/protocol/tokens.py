"""Access tokens."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from cmdsvc.model import Token


class Tokens(Protocol):
    async def add_token(self, token: Token, digest: bytes, *, by: str) -> None:
        """`digest` is the keyed hash of its secret. ExistsError for an id that is taken."""
        ...

    async def token(self, id_: str) -> tuple[Token, bytes] | None:
        """The token and the hash of its secret. One read by its key."""
        ...

    async def tokens(self, owner: str) -> list[Token]:
        """Oldest first."""
        ...

    async def used(self, id_: str, at: datetime) -> None:
        """Notes a token's last use."""
        ...

    async def remove_token(self, id_: str, *, by: str) -> bool:
        """With it go its grants."""
        ...
