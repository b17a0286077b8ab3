"""Which database a URL is of, and what may be there. Neither is imported before it is used."""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING

from cmdsvc.errors import UsageError

if TYPE_CHECKING:
    from cmdsvc.store.postgres import Postgres
    from cmdsvc.store.sqlite import Sqlite


class Found(Enum):
    """What there is where a store is to be."""

    NOTHING = auto()
    OLDER = auto()
    """One that has to be migrated."""
    CURRENT = auto()


def kind(url: str) -> type[Sqlite | Postgres]:
    """UsageError where the driver of a kind is not installed."""
    if not url.startswith("postgresql"):
        from cmdsvc.store.sqlite import Sqlite  # noqa: PLC0415

        return Sqlite
    try:
        from cmdsvc.store.postgres import Postgres  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise UsageError("PostgreSQL needs asyncpg", "pip install 'cmdsvc[postgres]'") from error
    return Postgres
