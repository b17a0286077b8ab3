"""What came to hooks, and what schedules say, run: once without a crash, at least once with one.

The store's table of deliveries is the queue. What is taken from it is held by a lease: where this
server dies, another takes it up when that has run out, or this one when it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cmdsvc.errors import BusyError, CmdError, EngineError, InternalError
from cmdsvc.model import Delivery, Door, Identity, Outcome, Reason, State, Via
from cmdsvc.relay import Event
from cmdsvc.service.invocation import Request
from cmdsvc.service.runs import Runs
from cmdsvc.store import Store

log = logging.getLogger("cmdsvc.delivery")

MOST = 16
"""Deliveries that run at once on a server, at most; the body of each is in memory."""
STEP = 4
"""That are taken at once: what one owner has over his share is fewer than these."""
LEASE = 45.0
"""Seconds for which one is held; it is renewed after a third of that."""
PERIOD = 10.0
"""Seconds after which the store is asked anyway: another server may have put something in."""
SOON = 1.0
"""Seconds until it is asked again where something could not be taken, or not be said."""
FIRST_PAUSE = 5.0
LONGEST_PAUSE = 3600.0
"""Seconds between two attempts: the first, doubling, and no more than the other."""
JITTER = 0.2
"""The part of a pause that chance takes or adds, so that what failed together comes apart."""
AGE = timedelta(days=3)
"""After which what has failed is not tried again."""
PIECE = 64 << 10
"""Bytes of a body that are handed on at once."""


@dataclass(frozen=True, slots=True)
class End:
    """How an attempt ended."""

    state: State
    exit_status: int | None = None
    message: str = ""
    pause: float = 0.0
    """Seconds until the next, where it waits for one."""
    uncounted: bool = False


class Sender:
    """Who asked for a run, and has gone on: its stdin is what he left."""

    def __init__(self, body: bytes) -> None:
        self._body = memoryview(body)

    async def stdin(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self._body), PIECE):
            yield bytes(self._body[start : start + PIECE])

    async def events(self) -> AsyncIterator[Event]:
        return
        yield

    async def write(self, fd: int, data: bytes) -> None: ...


class Deliveries:
    """`most` run at once, half of them for one owner.

    `attempted` is told of each attempt, `failed` of what the store could not do.
    """

    def __init__(
        self,
        store: Store,
        runs: Runs,
        *,
        most: int = MOST,
        lease: float = LEASE,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        attempted: Callable[[Door, State], None] = lambda _door, _state: None,
        failed: Callable[[BaseException], None] = lambda _error: None,
    ) -> None:
        self._store = store
        self._runs = runs
        self._most = most
        self._share = max(1, most // 2)
        self._lease = timedelta(seconds=lease)
        self._now = now
        self._attempted = attempted
        self._failed = failed
        self._going: dict[asyncio.Task[None], Delivery] = {}
        self._changed = asyncio.Event()
        self._stopping = False
        self._unsure = False
        """Whether something may be held that nobody here is at."""
        self._working: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begins to work, first of all at what this server held when it died."""
        found = await self._store.reclaim(self._now())
        if found:
            log.warning("%d deliveries that were running are run again", found)
        self._working = [asyncio.create_task(self._take()), asyncio.create_task(self._hold())]

    def wake(self) -> None:
        """Something was put into the queue."""
        self._changed.set()

    async def drain(self, grace: float) -> bool:
        """Takes nothing more; True when what runs ended within `grace` seconds."""
        self._stopping = True
        self.wake()
        if not self._going:
            return True
        _, left = await asyncio.wait(self._going, timeout=grace)
        return not left

    async def aclose(self) -> None:
        """Waits for the end of what runs; to be called when no run goes on any more.

        What did not come to its end by itself waits for the next start.
        """
        self._stopping = True
        self.wake()
        if self._working:
            taking, holding = self._working
            await asyncio.wait([taking])
            if self._going:
                await asyncio.wait(self._going)
            holding.cancel()
            await asyncio.wait([holding])

    async def _take(self) -> None:
        while not self._stopping:
            self._changed.clear()
            try:
                pause = await self._take_due()
            except Exception as error:
                log.exception("deliveries could not be taken")
                self._failed(error)
                self._unsure = True
                pause = SOON
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._changed.wait()

    async def _take_due(self) -> float:
        """Begins what is due as far as there is room; seconds until more of it may be."""
        if self._unsure and not self._going:
            await self._store.reclaim(self._now())
            self._unsure = False
        while not self._stopping and (room := min(self._most - len(self._going), STEP)) > 0:
            now = self._now()
            busy = self._busy()
            taken = await self._store.claim(now, now + self._lease, room, apart=busy)
            for delivery in taken:
                task = asyncio.create_task(self._deliver(delivery))
                self._going[task] = delivery
                task.add_done_callback(self._over)
            if len(taken) < room:
                due = await self._store.next_due()
                until = PERIOD if due is None else (due - self._now()).total_seconds()
                return min(max(until, SOON if busy else SOON / 10), PERIOD)
        return PERIOD

    def _busy(self) -> list[str]:
        """Owners who have their share."""
        owners = Counter(_owner(delivery) for delivery in self._going.values())
        return [owner for owner, count in owners.items() if count >= self._share]

    def _over(self, task: asyncio.Task[None]) -> None:
        delivery = self._going.pop(task)
        if not task.cancelled() and (error := task.exception()):
            fields = {"delivery": delivery.id}
            log.error("a delivery was given up", exc_info=error, extra={"fields": fields})
            self._unsure = True
        self._changed.set()

    async def _hold(self) -> None:
        while True:
            await asyncio.sleep(self._lease.total_seconds() / 3)
            held = {delivery.id for delivery in self._going.values()}
            if held:
                try:
                    await self._store.renew(held, self._now() + self._lease)
                except Exception as error:  # there are two more times before it runs out
                    log.exception("deliveries could not be held")
                    self._failed(error)

    async def _deliver(self, delivery: Delivery) -> None:
        request = _request(delivery)
        begun = time.monotonic()
        end = await self._attempt(delivery, request)
        if end is None:
            return
        fields = {
            "delivery": delivery.id,
            "run": request.id,
            "command": delivery.command,
            "hook": delivery.hook,
            "state": end.state,
            "attempt": delivery.attempt,
            "exit_status": end.exit_status,
            "seconds": round(time.monotonic() - begun, 4),
        }
        await self._record(delivery, end)
        self._attempted(request.door, end.state)
        log.info("delivery", extra={"fields": fields})

    async def _attempt(self, delivery: Delivery, request: Request) -> End | None:
        """None where it is another server's by now, or gone."""
        if self._stopping:
            return End(State.WAITING, uncounted=True)
        try:
            if not await self._store.begin_attempt(delivery.id, delivery.attempt, request.id):
                return None
            outcome = await self._runs.run(request, Sender(delivery.body))
        except BusyError as error:  # that of the service: it has not really begun
            pause = _around(FIRST_PAUSE)
            return End(State.WAITING, error.exit_status, str(error), pause, uncounted=True)
        except CmdError as error:
            self._failed(error)
            again = isinstance(error, EngineError | InternalError) or delivery.retry_any
            return self._failure(delivery, error.exit_status, str(error), again=again)
        except Exception:
            log.exception("a delivery failed", extra={"fields": {"delivery": delivery.id}})
            return self._failure(delivery, InternalError.exit_status, "internal error", again=True)
        return self._end_of(delivery, outcome)

    def _end_of(self, delivery: Delivery, outcome: Outcome) -> End:
        if outcome.reason is Reason.LOST:  # the server went down, which is not its fault
            return End(State.WAITING, outcome.exit_status, outcome.message, uncounted=True)
        if outcome.exit_status == 0:
            return End(State.DONE, 0)
        later = outcome.reason is Reason.TIMEOUT or outcome.exit_status == BusyError.exit_status
        again = later or (delivery.retry_any and outcome.reason is not Reason.KILLED)
        return self._failure(delivery, outcome.exit_status, outcome.message, again=again)

    def _failure(self, delivery: Delivery, exit_status: int, message: str, *, again: bool) -> End:
        young = self._now() - delivery.received_at < AGE
        if again and young and delivery.attempt <= delivery.retries:
            return End(State.WAITING, exit_status, message, pause_after(delivery.attempt))
        return End(State.FAILED, exit_status, message)

    async def _record(self, delivery: Delivery, end: End) -> None:
        """Says it until the store has heard it: else it would run again."""
        while True:
            due = self._now() + timedelta(seconds=end.pause)
            try:
                await self._store.end_attempt(
                    delivery.id,
                    delivery.attempt,
                    end.state,
                    due_at=due if end.state is State.WAITING else None,
                    exit_status=end.exit_status,
                    message=end.message,
                    uncounted=end.uncounted,
                )
            except CmdError as error:
                log.exception("a delivery's end was not recorded")
                self._failed(error)
                if self._stopping:
                    return
                await asyncio.sleep(SOON)
            else:
                return


