"""Containers that wait for a run: how they are made, and how one is handed its run."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from cmdsvc.engine import Invocation
from cmdsvc.engine.docker.attached import Attached
from cmdsvc.engine.docker.http import Api, ApiError
from cmdsvc.engine.docker.seccomp import profile
from cmdsvc.engine.docker.waiter import BLOCK, FOLDER, GO, READY, WAITER, hand_over
from cmdsvc.errors import EngineError
from cmdsvc.model import SCRIPT_PATH, SEARCH_PATH, WORK_DIR, Limits, Terminal

NOBODY: Final = 65534
"""The user and group that scripts run as: nobody, in every base."""

START_TIMEOUT: Final = 60.0
"""Seconds: many starts at once queue up in the engine."""

GIVE_TIMEOUT: Final = 30.0
"""Seconds."""

_OVERTAKEN: Final = 2**20
"""Bytes at most that come on stderr before a word on stdout that was written before them."""

_LEAST_MEMORY: Final = 6 * 2**20
"""Bytes: the engine accepts no less."""

_LEAST_CPUS: Final = 0.01

_OWN_PROCESSES: Final = 2
"""The init and the waiter, which count against the container's limit; or the launcher alone."""

SCRIPT_ROOM: Final = 2 * 2**20
"""Bytes of script that a container has room for, unless it is made for a longer one."""

_SHARE: Final = 15 / 32
"""Of the disk limit that the working directory has, and as much /tmp; /dev/shm has the rest."""

_DETACH: Final = b"\xfe," + ",".join(secrets.token_hex(24)).encode()
"""Keys that would end an attachment to a terminal, instead of ^P^Q, which a run is to get.

They cannot be guessed. The engine holds back the first one until the next byte comes, so it is one
that no keyboard sends: UTF-8 has no such byte.
"""

_STREAMS: Final = ("OpenStdin", "StdinOnce", "AttachStdin", "AttachStdout", "AttachStderr")

_SECCOMP: Final = profile()


@dataclass(frozen=True, slots=True)
class Shape:
    """What a waiting container depends on, and nothing of the run that it will get."""

    image: str
    """Of what waits its id: a layer that is made again has another one."""
    limits: Limits
    """But for the time, which is not the container's."""
    network: str
    """The engine's name of the network, "none" for none."""
    terminal: bool
    runtime: str | None
    script_room: int = SCRIPT_ROOM
    """Bytes of script that it has room for."""


@dataclass(frozen=True, slots=True)
class Handed:
    """A container that waited, and was given its run."""

    attached: Attached
    nonce: bytes
    """Begins the trailer that tells the program's status."""
    ahead: Sequence[tuple[int, bytes]]
    """Output that came with the last word of the hand-over."""


class EndedError(EngineError):
    """A container ended, or the engine, and no program had begun that was heard of."""


def description(
    shape: Shape,
    labels: Mapping[str, str],
    cpus: float,
    mounts: Sequence[Mapping[str, Any]] = (),
) -> Mapping[str, Any]:
    """What to make a container from that waits; `cpus` is how many the engine has."""
    return {
        **_by_itself(shape, labels, cpus, mounts, attached=True),
        "Entrypoint": ["/bin/sh", "-c", WAITER],
        # The init passes a signal on to the whole process group.
        "Env": ["TINI_KILL_PROCESS_GROUP=1", f"PATH={SEARCH_PATH.decode()}"],
    }


def launched(
    shape: Shape,
    labels: Mapping[str, str],
    cpus: float,
    command: Sequence[str],
    mounts: Sequence[Mapping[str, Any]],
) -> Mapping[str, Any]:
    """The same, of one whose first program is the launcher: `command` is what it is and has first."""
    return {
        **_by_itself(shape, labels, cpus, mounts, attached=False),
        "Entrypoint": [*command, SEARCH_PATH.decode(), SCRIPT_PATH.decode()],
    }


def _by_itself(
    shape: Shape,
    labels: Mapping[str, str],
    cpus: float,
    mounts: Sequence[Mapping[str, Any]],
    *,
    attached: bool,
) -> Mapping[str, Any]:
    owner = f"uid={NOBODY},gid={NOBODY}"
    work = f"exec,nosuid,nodev,size={int(shape.limits.disk * _SHARE)}"
    folders = {
        FOLDER: f"exec,nosuid,nodev,size={shape.script_room},mode=0755,{owner}",
        WORK_DIR.decode(): f"{work},mode=0755,{owner}",
        "/tmp": f"{work},mode=1777",  # noqa: S108 - the container's
    }
    return {
        **isolated(shape, labels, cpus, folders, mounts, attached=attached),
        "Cmd": [],
        "User": f"{NOBODY}:{NOBODY}",
        "WorkingDir": WORK_DIR.decode(),
    }


