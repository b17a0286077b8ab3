"""One run, from any door: found, allowed, recorded, started, relayed, recorded."""

from __future__ import annotations

import asyncio
import base64
import logging
import re
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cmdsvc import __version__
from cmdsvc.access import Action
from cmdsvc.engine import Engine, Invocation
from cmdsvc.errors import BusyError, CmdError, EngineError, NotExecutableError
from cmdsvc.metadata import limits_of
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
from cmdsvc.service.builds import Builds
from cmdsvc.service.commands import Commands
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


class Runs:
    def __init__(
        self,
        store: Store,
        engine: Engine,
        builds: Builds,
        commands: Commands,
        *,
        limits: Limits,
        max_runs: int,
        max_runs_per_user: int,
    ) -> None:
        self._store = store
        self._engine = engine
        self._builds = builds
        self._commands = commands
        self._limits = limits
        self._max_runs = max_runs
        self._max_runs_per_user = max_runs_per_user
        self._running: Counter[str] = Counter()
        self._parsed: OrderedDict[tuple[str, int, datetime], tuple[Script, Recipe]] = OrderedDict()
        self._endings: set[asyncio.Task[None]] = set()
        self.draining = False
        """Whether new runs are refused, since the service is going down."""

    async def run(self, request: Request, caller: Caller) -> Outcome:
        """Runs a command to its end and returns how it ended.

        Errors: BusyError (75: over a limit, or draining), NotFoundError (127), EngineError (125).
        The end is recorded behind the caller's back, so that nobody waits for it.
        """
        user = request.identity.user
        self._admit(user)
        try:
            command = await self._commands.find(request.identity, request.name, Action.RUN)
            run = Run(
                id=run_id(),
                command=command.full_name,
                version=command.version.number,
                user=user,
                door=request.door,
                started_at=datetime.now(UTC),
            )
            invocation = self._invocation(run, request, command, *self._parse(command))
            return await self._recorded(run, self._started(run, invocation, caller))
        finally:
            self._leave(user)

    def _admit(self, user: str) -> None:
        if self.draining:
            raise BusyError("the service is shutting down", "try again in a minute")
        if self._running.total() >= self._max_runs:
            raise BusyError(f"{self._max_runs} runs are going on", "try again in a moment")
        if self._running[user] >= self._max_runs_per_user:
            raise BusyError(
                f"{self._max_runs_per_user} runs of yours are going on", "try again in a moment"
            )
        self._running[user] += 1

    def _leave(self, user: str) -> None:
        self._running[user] -= 1
        if not self._running[user]:
            del self._running[user]

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
            argv=(*(script.utility or (SCRIPT_PATH,)), *request.args),
            script=script.body,
            env=environment(run, request, command, script),
            limits=limits_of(script.metadata, self._limits),
            network=self._network(script),
            terminal=request.terminal,
        )

    async def _started(self, run: Run, invocation: Invocation, caller: Caller) -> Outcome:
        await self._store.begin_run(run)
        try:
            job = await self._engine.start(invocation)
        except LookupError:  # the layer is gone from this machine: made again from its recipe
            await self._builds.ensure(invocation.recipe, lambda _: None)
            job = await self._engine.start(invocation)
        return await relay(caller, job, timeout=invocation.limits.timeout)

    async def _recorded(self, run: Run, running: Coroutine[None, None, Outcome]) -> Outcome:
        """The outcome of `running`, recorded whatever it is, also when this task is cancelled."""
        outcome = Outcome(70, Reason.ENGINE, "internal error")
        begun = time.monotonic()
        try:
            outcome = await running
        except CmdError as error:
            outcome = Outcome(error.exit_status, Reason.ENGINE, str(error))
            raise
        except asyncio.CancelledError:
            outcome = Outcome(129, Reason.HANGUP, "the caller went away")
            raise
        except LookupError as error:
            raise EngineError("the image is not there", "upload the script again") from error
        finally:
            ending = asyncio.create_task(self._end(run, outcome, time.monotonic() - begun))
            self._endings.add(ending)
            ending.add_done_callback(self._endings.discard)
        return outcome

    async def _end(self, run: Run, outcome: Outcome, seconds: float) -> None:
        try:
            await self._store.end_run(run.id, datetime.now(UTC), outcome)
        except CmdError:
            log.exception("the end of a run was not recorded", extra={"fields": {"run": run.id}})
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

    async def aclose(self) -> None:
        """Waits until every ended run is recorded."""
        if self._endings:
            await asyncio.wait(self._endings)


def run_id() -> str:
    """16 characters of 0-9 a-v: the time in ms, then 32 random bits; later ones sort later."""
    raw = int(time.time() * 1000).to_bytes(6, "big") + secrets.token_bytes(4)
    return base64.b32hexencode(raw).decode().lower()


def environment(run: Run, request: Request, command: Command, script: Script) -> dict[bytes, bytes]:
    """All that the script will find in its environment; the service's own names always win."""
    env = {b"LANG": b"C.UTF-8"}
    if request.terminal:
        env[b"TERM"] = request.terminal.term.encode()
    allowed = {name.encode() for name in (*PASSED, *script.metadata.accept_env)}
    room = ENV_MAX
    for key, value in request.env.items():
        if (key not in allowed and not LOCALE.fullmatch(key)) or b"\0" in value:
            continue
        room -= len(key) + len(value) + 2
        if room < 0:
            break
        env[key] = value
    user = request.identity.user.encode()
    return env | {
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