def pause_after(attempt: int) -> float:
    """Seconds from the end of an attempt, counted from 1, to the next."""
    return _around(min(FIRST_PAUSE * 2 ** min(attempt - 1, 20), LONGEST_PAUSE))


def _around(seconds: float) -> float:
    return seconds * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - nothing is kept secret by it


def _owner(delivery: Delivery) -> str:
    return delivery.command.partition("/")[0]


def _request(delivery: Delivery) -> Request:
    variables = dict(delivery.env)
    if delivery.hook:
        variables |= {
            b"HOOK_NAME": delivery.hook.encode(),
            b"HOOK_EVENT": delivery.event.encode(),
            b"HOOK_DELIVERY": delivery.id.encode(),
            b"HOOK_ATTEMPT": str(delivery.attempt).encode(),
        }
    else:
        variables[b"SCHEDULED_AT"] = delivery.event.encode()
    return Request(
        identity=Identity(_owner(delivery), Via.ITSELF),
        door=Door.HOOK if delivery.hook else Door.SCHEDULE,
        name=delivery.command,
        args=(),
        env={},
        remote_addr=delivery.env.get(b"REMOTE_ADDR", b"").decode(errors="replace"),
        variables=variables,
        body_file=bool(delivery.hook),
        keep=True,
    )
