"""What runs and what ran: who may see it, its output, and its stop."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cmdsvc.access import Action, Verdict, may
from cmdsvc.errors import BusyError, EngineError, ForbiddenError, NotFoundError, one_line
from cmdsvc.model import PUBLIC, READY_MADE, Entry, Identity, Outcome, Reason, Run, check_name
from cmdsvc.service.commands import Commands
from cmdsvc.service.outputs import Gap, Kept, Watched, pieces_of
from cmdsvc.store import Store

STOPPING = 30.0
"""Seconds that a run may take to be gone once it was stopped."""

RUN_ID = re.compile(r"[0-9a-v]{16}")

Piece = tuple[int, bytes] | Gap


@dataclass(slots=True, eq=False)
class Going:
    """A run that goes on here, until its end is recorded."""

    run: Run
    identity: Identity
    watched: Watched
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """`run` has its outcome, and nothing of its sandbox runs any more."""
    _verdict: Outcome | None = None
    _scope: asyncio.Timeout | None = None

    @property
    def kept(self) -> Kept | None:
        return self.watched.kept

    def stop(self, outcome: Outcome) -> None:
        """Ends it so, if it has not ended; what was said first holds."""
        if self._verdict is None and self._scope is not None:
            self._verdict = outcome
            self._scope.reschedule(asyncio.get_running_loop().time())

    async def stoppable(self, running: Coroutine[None, None, Outcome]) -> Outcome:
        """How `running` ended, or was made to."""
        try:
            async with asyncio.timeout(None) as self._scope:
                return await running
        except TimeoutError:
            if self._verdict is None:
                raise
            return self._verdict
        finally:
            self._scope = None


class Live:
    def __init__(self, store: Store, commands: Commands) -> None:
        self._store = store
        self._commands = commands
        self._going: dict[str, Going] = {}

    def __iter__(self) -> Iterator[Going]:
        """What has not ended, the oldest first."""
        return (going for going in list(self._going.values()) if going.run.outcome is None)

    def add(self, going: Going) -> None:
        self._going[going.run.id] = going

    def remove(self, going: Going) -> None:
        del self._going[going.run.id]

    async def runs(self, identity: Identity, name: str | None, limit: int) -> list[Run]:
        """The caller's own calls, and all of commands that he owns or administers; newest first.

        `name`: of that command alone; NotFoundError where there neither is nor was one.
        """
        _check(identity)
        runs = []
        for command in (None,) if name is None else _meant(identity, name):
            runs = await self._store.runs_seen_by(identity.user, command=command, limit=limit)
            if runs:
                break
        if name is not None and not runs:
            await self._commands.find(identity, name, Action.RUN)
        return [self._newest(run) for run in runs]

    async def output(
        self, identity: Identity, run_id: str, *, follow: bool
    ) -> AsyncIterator[Piece] | None:
        """What is kept of a run's output; None where nothing is. `follow`: to the run's end.

        NotFoundError (127) for a run that is not the caller's to see.
        """
        await self._known(identity, run_id, Action.LOGS)
        return await self.written(run_id, follow=follow)

    async def written(self, run_id: str, *, follow: bool) -> AsyncIterator[Piece] | None:
        """As `output`, for a door that knows that the caller may."""
        going = self._going.get(run_id)
        if going is not None and going.kept is not None:
            return going.kept.follow() if follow else _each(pieces_of(going.kept.output()))
        output = await self._store.output(run_id)
        return None if output is None else _each(pieces_of(output))

    async def kill(self, identity: Identity, run_id: str) -> bool:
        """Ends a run, which is over on return; whether it was not over already.

        NotFoundError (127) for a run that is not the caller's to kill.
        """
        run = await self._known(identity, run_id, Action.KILL)
        return await self.end(run, identity)

    async def end(self, run: Run, identity: Identity) -> bool:
        """As `kill`, for a door that knows that the caller may."""
        if run.outcome is not None:
            return False
        going = self._going.get(run.id)
        if going is None:
            raise BusyError(f"run {run.id} is not of this server", "kill it where it runs")
        await self._end([going], identity.user)
        killed = going.run.outcome is not None and going.run.outcome.reason is Reason.KILLED
        if killed and run.user != identity.user:
            await self._store.record(
                Entry(datetime.now(UTC), identity.user, "kill", run.command, run.id)
            )
        return killed

    async def stop(self, subject: str, *, by: str, command: str | None = None) -> int:
        """Ends what goes on for `subject`, a user or a token's id; how many runs that were.

        `command` (OWNER/NAME): its runs alone; else with a user's go those by his tokens. With
        `public`, of a command, go those of whoever may not run it now.
        """
        named = await self._store.find(*command.split("/")) if command else None

        def meant(going: Going) -> bool:
            if command is None:
                return subject in {going.identity.subject, going.identity.user}
            if going.run.command != command:
                return False
            if subject == PUBLIC:
                return may(going.identity, Action.RUN, named) is not Verdict.ALLOWED
            return going.identity.subject == subject

        found = [going for going in self if meant(going)]
        await self._end(found, by)
        return len(found)

    def stop_all(self, outcome: Outcome) -> None:
        for going in self:
            going.stop(outcome)

    async def _end(self, found: Iterable[Going], by: str) -> None:
        for going in found:
            going.stop(Outcome(137, Reason.KILLED, f"killed by {by}" if by else "killed"))
        try:
            async with asyncio.timeout(STOPPING):
                for going in found:
                    await going.ended.wait()
        except TimeoutError:
            raise EngineError("it is told to stop, but has not ended yet", "see :runs") from None

    def _newest(self, run: Run) -> Run:
        """`run`, whose end may be known before it is recorded."""
        going = self._going.get(run.id)
        return run if going is None else going.run

    async def of_token(self, identity: Identity, run_id: str) -> Run:
        """A run that this token asked for. NotFoundError (127) for any other."""
        run = await self._find(run_id)
        if run is None or identity.token is None or run.token != identity.token:
            raise NotFoundError(f"no run {one_line(run_id)[:80]} of this token")
        return run

    def here(self, run: Run) -> bool:
        """Whether it goes on on this server."""
        return run.id in self._going

    async def _known(self, identity: Identity, run_id: str, action: Action) -> Run:
        _check(identity)
        run = await self._find(run_id)
        if run is None or not (
            run.user == identity.user or await self._may(identity, action, run.command)
        ):
            raise NotFoundError(f"no run {one_line(run_id)[:80]}", "see :runs")
        return run

    async def _find(self, run_id: str) -> Run | None:
        going = self._going.get(run_id)
        if going is not None:
            return going.run
        return await self._store.run(run_id) if RUN_ID.fullmatch(run_id) else None

    async def _may(self, identity: Identity, action: Action, command: str) -> bool:
        owner, _, name = command.partition("/")
        found = await self._store.find(owner, name)
        if may(identity, action, found) is Verdict.ALLOWED:
            return True
        if found is None and owner == identity.user:  # its runs outlive a command, for its owner
            return True
        return action is Action.KILL and may(identity, Action.OPERATE) is Verdict.ALLOWED


def _check(identity: Identity) -> None:
    if may(identity, Action.CREATE) is not Verdict.ALLOWED:
        raise ForbiddenError("a token only runs commands", "log in with a key")


def _meant(identity: Identity, name: str) -> tuple[str, ...]:
    """What commands `name` can mean, by their full names: also those that are gone."""
    owner, slash, short = name.rpartition("/")
    check_name(short)
    if slash:
        return (f"{check_name(owner)}/{short}",)
    return (f"{identity.user}/{short}", f"{READY_MADE}/{short}")


async def _each(pieces: Iterable[Piece]) -> AsyncIterator[Piece]:
    for piece in pieces:
        yield piece
