"""What was answered under an Idempotency-Key."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from cmdsvc.model import Answer


class Answers(Protocol):
    async def begin_answer(
        self, caller: str, key: str, answer: Answer, now: datetime, since: datetime
    ) -> Answer | None:
        """Puts down that a request is under way; the first one's where there is one after `since`.

        `caller` is a token's id, or "". Of several at once one gets None, which is to go on.
        """
        ...

    async def end_answer(self, caller: str, key: str, answer: Answer) -> None:
        """How it was answered."""
        ...

    async def drop_answer(self, caller: str, key: str) -> None:
        """It never ran: the next one is the first."""
        ...

    async def retire_answers(self, *, before: datetime) -> int: ...
