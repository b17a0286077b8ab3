"""The store in SQL: every statement, and the way between rows and the service's nouns."""

from __future__ import annotations

from cmdsvc.store.sql.commands import Commands
from cmdsvc.store.sql.outputs import Outputs
from cmdsvc.store.sql.runs import Runs
from cmdsvc.store.sql.sharing import Sharing
from cmdsvc.store.sql.tokens import Tokens
from cmdsvc.store.sql.upkeep import Upkeep
from cmdsvc.store.sql.users import Users


class SqlStore(Users, Commands, Sharing, Tokens, Runs, Outputs, Upkeep):
    """A `Store`."""

    async def aclose(self) -> None:
        await self._database.aclose()
