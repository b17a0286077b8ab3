"""Commands and their versions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from cmdsvc.model import Command, Version, VersionInfo


@dataclass(frozen=True, slots=True)
class Listing:
    """A command as a list shows it: without its source."""

    owner: str
    name: str
    description: str
    version: int
    """The number of the current one."""
    updated_at: datetime
    """When its current version became that."""

    @property
    def full_name(self) -> str:
        return f"{self.owner}/{self.name}"


class Commands(Protocol):
    async def create(
        self,
        *,
        owner: str,
        name: str,
        description: str,
        source: bytes,
        author: str,
        digest: str,
        created_at: datetime,
        schedule: str | None = None,
    ) -> Command:
        """A command with its version 1; `digest` is its recipe's, `schedule` the script's own.

        ExistsError (73) if there is one of that name; of several calls at once, one succeeds.
        ForbiddenError (77) if `owner` is not, or no longer, a user.
        """
        ...

    async def add_version(
        self,
        *,
        owner: str,
        name: str,
        description: str,
        source: bytes,
        author: str,
        digest: str,
        created_at: datetime,
        schedule: str | None = None,
    ) -> Command:
        """A new current version, numbered one above the highest that the command ever had.

        Of several calls at once each becomes a version. NotFoundError (127) if the command is gone.
        """
        ...

    async def find(self, owner: str, name: str) -> Command | None:
        """The command with its current version. One query by an index: it begins every run."""
        ...

    async def list_commands(self, owner: str) -> list[Listing]:
        """Sorted by name."""
        ...

    async def names(self, owner: str) -> list[str]:
        """Of the owner's commands, sorted."""
        ...

    async def source(self, owner: str, name: str, number: int | None = None) -> bytes | None:
        """Of that version, or of the current one; None where there is no such thing."""
        ...

    async def version(self, owner: str, name: str, number: int) -> Version | None: ...

    async def history(self, owner: str, name: str) -> list[VersionInfo]:
        """Newest first; empty where there is no such command."""
        ...

    async def set_current(self, owner: str, name: str, number: int, *, by: str) -> Command:
        """Makes that version the current one. NotFoundError where it is not there."""
        ...

    async def delete(self, owner: str, name: str, *, by: str) -> bool:
        """Whether there was one to delete.

        Its versions go with it, its runs are kept. A later one of its name begins again at 1.
        """
        ...

    async def stored(self, owner: str) -> tuple[int, int]:
        """How many commands are the owner's, and how many bytes of source all their versions have."""
        ...

    async def digests(self) -> dict[str, int]:
        """Of all versions' recipes: digest to how many versions need it."""
        ...
