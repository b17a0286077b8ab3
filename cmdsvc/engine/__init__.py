"""What builds layers and runs sandboxes: the protocol, and the table of engines."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cmdsvc.model import SCRIPT_PATH, Limits, Network, Terminal
from cmdsvc.recipe import Recipe
from cmdsvc.relay import Job

Progress = Callable[[str], None]
"""Takes one line (no line break) of what a build or a fetch is doing; returns at once."""


AGENT_PATH = SCRIPT_PATH.rpartition(b"/")[0] + b"/agent"
"""Where the caller's SSH agent is inside a sandbox; the engine sets SSH_AUTH_SOCK to it."""


class Agent(Protocol):
    """The caller's SSH agent, for one run: an engine calls one of these, once."""

    def listen(self, sock: socket.socket) -> None:
        """Takes over a listening socket that is at AGENT_PATH in the sandbox, and nowhere else."""
        ...

    def refuse(self, why: str) -> None:
        """The run goes on without; `why` is for the caller."""
        ...


@dataclass(frozen=True, slots=True)
class Invocation:
    """All that an engine needs for one run, and nothing of who asked for it.

    `argv` is what is executed: its first member is `model.SCRIPT_PATH` where there is a `script`,
    else a program (absolute, or looked up on the image's PATH, `model.SEARCH_PATH`). Arguments
    and environment are bytes of any value but NUL; `env` is the whole environment. Of an imported
    image `argv` is what its entry point is given, nothing for the image's own; variables that `env`
    has not, and PATH, are the image's; what is not UTF-8 is a UsageError.
    """

    run_id: str
    recipe: Recipe
    argv: tuple[bytes, ...]
    script: bytes | None
    env: Mapping[bytes, bytes]
    limits: Limits
    network: Network
    terminal: Terminal | None = None
    agent: Agent | None = None


@dataclass(frozen=True, slots=True)
class Sources:
    """Where bases and packages come from, as the operator has set it."""

    bases: Mapping[str, str]
    """Base name to an image reference ("alpine", "docker.io/library/debian:12-slim"), or a root
    file-system tarball by absolute path or URL (what ends in .tar, .tar.gz, .tgz, .tar.xz, .tar.zst)."""
    alpine_mirrors: tuple[str, ...] = ()
    """Full repository URLs that replace the base's own; none: the base's own."""
    apk_keys: Path | None = None
    """A folder of public keys (*.rsa.pub) added to the base's."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    data_dir: Path
    """The engine's own folder, below the service's data folder; may lie where only root can go."""
    instance: str
    """Names this service among others on the same machine or Docker engine, over restarts."""
    sources: Sources
    limits: Limits
    """Of a run by default, and never exceeded by an invocation's."""
    build_timeout: float = 300.0
    """Seconds."""
    docker_runtime: str | None = None
    warm: int = 20
    """Sandboxes at most that are made ahead of runs; 0: none."""
    network_allow: tuple[str, ...] = ()
    """ADDRESS or ADDRESS:PORT (IPv4) that runs may reach although it is not of the Internet."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `cmdsvc check`. `level` is "ok", "warning" or "error"; `hint` says what to do."""

    level: str
    what: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a sandbox uses; None where the engine cannot tell."""

    cpu_seconds: float | None
    """Of processor time, since its start."""
    memory: int | None
    """Bytes, now."""


DIGITS = 24
"""Of a digest: as many of its first ones name a layer beyond doubt."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What an engine keeps: a package layer, or a base that layers stand on."""

    name: str
    """Of a layer DIGITS or more of its recipe's digest, of a base what the engine calls it."""
    base: bool
    size: int
    """Bytes of its own."""
    below: str = ""
    """The base that a layer stands on, where that is one of the engine's own."""
    shared: int = 0
    """Bytes of what is below it: others may stand on that too."""
    wanted: bool = False
    """Of a base: the next build takes it."""


class Engine(Protocol):
    """Builds package layers and runs sandboxes. Made closed: `open` comes first, `aclose` last.

    Errors: EngineError (125) when the engine itself fails or cannot be reached; from `build` and
    `pull` also DataError (65: the recipe cannot be had, in the package manager's words) and
    BusyError (75: a source cannot be reached, or the time limit is over). Nothing half-made is
    left behind by what fails or is cancelled.
    """

    name: str

    @property
    def networks(self) -> frozenset[Network]:
        """What it can give, known after `open`.

        INTERNET is exactly that and nothing private, but on docker: there the block list is in
        force once root has installed it (`cmdsvc firewall`), which `check` tells.
        """
        ...

    @property
    def warm(self) -> int:
        """Sandboxes that are made and wait for a run; 0 for what makes none beforehand."""
        ...

    async def open(self, *, beside: bool = False) -> None:
        """Makes it ready, and removes what a dead server of the same instance left behind.

        `beside`: to pull, while a server of the instance may be running. It removes nothing then.
        """
        ...

    async def aclose(self) -> None:
        """Ends every run, finishes what goes on in the background. Repeatable."""
        ...

    async def check(self) -> list[Finding]:
        """What is in force and what is wrong, in words for the operator; works while closed."""
        ...

    async def pull(self, base: str, tag: str, progress: Progress) -> None:
        """Fetches a base, again where it is here already."""
        ...

    async def resolve(self, image: str, progress: Progress) -> str:
        """What pins the image that is called so: NAME@sha256:DIGITS, the base of a recipe.

        Of the image that is here, else of what its registry has. UsageError (64) for what cannot be
        a name, DataError (65) where there is no such image or this engine has none, BusyError (75)
        where the registry cannot be asked.
        """
        ...

    async def has(self, recipe: Recipe) -> bool:
        """Whether the layer is here. Cheap: it is asked before every run."""
        ...

    async def stale(self, recipe: Recipe) -> bool:
        """Whether the layer is here on another base than a build would take now, unfetched.

        Cheap, and it needs no network.
        """
        ...

    async def build(self, recipe: Recipe, progress: Progress, *, again: bool = False) -> None:
        """Makes the layer where it is missing or stale, fetching its base where that is missing.

        `again`: in any case, on the base fetched again. The new layer takes the old one's place once
        it is whole; what runs keeps the old one, which is removed when nothing runs on it, at the
        latest by `open`. Safe when called twice at once for one recipe.
        """
        ...

    async def start(self, invocation: Invocation) -> Job:
        """Begins a run in a sandbox of its own.

        A program that is not there or cannot be executed is the Outcome 127 or 126. A layer that
        is not here is a LookupError.
        """
        ...

    async def expect(self, recipe: Recipe, limits: Limits, network: Network) -> None:
        """Has one sandbox wait for such a run without a terminal, for five minutes or longer.

        It is made in the background; nothing where none are to wait (EngineSettings.warm), or none
        can for an imported image. A layer that is not here is a LookupError.
        """
        ...

    async def usage(self) -> Mapping[str, Usage]:
        """Of the runs that go on, by their ids. For people who look on: it may take a second.

        One that has just ended, or about which nothing can be had, is left out.
        """
        ...

    async def layers(self) -> list[Layer]:
        """What is kept, bases that are not this instance's own left out. It may take a while."""
        ...

    async def remove(self, layer: Layer) -> bool:
        """Removes one of them; False where it is in use, by a run, a build or a layer upon it."""
        ...

    async def purge(self) -> None:
        """Removes every layer and base that this instance made, after which it is as new."""
        ...
