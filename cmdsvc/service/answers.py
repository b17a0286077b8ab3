"""What was answered before: who asks twice under one Idempotency-Key is answered the same.

https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from cmdsvc.errors import DataError, ExistsError
from cmdsvc.model import Answer
from cmdsvc.service.retention import ANSWERS_KEPT
from cmdsvc.store import Store


@dataclass(frozen=True, slots=True)
class Ticket:
    """The right to answer first."""

    caller: str
    key: str
    digest: bytes
    run: str


class Answers:
    def __init__(
        self, store: Store, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._store = store
        self._now = now

    async def first(self, ticket: Ticket) -> Answer | None:
        """What was answered; None where this is the first, which is to be `kept` or `dropped`.

        ExistsError (409) while the first is under way; DataError (422) where it was another request.
        """
        now = self._now()
        begun = Answer(ticket.digest, ticket.run)
        found = await self._store.begin_answer(
            ticket.caller, ticket.key, begun, now, now - ANSWERS_KEPT
        )
        if found is None:
            return None
        if found.digest != ticket.digest:
            raise DataError("the Idempotency-Key was used for another request", "use a new one")
        if found.status is None:
            raise ExistsError(
                f"the first request under this Idempotency-Key, run {found.run}, is under way",
                "ask again when it has ended",
            )
        return found

    async def keep(
        self, ticket: Ticket, status: int, headers: tuple[tuple[str, str], ...], body: bytes
    ) -> None:
        answer = Answer(ticket.digest, ticket.run, status, headers, body)
        await self._store.end_answer(ticket.caller, ticket.key, answer)

    async def drop(self, ticket: Ticket) -> None:
        """Nothing was run: the next one is the first."""
        await self._store.drop_answer(ticket.caller, ticket.key)
