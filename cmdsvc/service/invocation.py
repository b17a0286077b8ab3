"""What a run is to be: from a request, a command and its script to an Invocation for the engine."""

from __future__ import annotations

import base64
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from cmdsvc import __version__
from cmdsvc.access import Action, Verdict, may
from cmdsvc.engine import Agent, Engine, Invocation
from cmdsvc.errors import NotExecutableError, UsageError
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
    Run,
    Terminal,
)
from cmdsvc.recipe import Recipe
from cmdsvc.script import Script
from cmdsvc.service.commands import Commands
from cmdsvc.service.environment import Environment

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


class Invocations:
    def __init__(
        self, engine: Engine, commands: Commands, env: Environment, limits: Limits
    ) -> None:
        self._engine = engine
        self._commands = commands
        self._env = env
        self._limits = limits
        self._parsed: OrderedDict[tuple[str, int, datetime], tuple[Script, Recipe]] = OrderedDict()

    def parsed(self, command: Command) -> tuple[Script, Recipe]:
        """What its source means; DataError where it cannot run."""
        version = command.version
        key = (command.full_name, version.number, version.created_at)
        found = self._parsed.get(key)
        if found is None:
            found = self._parsed[key] = self._commands.parse(version.source)
            if len(self._parsed) > PARSED:
                self._parsed.popitem(last=False)
        return found

    def needs(self, command: Command) -> tuple[Recipe, Limits, Network]:
        """What a run of it has, where its caller asks for no less. DataError: it cannot run."""
        script, recipe = self.parsed(command)
        return recipe, limits_of(script.metadata, self._limits), self._network(script)

    def made(
        self, run: Run, request: Request, command: Command, script: Script, recipe: Recipe
    ) -> Invocation:
        """Of the command as it is `parsed`.

        Errors: NotExecutableError (126: too long an argument), UsageError (64: more time than it
        may have), BrokenSealError (70).
        """
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

    def _network(self, script: Script) -> Network:
        if script.metadata.network is not None:
            return script.metadata.network
        return Network.INTERNET if Network.INTERNET in self._engine.networks else Network.NONE


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
