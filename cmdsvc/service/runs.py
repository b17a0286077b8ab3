"""One run, from any door: found, allowed, recorded, started, relayed, recorded."""

from __future__ import annotations

import asyncio
import base64
import logging
import re
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from cmdsvc import __version__
from cmdsvc.access import Action, Verdict, may
from cmdsvc.engine import Agent, Engine, Invocation
from cmdsvc.errors import BusyError, CmdError, EngineError, NotExecutableError, UsageError
from cmdsvc.metadata import Http, limits_of
from cmdsvc.model import (
    SCRIPT_PATH,
    SEARCH_PATH,
    WORK_DIR,
    Command,
    Door,
    Identity,
    Limits,
    Network,
    Outcome,
    Reason,
    Run,
    Terminal,
)
from cmdsvc.recipe import Recipe
from cmdsvc.relay import Caller, relay
from cmdsvc.script import Script
from cmdsvc.service.admission import Admission, shutting_down
from cmdsvc.service.builds import Builds
from cmdsvc.service.commands import Commands
from cmdsvc.service.environment import Environment
from cmdsvc.service.figures import Figures
from cmdsvc.service.live import Going, Live
from cmdsvc.service.outputs import Kept, Nobody, Watched
from cmdsvc.store import Store

log = logging.getLogger("cmdsvc.run")

SOFTWARE = f"cmdsvc/{__version__}".encode()
PASSED = ("LANG", "TERM", "COLORTERM")
"""What a caller may always set, beside LC_* and the script's `accept_env`."""
LOCALE = re.compile(rb"LC_[A-Z0-9_]{1,64}")
PARSED = 1024
"""Versions whose parsed form is kept in memory."""
ARG_MAX = 128 << 10
"""Bytes of one argument with its NUL, above which Linux executes nothing (execve(2))."""
ENV_MAX = 64 << 10
"""Bytes of environment that are taken from a caller."""
WITH_BODY = (b"/bin/sh", b"-c", b'cat >body && exec "$@" <body', b"sh")
"""Goes before a program that is to find its stdin as a file too."""


def run_id() -> str:
    """16 characters of 0-9 a-v: the time in ms, then 32 random bits; later ones sort later."""
    raw = int(time.time() * 1000).to_bytes(6, "big") + secrets.token_bytes(4)
    return base64.b32hexencode(raw).decode().lower()


@dataclass(frozen=True, slots=True)
class Request:
    """What a door knows of a run that is asked for."""

    identity: Identity
    door: Door
    name: str
    args: Sequence[bytes]
    env: Mapping[bytes, bytes]
    """As the caller sent it; what is not allowed is left out."""
    remote_addr: str
    terminal: Terminal | None = None
    timeout: float | None = None
    """Seconds, where the caller wants it ended sooner than its limit would."""
    agent: Agent | None = None
    """The caller's, where he lets it be used."""
    git: bool = False
    """Whether a git client asks, to push."""
    variables: Mapping[bytes, bytes] = field(default_factory=dict)
    """What the door says of the request (CGI, RFC 3875; HOOK_*): the owner's environment wins."""
    id: str = field(default_factory=run_id)
    """The run's."""
    body_file: bool = False
    """Whether the script finds its stdin as the file /cmd/body too."""
    keep: bool = False
    """Whether what it writes is kept, for `:logs`, whatever its script says."""
    command: Command | None = None
    """What `Runs.find` has found for this caller; None: it is found by its name."""


