"""One run in its sandbox, or a step of a build."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence

from cmdsvc.engine import Agent
from cmdsvc.engine.bubblewrap.prepared import Prepared
from cmdsvc.engine.bubblewrap.stub import reason
from cmdsvc.engine.launch import Handed, LaunchedJob
from cmdsvc.engine.launch.job import KILLED, OUT_OF_MEMORY
from cmdsvc.errors import EngineError
from cmdsvc.model import Outcome, Reason

_MAX_WORDS = 2000
"""Bytes of bwrap's own complaint that are kept."""


class BubblewrapJob(LaunchedJob):
    """`release` is awaited when the sandbox is to go, told whether all of the program is dead."""

    def __init__(
        self,
        prepared: Prepared,
        handed: Handed,
        *,
        terminal: bool,
        program: bytes,
        release: Callable[[bool], Awaitable[None]],
        agent: Agent | None = None,
    ) -> None:
        super().__init__(prepared.stub.sock, handed, terminal=terminal, program=program)
        self._prepared = prepared
        self._let_go = release
        self._agent = agent
        self._fds.add(prepared.said)
        self._failure: EngineError | None = None
        self._words = b""

    @property
    def group(self) -> str:
        """The name of its control groups."""
        return self._prepared.stub.group

    def _kill(self) -> None:
        self._prepared.stub.kill()

    async def _out_of_memory(self) -> bool:
        return self._prepared.out_of_memory()

    async def _untold(self) -> Outcome:
        if self._prepared.out_of_memory():
            return OUT_OF_MEMORY
        if self._failure is not None:
            raise self._failure
        if self._prepared.stub.lost:
            raise EngineError("the sandbox was lost", "run it again")
        if self._closing is not None or self._built:
            return Outcome(KILLED, Reason.SIGNAL)
        words = self._words.decode("utf-8", "replace").strip()
        raise EngineError(
            f"the sandbox could not be made: {words or 'it ended'}",
            "`cmdsvc check` tells what is missing",
        )

    async def _release(self) -> None:
        await self._let_go(self._status is not None)

    def _heard_else(self, data: bytes, fds: Sequence[int]) -> None:
        """The stub, which could not become a sandbox, or has made the socket for an agent."""
        if data == b"agent" and fds and self._agent is not None:
            self._agent.listen(socket.socket(fileno=fds[0]))
        elif data.startswith(b"error ") and not self._built:
            self._failure = EngineError(f"the sandbox could not be made: {reason(data)}")
            self._finish()
        else:
            super()._heard_else(data, fds)

    def _begin(self, fds: Sequence[int]) -> None:
        super()._begin(fds)
        self._close(self._prepared.said)

    def _finish(self) -> None:
        if not self._done.is_set() and not self._built:
            self._words = (self._read(self._prepared.said) or b"")[-_MAX_WORDS:]
        super()._finish()
