"""A reply that is kept for who asks again, before its end is sent."""

from __future__ import annotations

from collections.abc import Sequence

from cmdsvc.service.answers import Answers, Ticket

KEPT_MAX = 1 << 20
"""Bytes of a body that are kept."""


class Record:
    def __init__(self, answers: Answers, ticket: Ticket) -> None:
        self._answers = answers
        self._ticket = ticket
        self._status = 0
        self._headers: tuple[tuple[str, str], ...] = ()
        self._body: bytearray | None = bytearray()
        self._settled = False

    def begin(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        self._status, self._headers = status, tuple(headers)

    def add(self, data: bytes) -> None:
        if self._body is not None:
            self._body += data
            if len(self._body) > KEPT_MAX:
                self._body = None

    async def settle(self, *, ran: bool, whole: bool) -> None:
        """To be called before who asked can know that it is over; once more is nothing.

        Where nothing `ran`, the next request is the first.
        """
        if self._settled:
            return
        self._settled = True
        run = self._ticket.run
        if not ran:
            await self._answers.drop(self._ticket)
        elif not whole:
            await self._say(500, f"run {run} failed after its reply had begun")
        elif self._body is None:
            await self._say(409, f"the reply to the first request, run {run}, was not kept")
        else:
            await self._answers.keep(self._ticket, self._status, self._headers, bytes(self._body))

    async def _say(self, status: int, words: str) -> None:
        headers = (
            ("content-type", "text/plain; charset=utf-8"),
            ("x-cmd-run-id", self._ticket.run),
        )
        await self._answers.keep(self._ticket, status, headers, f"{words}\n".encode())
