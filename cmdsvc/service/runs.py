"""One run, from any door: found, allowed, recorded, started, relayed, recorded."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import UTC, datetime

from cmdsvc.access import Action
from cmdsvc.engine import Engine, Invocation
from cmdsvc.errors import BusyError, CmdError, EngineError
from cmdsvc.metadata import Http
from cmdsvc.model import Command, Identity, Outcome, Reason, Run
from cmdsvc.relay import Caller, relay
from cmdsvc.script import Script
from cmdsvc.service.admission import Admission, shutting_down
from cmdsvc.service.builds import Builds
from cmdsvc.service.commands import Commands
from cmdsvc.service.figures import Figures
from cmdsvc.service.invocation import Invocations, Request
from cmdsvc.service.live import Going, Live
from cmdsvc.service.outputs import Kept, Nobody, Watched
from cmdsvc.store import Store

log = logging.getLogger("cmdsvc.run")


class Runs:
    def __init__(
        self,
        store: Store,
        engine: Engine,
        builds: Builds,
        commands: Commands,
        invocations: Invocations,
        *,
        figures: Figures,
        admission: Admission,
        output_max: int,
    ) -> None:
        self._store = store
        self._engine = engine
        self._builds = builds
        self._commands = commands
        self._invocations = invocations
        self._figures = figures
        self._output_max = output_max
        self._detached: set[asyncio.Task[None]] = set()
        self._endings: set[asyncio.Task[None]] = set()
        self.admission = admission
        self.live = Live(store, commands)
        self.ended: Counter[Reason] = Counter()
        """How the runs since the start ended."""
        self.draining = False
        """Whether new runs are refused, since the service is going down."""
        self.closed = ""
        """Why new runs are refused, in the operator's words; "" where they are not."""

    async def run(self, request: Request, caller: Caller) -> Outcome:
        """Runs a command to its end and returns how it ended.

        Errors: BusyError (75: over a limit, or draining), NotFoundError (127), EngineError (125),
        UsageError (64: more time than it may have). The end is recorded behind the caller's back,
        so that nobody waits for it, unless its output is kept.
        """
        return await self._run(request, caller, None)

    async def find(self, identity: Identity, name: str) -> tuple[Command, Script]:
        """What `name` means to a caller who may run it, for a Request. Errors: as `Commands.find`."""
        command = await self._commands.find(identity, name, Action.RUN)
        return command, self._invocations.parsed(command)[0]

    async def http(self, full_name: str) -> Http | None:
        """What a command (OWNER/NAME) says of itself over HTTP, whoever asks."""
        command = await self._commands.named(full_name)
        return None if command is None else self._invocations.parsed(command)[0].metadata.http

    async def detach(
        self,
        request: Request,
        caller: Caller | None = None,
        over: Callable[[], None] = lambda: None,
    ) -> str:
        """Begins a run that goes on without its caller, its output kept; returns its id.

        `caller` is who has left something on its stdin; `over` is called at its end, or where it
        could not begin. Errors: as `run`, until it has begun. It counts within the limits like any other.
        """
        begun: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._alone(request, caller or Nobody(), begun))
        self._detached.add(task)
        task.add_done_callback(self._detached.discard)
        task.add_done_callback(lambda _: over())
        try:
            return await begun
        except asyncio.CancelledError:
            task.cancel()  # nobody has got its id
            raise

    async def _alone(self, request: Request, caller: Caller, begun: asyncio.Future[str]) -> None:
        try:
            outcome = await self._run(replace(request, agent=None), caller, begun)
            if not begun.done():
                raise BusyError(f"it was stopped before it began: {outcome.message}", "try again")  # noqa: TRY301 - told like what fails earlier
        except Exception as error:
            if not begun.done():
                begun.set_exception(error)
            elif not isinstance(error, CmdError):  # what an engine says is in the run's record
                log.exception("a detached run failed")

    async def _run(
        self, request: Request, caller: Caller, begun: asyncio.Future[str] | None
    ) -> Outcome:
        """`begun` is told the id of a detached run."""
        user = request.identity.user
        asked = time.monotonic()
        try:
            await self._admit(user)
        except CmdError as error:
            self._figures.refused(request.door, error)
            raise
        try:
            command = request.command or await self._commands.find(
                request.identity, request.name, Action.RUN
            )
            run = Run(
                id=request.id,
                command=command.full_name,
                version=command.version.number,
                user=user,
                door=request.door,
                started_at=datetime.now(UTC),
                token=request.identity.token,
            )
            script, recipe = self._invocations.parsed(command)
            invocation = self._invocations.made(run, request, command, script, recipe)
            keep = begun is not None or request.keep or script.metadata.keep_output
            watched = Watched(caller, Kept(self._output_max) if keep else None)
            going = Going(run, request.identity, watched)
            return await self._recorded(going, self._started(going, invocation, begun), asked)
        finally:
            self.admission.leave(user)

    async def _admit(self, user: str) -> None:
        """Takes a slot, which is to be left."""
        if self.draining:
            raise shutting_down()
        if self.closed:
            raise BusyError(self.closed, "no new runs until then; try again later")
        if not self.admission.enter(user):
            asked = time.monotonic()
            await self.admission.wait(user)
            self._figures.waited(time.monotonic() - asked)

    async def _started(
        self, going: Going, invocation: Invocation, begun: asyncio.Future[str] | None
    ) -> Outcome:
        await self._store.begin_run(going.run)
        if begun is not None and not begun.done():
            begun.set_result(going.run.id)
        try:
            job = await self._engine.start(invocation)
        except LookupError:  # the layer is gone from this machine: made again from its recipe
            await self._builds.ensure(invocation.recipe, lambda _: None)
            job = await self._engine.start(invocation)
        return await relay(going.watched, job, timeout=invocation.limits.timeout)

    async def _recorded(
        self, going: Going, running: Coroutine[None, None, Outcome], asked: float
    ) -> Outcome:
        """The outcome of `running`, recorded whatever it is, also when this task is cancelled.

        `asked`: when, by the monotonic clock.
        """
        outcome = Outcome(70, Reason.ENGINE, "internal error")
        self.live.add(going)
        try:
            outcome = await going.stoppable(running)
        except CmdError as error:
            outcome = Outcome(error.exit_status, Reason.ENGINE, str(error))
            self._figures.failed(error)
            raise
        except asyncio.CancelledError:
            outcome = Outcome(129, Reason.HANGUP, "the caller went away")
            raise
        except LookupError as error:
            raise EngineError("the image is not there", "upload the script again") from error
        finally:
            going.run = replace(going.run, ended_at=datetime.now(UTC), outcome=outcome)
            self.ended[outcome.reason] += 1
            # A task of its own: whoever asked has the outcome before all this is noted.
            ending = asyncio.create_task(self._end(going, outcome, asked, time.monotonic()))
            self._endings.add(ending)
            ending.add_done_callback(self._endings.discard)
        if going.kept is not None:
            await asyncio.shield(ending)  # who knows of the end can ask for the output
        return outcome

    async def _end(self, going: Going, outcome: Outcome, asked: float, ended: float) -> None:
        """`asked` and `ended`: when, by the monotonic clock."""
        run = going.run
        first, seconds = going.watched.first_at, ended - asked
        self._figures.ended(run.door, outcome, seconds, None if first is None else first - asked)
        if going.kept is not None:
            if outcome.message:
                name = run.command.rpartition("/")[2]
                going.kept.add(2, f"cmdsvc: {name}: {outcome.message}\n".encode())
            going.kept.end()
        going.ended.set()
        try:
            if going.kept is not None:
                await self._store.keep_output(run.id, going.kept.output())
            await self._store.end_run(run.id, run.ended_at or datetime.now(UTC), outcome)
        except CmdError as error:
            self._figures.failed(error)
            log.exception("the end of a run was not recorded", extra={"fields": {"run": run.id}})
        finally:
            self.live.remove(going)
        log.info(
            "run",
            extra={
                "fields": {
                    "run": run.id,
                    "command": run.command,
                    "version": run.version,
                    "user": run.user,
                    "door": run.door,
                    "exit_status": outcome.exit_status,
                    "reason": outcome.reason,
                    "seconds": round(seconds, 4),
                }
            },
        )

    async def stop(self, subject: str, *, by: str, command: str | None = None) -> int:
        """See `Live.stop`."""
        return await self.live.stop(subject, by=by, command=command)

    async def drain(self, grace: float) -> bool:
        """Refuses new runs; True when the detached ones ended within `grace` seconds."""
        self.draining = True
        self.admission.close()
        if not self._detached:
            return True
        _, left = await asyncio.wait(self._detached, timeout=grace)
        return not left

    def cut_off(self) -> None:
        """Ends what goes on; whoever waits for it is told why."""
        self.live.stop_all(
            Outcome(70, Reason.LOST, "the server stopped while this ran; start it again")
        )

    async def aclose(self) -> None:
        """Ends what goes on, and waits until every ended run is recorded."""
        self.draining = True
        self.admission.close()
        self.cut_off()
        for tasks in (self._detached, self._endings):
            if tasks:
                await asyncio.wait(tasks)
