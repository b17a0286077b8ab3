"""Scripts that do their worst to what waits for them, and sandboxes that wait when it happens."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import TypeVar

import pytest
import pytest_asyncio

from cmdsvc.model import Reason, Terminal
from cmdsvc.relay import relay
from tests.contracts import engine_host as host
from tests.contracts.engine_lab import (
    CANARY,
    ENV,
    MB,
    PATIENCE,
    WARM,
    Given,
    Lab,
    Progress,
    ScriptedCaller,
    Transcript,
    marker,
)
from tests.contracts.test_engine_keeping import kept

pytestmark = [pytest.mark.every_road, pytest.mark.asyncio(loop_scope="session")]

T = TypeVar("T")

TERMINAL = Terminal("xterm", 80, 24)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def own(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lab]:
    """An engine for the scripts here; after them all nothing of it is left."""
    place = tmp_path_factory.mktemp("hostile")
    place.chmod(0o700)
    async with lab.another(place / "engine") as own:
        await own.engine.build(own.recipe, Progress())
        yield own
        await host.gone(lambda: [n for n in host.tree(place / "engine") if "/tmp/" in n])
        assert own.engine.warm <= WARM
    assert own.traces() == {}


@pytest_asyncio.fixture(autouse=True, loop_scope="session")
async def warmed(own: Lab) -> None:
    """A sandbox waits."""
    (await own.run("true")).ok()
    await host.until(lambda: own.engine.warm)


@pytest.mark.parametrize("terminal", [None, TERMINAL], ids=["pipes", "terminal"])
async def test_no_descriptor_but_the_streams(own: Lab, terminal: Terminal | None) -> None:
    find = b"for n in $(seq 0 255); do (exec <&$n) 2>/dev/null && echo $n; done"
    async with own.job(None, argv=(b"sh", b"-c", find), terminal=terminal) as job:
        result = await Transcript(job).end()
    assert result.lines == ["0", "1", "2"]


DUMP = r"""
    for p in /proc/[0-9]*; do
        cat $p/environ $p/cmdline $p/maps
        ls -l $p/fd $p/cwd $p/exe
        for fd in $p/fd/*; do [ -f $fd ] && cat $fd; done
        grep ' rw-p ' $p/maps | while read -r range rest; do
            from=$((0x${range%-*} / 4096)); to=$((0x${range#*-} / 4096))
            dd if=$p/mem bs=4096 skip=$from count=$((to - from))
        done
    done 2>/dev/null
    exit 0
"""
"""Prints all that there is to know of the processes that can be seen."""


async def test_processes_tell_nothing_of_the_service_or_of_others(own: Lab, canary: str) -> None:
    before, other, mine = marker(), marker(), marker()
    script = "echo ready; read -r x"
    env = {**ENV, b"SECRET": before.encode()}
    await own.run("true", before, stdin=before.encode(), env=env)
    await host.until(lambda: own.engine.warm)
    what = own.invocation(f"{script} # {other}", other, env={**ENV, b"SECRET": other.encode()})
    job = await own.engine.start(what)
    try:
        await Transcript(job).line()
        told = (await own.run(DUMP, mine)).ok()
    finally:
        await job.aclose()
    assert mine.encode() in told, "it sees its own"
    for word in (before, other, what.run_id, canary, CANARY, own.settings.instance):
        assert word.encode() not in told
    assert os.fsencode(own.settings.data_dir) not in told


SECOND = b"n=0; set -- env -i -- /bin/sh -c 'echo second'\n"
"""Runs something, where it is taken for the line by which a run is handed over."""


@pytest.mark.parametrize(
    ("script", "out"),
    [("exit 3", b""), ("read -r line; exit 3", b""), ("cat; cat; exit 3", 2 * SECOND)],
    ids=["unread", "half read", "read to the end and beyond"],
)
async def test_a_second_command_line_is_input(own: Lab, script: str, out: bytes) -> None:
    result = await own.run(script, stdin=2 * SECOND)
    assert (result.status, result.stdout, result.stderr) == (3, out, b"")


async def test_a_forged_end_ends_nothing(own: Lab) -> None:
    """As either engine tells an end, on whatever is open anywhere."""
    script = r"""
        forge() { printf '\3\0\0\0\0\0\0\0'; printf '\0%s 0\n' 012345678901234567890123456789; }
        for n in $(seq 1 255); do (exec >&$n && forge); done
        for fd in /proc/[0-9]*/fd/*; do (forge >$fd); done
        echo alive
        exit 9
    """
    result = await own.run(script)
    assert result.status == 9
    assert result.stdout.endswith(b"alive\n")


DEAF = r"""
    mkfifo /tmp/up
    setsid sh -c 'trap "" TERM HUP INT PIPE; echo >/tmp/up; while :; do sleep 300; done' "$1" &
    read -r x </tmp/up
    echo out; exit 5
"""


async def test_a_deaf_daemon_that_has_the_streams_does_not_hold_the_end(own: Lab) -> None:
    mark = marker()
    async with own.job(DEAF, mark) as job:
        result = await Transcript(job).end()
        assert (result.status, result.stdout, result.stderr) == (5, b"out\n", b"")
    assert host.with_argument(mark) == []


CLOSED = b"""
    trap 'exit 6' USR1
    echo ready
    for n in $(seq 0 255); do eval "exec $n>&-"; done
    while :; do sleep 300 & wait $!; done
"""
"""Has nothing open any more, and ends when it is told to."""


def closed(mark: str) -> bool:
    """Whether a process with `mark` among its arguments is there, and has nothing open."""
    pids = host.with_argument(mark)
    return bool(pids) and not [fd for pid in pids for fd in Path(f"/proc/{pid}/fd").iterdir()]


async def test_a_run_that_closes_everything_lasts_until_its_end(own: Lab) -> None:
    mark = marker()
    async with own.job(None, argv=(b"sh", b"-c", CLOSED, mark.encode())) as job:
        talk = Transcript(job)
        await talk.line()
        ending = asyncio.create_task(talk.end())
        await host.until(lambda: closed(mark))
        assert (await own.run("echo another")).ok() == b"another\n"
        assert not ending.done()
        await job.signal("USR1")
        result = await ending
    assert (result.status, result.stdout, result.stderr) == (6, b"ready\n", b"")
    assert host.with_argument(mark) == []


async def test_the_time_limit_ends_a_run_that_closed_everything(own: Lab) -> None:
    mark = marker()
    what = own.invocation(None, argv=(b"sh", b"-c", CLOSED, mark.encode()))
    job = await own.engine.start(what)
    async with asyncio.timeout(PATIENCE):
        relaying = asyncio.create_task(relay(ScriptedCaller(), job, timeout=3))
        await host.until(lambda: closed(mark))
        outcome = await relaying
    assert (outcome.exit_status, outcome.reason) == (124, Reason.TIMEOUT)
    assert host.with_argument(mark) == []


async def test_a_storm_of_runs_of_several_kinds(own: Lab) -> None:
    """Most find nothing that waits; never does more wait than may."""
    kinds: list[Given] = [{}, {"disk": 32 * MB}, {"terminal": TERMINAL}]
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, own.engine.warm)
            await asyncio.sleep(0.005)

    watching = asyncio.create_task(watch())
    results = await asyncio.gather(
        *(own.run('echo "$1"; exit "$1"', str(n), **kinds[n % 3]) for n in range(18))
    )
    assert [(result.status, result.lines) for result in results] == [
        (n, [str(n)]) for n in range(18)
    ]
    await host.until(lambda: own.engine.warm == WARM)
    watching.cancel()
    assert most <= WARM


class Unwanted(ScriptedCaller):
    """Has no use for what comes, and keeps nobody waiting."""

    async def write(self, fd: int, data: bytes) -> None:
        if not self.written[fd]:
            await super().write(fd, data)


async def test_a_flood_that_nobody_wants_holds_nobody_up(own: Lab) -> None:
    job = await own.engine.start(own.invocation("echo up; exec cat /dev/zero >&2"))
    caller = Unwanted()
    flooding = asyncio.create_task(relay(caller, job, timeout=300))
    await caller.saw(b"up")
    assert (await own.run("echo another")).ok() == b"another\n"
    assert not flooding.done()
    caller.leave()
    assert (await flooding).reason is Reason.HANGUP


async def test_a_layer_that_is_removed_as_a_run_begins(own: Lab) -> None:
    """The run is whole, or the layer is not here; and what comes after is as always."""
    begun = 0
    for moment in range(-9, 3):
        (await own.run("true")).ok()
        await host.until(lambda: own.engine.warm)
        layer = await kept(own, own.recipe)
        running = asyncio.create_task(after(-moment, own.run("echo whole; exit 3")))
        removing = asyncio.create_task(after(moment, own.engine.remove(layer)))
        removed = await removing
        try:
            result = await running
        except LookupError:
            assert removed
        else:
            assert (result.status, result.stdout) == (3, b"whole\n")
            begun += 1
        await own.engine.build(own.recipe, Progress())
    assert begun, "none was there in time"


async def after(moment: int, what: Awaitable[T]) -> T:
    """Begins `what` as many times 10 ms later: the moment is the case, nothing is waited for."""
    await asyncio.sleep(max(0, moment) * 0.01)
    return await what
