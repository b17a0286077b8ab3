"""A request as the caller of a run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from cmdsvc.relay import CallerGone, Event
from cmdsvc.web.asked import Asked
from cmdsvc.web.problems import RequestError
from cmdsvc.web.replies import Reply

_NONE: tuple[Event, ...] = ()


class HttpCaller:
    """`stays`: the run goes on to its end although the client may leave."""

    def __init__(
        self, asked: Asked, body: AsyncIterator[bytes], reply: Reply, *, stays: bool
    ) -> None:
        self._asked = asked
        self._body = body
        self._reply = reply
        self._stays = stays
        self._begun = asyncio.Event()
        self.wrong: RequestError | None = None
        """What is wrong with the body, for which the run was stopped."""

    @property
    def begun(self) -> bool:
        """Whether there was a run at all."""
        return self._begun.is_set()

    async def stdin(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._body:
                yield piece
        except RequestError as error:
            self.wrong = error
            raise CallerGone from error

    async def events(self) -> AsyncIterator[Event]:
        await self._reply.begin()
        self._begun.set()
        if not self._stays:
            await self._asked.line.gone.wait()
            raise CallerGone
        for event in _NONE:
            yield event

    async def write(self, fd: int, data: bytes) -> None:
        await self._begun.wait()
        if self._asked.line.gone.is_set() and not self._stays:
            raise CallerGone
        await self._reply.write(fd, data)