def isolated(
    shape: Shape,
    labels: Mapping[str, str],
    cpus: float,
    folders: Mapping[str, str],
    mounts: Sequence[Mapping[str, Any]],
    *,
    attached: bool,
) -> Mapping[str, Any]:
    """All of a container's description but for what it runs, as whom and where.

    `folders` are the writable ones, each with the options of its tmpfs. `attached`: the engine carries
    what the program reads and writes, and its init is the first process.
    """
    limits = shape.limits
    memory = max(limits.memory, _LEAST_MEMORY)
    host = {
        "Init": attached,
        "NetworkMode": shape.network,
        "LogConfig": {"Type": "none"},
        "ReadonlyRootfs": True,
        "Tmpfs": dict(folders),
        "ShmSize": int(limits.disk * (1 - 2 * _SHARE)),
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges", f"seccomp={_SECCOMP}"],
        "Memory": memory,
        "MemorySwap": memory,
        "NanoCpus": int(min(max(limits.cpus, _LEAST_CPUS), cpus) * 1e9),
        "PidsLimit": limits.pids + _OWN_PROCESSES,
        "Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}],
        "Mounts": list(mounts),
    }
    if shape.runtime:
        host["Runtime"] = shape.runtime
    return {
        "Image": shape.image,
        "Labels": dict(labels),
        "Tty": attached and shape.terminal,
        **dict.fromkeys(_STREAMS, attached),
        "StopSignal": "SIGKILL",  # the waiter ignores TERM: the engine's own end would wait for it
        "HostConfig": host,
    }


async def start(api: Api, container: str, shape: Shape) -> Attached:
    """Starts it; returns when it can be handed a run."""
    waiting = await attach(api, container, shape, None)
    try:
        async with api.bounded(START_TIMEOUT):
            await _expect(waiting, READY)
    except BaseException:
        waiting.close()
        raise
    return waiting


async def attach(api: Api, container: str, shape: Shape, terminal: Terminal | None) -> Attached:
    """Starts it."""
    stream = await api.upgrade(
        f"/containers/{container}/attach",
        query={
            "stream": "1",
            "stdin": "1",
            "stdout": "1",
            "stderr": "1",
            "detachKeys": _DETACH,
        },
    )
    try:
        await api.call("POST", f"/containers/{container}/start", timeout=START_TIMEOUT)
        if terminal is not None:
            with suppress(ApiError):  # it has just ended
                await resize(api, container, terminal.columns, terminal.rows)
    except BaseException:
        stream.close()
        raise
    return Attached(container, stream, terminal=shape.terminal)


async def give(api: Api, waiting: Attached, invocation: Invocation) -> Handed:
    """Hands the run over: from now on the stream's input is the program's.

    EndedError where the program has not begun, unless the engine died just then.
    """
    # Digits: a terminal may be left in a state where it makes capitals of letters.
    nonce = b"%d" % secrets.randbits(128)
    line, block = hand_over(invocation.argv, invocation.env, invocation.script, nonce)
    if (terminal := invocation.terminal) is not None:
        with suppress(ApiError):  # it has just ended
            await resize(api, waiting.container, terminal.columns, terminal.rows)
    async with api.bounded(GIVE_TIMEOUT):
        await waiting.write(line)
        if block:
            await _expect(waiting, BLOCK)
            await waiting.write(block)
        return Handed(waiting, nonce, await _expect(waiting, GO))


async def resize(api: Api, container: str, columns: int, rows: int) -> None:
    await api.call(
        "POST", f"/containers/{container}/resize", query={"w": str(columns), "h": str(rows)}
    )


async def _expect(attached: Attached, word: bytes) -> Sequence[tuple[int, bytes]]:
    """Waits for the waiter's word; what came with it and after it.

    What the program writes on stderr may overtake it.
    """
    ahead: list[tuple[int, bytes]] = []
    size = 0
    while size <= _OVERTAKEN and (piece := await attached.next()):
        fd, data = piece
        if fd == 1:
            _, found, after = data.partition(word)
            if found:
                return [*ahead, (1, after)] if after else ahead
        else:
            ahead.append(piece)
            size += len(data)
    if ahead:
        raise EngineError("the sandbox did not say that its run began", "try again")
    raise EndedError(
        "the sandbox ended before its run began", "see whether the image has a working /bin/sh"
    )
