"""How many runs go on at once, in all and for each user, and who comes next."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque

from cmdsvc.errors import BusyError, TooManyError

WAITING = 256
"""Who may wait at once; then the longest line gives up its newest."""

_Turn = asyncio.Future[None]


class Admission:
    """Slots for runs, and a line for each user, whose heads take turns.

    A slot that falls free goes to the user at the front, who then goes to the back: however long
    one's line is, another waits for one of its runs at most.
    """

    def __init__(self, most: int, most_per_user: int, patience: float) -> None:
        self.most = most
        self.most_per_user = most_per_user
        self.patience = patience
        """Seconds that anybody waits."""
        self.refused = 0
        """How many were turned away so far."""
        self._running: Counter[str] = Counter()
        self._total = 0
        self._lines: OrderedDict[str, deque[_Turn]] = OrderedDict()
        self._waiting = 0

    @property
    def running(self) -> int:
        return self._total

    @property
    def waiting(self) -> int:
        return self._waiting

    def enter(self, user: str) -> bool:
        """Takes a slot if there is one. Then nobody waits who could have it."""
        if self._total >= self.most or self._running[user] >= self.most_per_user:
            return False
        self._take(user)
        return True

    async def wait(self, user: str) -> None:
        """Waits for a slot, and takes it. BusyError (75) when there is none in time."""
        turn = self._line_up(user)
        try:
            async with asyncio.timeout(self.patience):
                await turn
        except TimeoutError:
            if not _given(turn):
                raise self._refusal(user) from None
        except asyncio.CancelledError:
            if _given(turn):
                self.leave(user)
            raise
        finally:
            self._forget(user, turn)

    def leave(self, user: str) -> None:
        """Gives a slot back, to who comes next."""
        self._total -= 1
        self._running[user] -= 1
        if not self._running[user]:
            del self._running[user]
        if self._waiting:
            self._next()

    def close(self) -> None:
        """Turns away who waits, since the service is going down."""
        for turn in [turn for line in self._lines.values() for turn in line]:
            _refuse(turn, shutting_down())

    def _take(self, user: str) -> None:
        self._total += 1
        self._running[user] += 1

    def _line_up(self, user: str) -> _Turn:
        if self._waiting >= WAITING:
            longest = max(self._lines, key=lambda name: len(self._lines[name]))
            if len(self._lines[longest]) <= len(self._lines.get(user, ())) + 1:
                raise self._refusal(user)
            newest = self._lines[longest][-1]
            _refuse(newest, self._refusal(longest))
            self._forget(longest, newest)
        turn = asyncio.get_running_loop().create_future()
        self._lines.setdefault(user, deque()).append(turn)
        self._waiting += 1
        return turn

    def _next(self) -> None:
        for user in list(self._lines):
            if self._total >= self.most:
                return
            if self._running[user] >= self.most_per_user:
                continue
            turn = next((turn for turn in self._lines[user] if not turn.done()), None)
            if turn is not None:
                self._take(user)
                turn.set_result(None)
                self._lines.move_to_end(user)

    def _forget(self, user: str, turn: _Turn) -> None:
        line = self._lines.get(user)
        if line is None or turn not in line:
            return
        line.remove(turn)
        self._waiting -= 1
        if not line:
            del self._lines[user]

    def _refusal(self, user: str) -> BusyError:
        self.refused += 1
        if self._running[user] >= self.most_per_user:
            return TooManyError(
                f"{self.most_per_user} runs of yours go on, which is the limit",
                "wait for one to end, or see :runs and :kill",
            )
        return BusyError(f"{self.most} runs go on, which is the limit", "try again in a moment")


def shutting_down() -> BusyError:
    return BusyError("the service is shutting down", "try again in a minute")


def _refuse(turn: _Turn, error: BusyError) -> None:
    if not turn.done():
        turn.set_exception(error)


def _given(turn: _Turn) -> bool:
    return turn.done() and not turn.cancelled() and turn.exception() is None