class Runs:
    def __init__(
        self,
        store: Store,
        engine: Engine,
        builds: Builds,
        commands: Commands,
        env: Environment,
        *,
        figures: Figures,
        limits: Limits,
        admission: Admission,
        output_max: int,
    ) -> None:
        self._store = store
        self._engine = engine
        self._builds = builds
        self._commands = commands
        self._env = env
        self._figures = figures
        self._limits = limits
        self._output_max = output_max
        self._detached: set[asyncio.Task[None]] = set()
        self._parsed: OrderedDict[tuple[str, int, datetime], tuple[Script, Recipe]] = OrderedDict()
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
        return command, self._parse(command)[0]

    def needs(self, command: Command) -> tuple[Recipe, Limits, Network]:
        """What a run of it has, where its caller asks for no less. DataError: it cannot run."""
        script, recipe = self._parse(command)
        return recipe, limits_of(script.metadata, self._limits), self._network(script)

    async def http(self, full_name: str) -> Http | None:
        """What a command (OWNER/NAME) says of itself over HTTP, whoever asks."""
        command = await self._commands.named(full_name)
        return None if command is None else self._parse(command)[0].metadata.http

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
            script, recipe = self._parse(command)
            invocation = self._invocation(run, request, command, script, recipe)
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

    def _invocation(
        self, run: Run, request: Request, command: Command, script: Script, recipe: Recipe
    ) -> Invocation:
        if any(len(arg) >= ARG_MAX for arg in request.args):
            raise NotExecutableError(
                f"Argument list too long: one has {ARG_MAX} bytes or more", "send it on stdin"
            )
        return Invocation(
            run_id=run.id,
            recipe=recipe,
            argv=(
                *(WITH_BODY if request.body_file and script.utility != () else ()),
                *((SCRIPT_PATH,) if script.utility is None else script.utility),
                *request.args,
            ),
            script=script.body,
            env=environment(run, request, command, script, self._env.opened(command)),
            limits=self._limits_of(request, script),
            network=self._network(script),
            terminal=request.terminal,
            agent=(
                request.agent
                if may(request.identity, Action.AGENT, command) is Verdict.ALLOWED
                else None
            ),
        )

    def _limits_of(self, request: Request, script: Script) -> Limits:
        limits = limits_of(script.metadata, self._limits)
        if request.timeout is None:
            return limits
        if request.timeout > limits.timeout:
            raise UsageError(
                f"its time limit is {limits.timeout:g} s", "ask for less: it can only be lowered"
            )
        return replace(limits, timeout=request.timeout)

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
            ending = self._over(going, outcome, asked)
        if going.kept is not None:
            await asyncio.shield(ending)  # who knows of the end can ask for the output
        return outcome

    def _over(self, going: Going, outcome: Outcome, asked: float) -> asyncio.Task[None]:
        seconds = time.monotonic() - asked
        first = going.watched.first_at
        self._figures.ended(
            going.run.door, outcome, seconds, None if first is None else first - asked
        )
        going.run = run = replace(going.run, ended_at=datetime.now(UTC), outcome=outcome)
        self.ended[outcome.reason] += 1
        if going.kept is not None:
            if outcome.message:
                name = run.command.rpartition("/")[2]
                going.kept.add(2, f"cmdsvc: {name}: {outcome.message}\n".encode())
            going.kept.end()
        going.ended.set()
        ending = asyncio.create_task(self._end(going, outcome, seconds))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)
        return ending

    async def _end(self, going: Going, outcome: Outcome, seconds: float) -> None:
        run = going.run
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

    def _parse(self, command: Command) -> tuple[Script, Recipe]:
        version = command.version
        key = (command.full_name, version.number, version.created_at)
        found = self._parsed.get(key)
        if found is None:
            found = self._parsed[key] = self._commands.parse(version.source)
            if len(self._parsed) > PARSED:
                self._parsed.popitem(last=False)
        return found

    def _network(self, script: Script) -> Network:
        if script.metadata.network is not None:
            return script.metadata.network
        return Network.INTERNET if Network.INTERNET in self._engine.networks else Network.NONE

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


def environment(
    run: Run, request: Request, command: Command, script: Script, owners: Mapping[bytes, bytes]
) -> dict[bytes, bytes]:
    """All that the script will find in its environment.

    The service's own names always win, then come `owners`, the command's own, then the caller's.
    """
    env = {b"LANG": b"C.UTF-8"}
    if request.terminal:
        env[b"TERM"] = request.terminal.term.encode()
    allowed = {name.encode() for name in (*PASSED, *script.metadata.accept_env)}
    if request.git:
        allowed.add(b"GIT_PROTOCOL")  # git(1): which version of its protocol the client speaks
    room = ENV_MAX
    for key, value in request.env.items():
        if (key not in allowed and not LOCALE.fullmatch(key)) or b"\0" in value:
            continue
        room -= len(key) + len(value) + 2
        if room < 0:
            break
        env[key] = value
    user = request.identity.user.encode()
    return {
        **env,
        **request.variables,
        **owners,
        b"PATH": SEARCH_PATH,
        b"HOME": WORK_DIR,
        b"USER": user,
        b"REMOTE_ADDR": request.remote_addr.encode(),
        b"SERVER_SOFTWARE": SOFTWARE,
        b"CMD_NAME": command.name.encode(),
        b"CMD_OWNER": command.owner.encode(),
        b"CMD_USER": user,
        b"CMD_RUN_ID": run.id.encode(),
        b"CMD_VERSION": str(run.version).encode(),
    }
