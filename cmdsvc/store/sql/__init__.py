"""The store in SQL: every statement, and the way between rows and the service's nouns."""

from __future__ import annotations

from cmdsvc.store.sql.answers import Answers
from cmdsvc.store.sql.commands import Commands
from cmdsvc.store.sql.deliveries import Deliveries
from cmdsvc.store.sql.hooks import Hooks
from cmdsvc.store.sql.outputs import Outputs
from cmdsvc.store.sql.runs import Runs
from cmdsvc.store.sql.schedules import Schedules
from cmdsvc.store.sql.sealed import Sealed
from cmdsvc.store.sql.sharing import Sharing
from cmdsvc.store.sql.tokens import Tokens
from cmdsvc.store.sql.upkeep import Upkeep
from cmdsvc.store.sql.users import Users


class SqlStore(
    Users,
    Commands,
    Sharing,
    Sealed,
    Tokens,
    Runs,
    Outputs,
    Hooks,
    Deliveries,
    Schedules,
    Answers,
    Upkeep,
):
    """A `Store`."""

    async def aclose(self) -> None:
        await self._database.aclose()
        await self._settled()
