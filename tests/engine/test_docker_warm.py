"""Containers that wait for a run: each is for one, and nothing of them is left."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from cmdsvc.engine import Invocation, Layer
from cmdsvc.engine.docker import sandbox
from cmdsvc.engine.docker.direct import Direct, DirectJob, Launched, NoDoorError
from cmdsvc.engine.docker.doors import Door
from cmdsvc.engine.docker.http import Api, Stream
from cmdsvc.engine.docker.job import HandedJob
from cmdsvc.engine.docker.prepared import Prepared
from cmdsvc.engine.docker.sandbox import SCRIPT_ROOM
from cmdsvc.errors import EngineError
from cmdsvc.model import SCRIPT_PATH, SEARCH_PATH, Limits, Network, Outcome, Reason, Terminal
from cmdsvc.recipe import Recipe
from cmdsvc.relay import Job
from tests.engine import dockerlab
from tests.engine.dockerlab import MB, PATIENCE, Lab, end

if TYPE_CHECKING:
    from tests.kit import Kit, Server

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]

MOST = 3
ENV = {b"PATH": SEARCH_PATH}


EITHER = pytest.mark.parametrize("lab", ["direct", "handed"], indirect=True)
HANDED = pytest.mark.parametrize("lab", ["handed"], indirect=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def direct(
    host: str, kit: Kit, mirror: Server, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Lab]:
    folder = tmp_path_factory.mktemp("direct")
    async with dockerlab.lab(host, folder, kit, mirror, warm=MOST) as made:
        yield made
        await made.engine.aclose()
        assert made.containers() == []
        assert [path.name for path in (folder / "waiting").iterdir()] == ["launch"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def handed(
    host: str, kit: Kit, mirror: Server, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Lab]:
    """Runs are handed over through the engine, as where that is elsewhere."""
    folder = tmp_path_factory.mktemp("handed")
    async with dockerlab.lab(host, folder, kit, mirror, warm=MOST, runtime="runc") as made:
        yield made
        await made.engine.aclose()
        assert made.containers() == []


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Lab:
    made: Lab = request.getfixturevalue(getattr(request, "param", "direct"))
    return made


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def cold(lab: Lab) -> None:
    await lab.engine._runs._warm.drop()


def waiting(lab: Lab) -> list[Prepared]:
    return list(lab.engine._runs._warm._waiting)


async def until(condition) -> None:
    """For what nobody tells of."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def start(
    lab: Lab,
    script: str | bytes,
    *arguments: bytes,
    env: dict[bytes, bytes] = ENV,
    recipe: Recipe | None = None,
    limits: Limits | None = None,
    terminal: Terminal | None = None,
    network: Network = Network.NONE,
) -> Job:
    body = script if isinstance(script, bytes) else f"#!/bin/sh\n{script}\n".encode()
    return await lab.engine.start(
        Invocation(
            run_id=secrets.token_hex(8),
            recipe=recipe or lab.recipe,
            argv=(SCRIPT_PATH, *arguments),
            script=body,
            env=env,
            limits=limits or lab.settings.limits,
            network=network,
            terminal=terminal,
        )
    )


async def ran(
    lab: Lab, script: str | bytes, *arguments: bytes, **given
) -> tuple[str, bytes, Outcome]:
    """The container, what the script wrote to stdout, and how it ended."""
    async with asyncio.timeout(PATIENCE):
        job = await start(lab, script, *arguments, **given)
        try:
            await job.send_eof()
            out, outcome = await end(job)
        finally:
            await job.aclose()
    return job.container, out, outcome


async def warmed(lab: Lab, number: int = 1, **given) -> list[Prepared]:
    """Those that wait after as many runs at once that found none."""
    for _, out, _ in await asyncio.gather(
        *(ran(lab, "echo first", **given) for _ in range(number))
    ):
        assert out.split() == [b"first"]
    await until(lambda: lab.engine.warm == number)
    return waiting(lab)


@EITHER
async def test_a_run_takes_the_one_that_waits_and_another_takes_its_place(lab: Lab) -> None:
    (one,) = await warmed(lab)
    leave = "echo mine | tee /tmp/left >/cmd/left; ls -A /tmp /cmd"
    taken, _, outcome = await ran(lab, leave)
    assert (taken, outcome) == (one.container, Outcome(0))
    await until(lambda: lab.engine.warm == 1)
    (other,) = waiting(lab)
    assert other.container != one.container
    look = await ran(lab, "ls -A /tmp /cmd")
    assert look == (other.container, b"/cmd:\n\n/tmp:\n", Outcome(0))
    await until(lambda: taken not in lab.containers())


@EITHER
async def test_arguments_environment_and_script_of_any_bytes(lab: Lab) -> None:
    (one,) = await warmed(lab)
    every = bytes(range(1, 256))
    script = b'#!/bin/sh\nprintf "%s|%s" "$1" "$ODD"\nwc -c <$0 >&2\nexit 7\n' + every * 400
    taken, out, outcome = await ran(lab, script, every, env={**ENV, b"ODD": every[::-1] * 50})
    assert (taken, outcome) == (one.container, Outcome(7))
    assert out == every + b"|" + every[::-1] * 50


@EITHER
async def test_a_terminal_has_its_size_from_the_start(lab: Lab) -> None:
    (one,) = await warmed(lab, terminal=Terminal("xterm", 80, 24))
    script = "stty size; stty -a | grep -o ' echo '; read x; echo $x"
    job = await start(lab, script, terminal=Terminal("xterm", 101, 7))
    async with asyncio.timeout(PATIENCE):
        await job.send(b"a\n")
        out, outcome = await end(job)
        await job.aclose()
    assert (job.container, outcome) == (one.container, Outcome(0))
    assert b"7 101\r\n" in out
    assert out.split()[-1] == b"a"


@EITHER
async def test_another_kind_is_not_taken(lab: Lab) -> None:
    (one,) = await warmed(lab)
    small = replace(lab.settings.limits, memory=16 * MB)
    for script, given in [
        ("grep -c . /proc/self/limits", {"limits": small}),
        (b"#!/bin/sh\nexit\n" + b"#" * SCRIPT_ROOM, {}),
        ("tty", {"terminal": Terminal("xterm", 80, 24)}),
    ]:
        taken, _, outcome = await ran(lab, script, **given)
        assert (taken != one.container, outcome) == (True, Outcome(0))
        assert one in waiting(lab)
    sooner = replace(lab.settings.limits, timeout=1)
    assert (await ran(lab, "true", limits=sooner))[0] == one.container


@EITHER
async def test_a_limit_holds_in_one_that_waited(lab: Lab) -> None:
    (one,) = await warmed(lab)
    hog = "head -c 200000000 /dev/zero | tail -c 200000000 >/dev/null; exit $?"
    taken, _, outcome = await ran(lab, f"exec sh -c '{hog}'")
    assert taken == one.container
    assert outcome.exit_status == 137
    assert "out of memory" in outcome.message


@EITHER
@pytest.mark.parametrize("noticed", [True, False])
async def test_one_that_was_killed_is_not_missed(
    lab: Lab, noticed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await warmed(lab, 2)
    lab.client.containers.get(one.container).kill()
    await until(lambda: not one.alive)
    if not noticed:  # as between its end and the word of it
        monkeypatch.setattr(Stream, "usable", True)
        monkeypatch.setattr(Launched, "alive", True)
    taken, out, outcome = await ran(lab, "echo x")
    assert (taken, out, outcome) == (two.container, b"x\n", Outcome(0))
    await until(lambda: one.container not in lab.containers())


@HANDED
async def test_what_may_have_begun_is_not_begun_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = await warmed(lab, terminal=Terminal("xterm", 80, 24))
    monkeypatch.setattr(Stream, "usable", True)
    one.attached.close()  # as when the engine dies; the container goes on
    with pytest.raises(EngineError, match="see whether it ran"):
        await start(lab, "true", terminal=Terminal("xterm", 80, 24))


async def test_a_layer_that_is_removed_takes_those_on_it_along(lab: Lab) -> None:
    recipe = lab.layer("hello-noarch")
    await lab.engine.build(recipe, lambda _: None)
    await warmed(lab, recipe=recipe)
    assert await lab.engine.remove(Layer(recipe.digest, base=False, size=0))
    assert lab.engine.warm == 0
    with pytest.raises(LookupError):
        await start(lab, "true", recipe=recipe)
    await lab.engine.build(recipe, lambda _: None)
    assert (await ran(lab, "echo x", recipe=recipe))[1] == b"x\n"


async def test_a_layer_that_is_made_again_is_what_the_next_run_has(lab: Lab) -> None:
    recipe = lab.layer("uuidgen")
    await lab.engine.build(recipe, lambda _: None)
    (one,) = await warmed(lab, recipe=recipe)
    await lab.engine.build(recipe, lambda _: None, again=True)
    assert one.container not in lab.containers()
    images = {image["Id"] for image in lab.client.api.images(all=True)}
    assert one.kind.image not in images, "nothing runs on it"
    taken, _, outcome = await ran(lab, "true", recipe=recipe)
    assert (taken != one.container, outcome) == (True, Outcome(0))


@EITHER
async def test_more_runs_than_wait(lab: Lab) -> None:
    results = await asyncio.gather(*(ran(lab, f"echo {n}") for n in range(8)))
    assert [out for _, out, _ in results] == [b"%d\n" % n for n in range(8)]
    await until(lambda: lab.engine.warm == MOST)
    await until(lambda: lab.engine._runs._warm._filling is None)
    assert lab.engine.warm == MOST


@EITHER
async def test_the_script_finds_nothing_of_the_hand_over(lab: Lab) -> None:
    (one,) = await warmed(lab, env={**ENV, b"SECRET": b"of another run"})
    script = r"""
        for n in $(seq 0 255); do readlink /proc/$$/fd/$n; done | sed 's/:.*//' | sort -u
        echo --
        cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline | tr '\0' '\n'
        readlink /proc/1/fd/* /proc/$PPID/fd/* | sed 's/:.*//' | sort -u
    """
    taken, out, outcome = await ran(lab, script)
    assert (taken, outcome) == (one.container, Outcome(0))
    fds, _, rest = out.decode().partition("--\n")
    assert fds.split() == ["/run/cmd/main", "pipe"], "the shell reads the script"
    for word in (lab.settings.instance, str(lab.settings.data_dir), "another run", "docker.sock"):
        assert word not in rest


MEMORY = r"""
    memory() {
        grep ' rw-p ' /proc/$PPID/maps | while read -r range rest; do
            from=$((0x${range%-*} / 4096)); to=$((0x${range#*-} / 4096))
            dd if=/proc/$PPID/mem bs=4096 skip=$from count=$((to - from)) 2>/dev/null
        done
    }
"""
"""Shell function that prints the waiter's."""

FORGE = r"""
    memory | tr -c 0-9 '\n' | grep -xE '[0-9]{36,39}' | head -n 1 >/tmp/nonce
    read -r nonce </tmp/nonce || { echo sealed; exit 77; }
    printf '\0%s 77\n' "$nonce" >&2
    printf '\0%s 77\n' "$nonce"
    sleep 300
"""


@EITHER
@pytest.mark.parametrize(
    ("script", "status"),
    [
        (MEMORY + FORGE, 77),
        ("printf '\\0%s 0\\n' 0123456789abcdef0123456789abcdef >&2; exit 3", 3),
        ("(trap '' TERM HUP; exec sleep 300) & exit 4", 4),
        ("(exec <&- >&- 2>&-; exec sleep 300) & exit 5", 5),
        ("kill -STOP $PPID & read x; (sleep 0.1; kill -CONT $PPID) & exit 6", 6),
    ],
    ids=["the nonce", "a guess", "a daemon", "a silent daemon", "the waiter stopped"],
)
async def test_an_end_that_is_forged_or_held_up_is_the_runs_own(
    lab: Lab, script: str, status: int
) -> None:
    one, two = await warmed(lab, 2)
    taken, _, outcome = await ran(lab, script)
    assert (taken, outcome) == (one.container, Outcome(status))
    assert (await ran(lab, "echo x"))[:2] == (two.container, b"x\n")


@HANDED
async def test_the_waiter_knows_no_other_runs_nonce(lab: Lab) -> None:
    await warmed(lab, 2)
    other = await start(lab, "echo ready; read x")
    mine = await start(lab, f"{MEMORY} memory; exit 0")
    try:
        async with asyncio.timeout(PATIENCE):
            assert await anext(other.output()) == (1, b"ready\n")
            told, outcome = await end(mine)
    finally:
        await other.aclose()
        await mine.aclose()
    assert outcome == Outcome(0)
    ours, theirs = (job._trailers[1]._mark[1:-1] for job in (mine, other))
    assert ours != theirs
    assert theirs not in told
    assert ours in told or not told, "its own, where memory can be read at all"


@HANDED
@pytest.mark.parametrize("terminal", [None, Terminal("xterm", 80, 24)], ids=["pipes", "terminal"])
async def test_an_end_that_is_not_told_is_an_error(lab: Lab, terminal: Terminal | None) -> None:
    (one,) = await warmed(lab, terminal=terminal)
    job = await start(lab, "echo out; kill -VTALRM $PPID; sleep 60", terminal=terminal)
    try:
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(EngineError, match="without telling how its run did") as it:
                await end(job)
    finally:
        await job.aclose()
    assert job.container == one.container
    assert it.value.exit_status == 125
    assert "\n" not in str(it.value)
    assert (await ran(lab, "echo x"))[1:] == (b"x\n", Outcome(0))


@HANDED
async def test_a_kill_takes_the_waiters_word_and_is_told_as_one(lab: Lab) -> None:
    (one,) = await warmed(lab)
    taken, out, outcome = await ran(lab, "echo out; kill -KILL $PPID; sleep 60")
    assert (taken, out) == (one.container, b"out\n")
    assert outcome == Outcome(137, Reason.SIGNAL)


async def test_the_launcher_cannot_be_ended_stopped_or_looked_into(lab: Lab) -> None:
    (one,) = await warmed(lab)
    script = r"""
        kill -KILL 1; kill -STOP 1; kill -TERM 1
        ls /proc/1/fd /proc/1/mem >/dev/null && echo open
        head -c 1 /proc/1/environ /proc/1/maps && echo read
        ls -A /run/cmd; echo x | nc local:/sbin/docker-init.socket && echo heard
        echo on; exit 3
    """
    assert await ran(lab, script) == (one.container, b"main\non\n", Outcome(3))


async def test_nobody_else_can_come_to_the_door(lab: Lab) -> None:
    """It is gone before a script begins, and its folder is for the server alone until then."""
    await warmed(lab)
    folder = lab.settings.data_dir / "waiting"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in folder.iterdir()] == ["launch"]


async def test_a_launcher_that_dies_with_its_container(lab: Lab) -> None:
    (one,) = await warmed(lab)
    job = await start(lab, "echo out; sleep 60")
    try:
        async with asyncio.timeout(PATIENCE):
            output = job.output()
            assert await anext(output) == (1, b"out\n")
            lab.client.containers.get(one.container).kill()
            assert [piece async for piece in output] == []
            with pytest.raises(EngineError, match="the Docker engine ended the run"):
                await job.wait()
    finally:
        await job.aclose()


async def test_a_server_that_dies_takes_its_runs_along(lab: Lab) -> None:
    """The kernel closes its sockets then."""
    one, two = await warmed(lab, 2)
    job = await start(lab, "echo out; exec sleep 60")
    async with asyncio.timeout(PATIENCE):
        assert await anext(job.output()) == (1, b"out\n")
    for sock in (one.sock, two.sock):
        sock.shutdown(socket.SHUT_RDWR)
    for container in (one.container, two.container):
        assert lab.client.containers.get(container).wait(timeout=PATIENCE)
    await job.aclose()


def nobody_there(direct: Direct, door: Door) -> None:
    door.path.unlink()
    direct._doors.make(door.path.name).listener.close()


def no_room() -> None:
    raise NoDoorError("a socket cannot be made")


UNUSABLE = {
    "not seen": lambda direct, _: direct._launcher.unlink(),
    "nobody there": nobody_there,
    "no room for sockets": lambda direct, _: no_room(),
    "cannot be executed": lambda direct, _: direct._launcher.write_text("#!/nowhere\n"),
}


@pytest.mark.parametrize("spoil", UNUSABLE.values(), ids=UNUSABLE)
async def test_where_the_door_cannot_be_used(  # noqa: PLR0917 - fixtures are asked for by name
    host: str, kit: Kit, mirror: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil
) -> None:
    """As with an engine in a machine of its own: what it runs is handed over through it."""
    describe = Direct.description

    def spoiled(direct: Direct, *given) -> Mapping[str, object]:
        spoil(direct, given[-2])
        return describe(direct, *given)

    async with dockerlab.lab(host, tmp_path, kit, mirror) as own:
        monkeypatch.setattr(Direct, "description", spoiled)
        job = await own.start("echo x")
        assert isinstance(job, HandedJob)
        try:
            assert await end(job) == (b"x\n", Outcome(0))
        finally:
            await job.aclose()
        monkeypatch.undo()
        again = await own.start("true")
        await again.aclose()
        assert isinstance(again, HandedJob), "it is not tried each time"
        own.engine._runs._direct._not_before = 0.0  # as later on
        own.engine._runs._direct.open()
        later = await own.start("true")
        await later.aclose()
        assert isinstance(later, DirectJob)


@pytest.mark.parametrize("terminal", [None, Terminal("xterm", 80, 24)], ids=["pipes", "terminal"])
async def test_a_kernel_or_an_engine_without_close_range(  # noqa: PLR0917 - as above
    host: str,
    kit: Kit,
    mirror: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    terminal: Terminal | None,
) -> None:
    """Linux before 5.9, runc with libseccomp before 2.5.2."""
    rules = json.loads(sandbox._SECCOMP)
    known = sum("close_range" in rule["names"] for rule in rules["syscalls"])
    assert known == 1
    for rule in rules["syscalls"]:
        rule["names"] = [name for name in rule["names"] if name != "close_range"]
    monkeypatch.setattr(sandbox, "_SECCOMP", json.dumps(rules))
    async with dockerlab.lab(host, tmp_path, kit, mirror) as own:
        script = "for n in $(seq 3 255); do readlink /proc/$$/fd/$n; done; exit 3"
        job = await own.start(script, terminal=terminal)
        assert isinstance(job, DirectJob)
        try:
            async with asyncio.timeout(PATIENCE):
                out, outcome = await end(job)
        finally:
            await job.aclose()
    assert set(out.split()) <= {b"/run/cmd/main", b"/dev/tty"}, "the shell's own"
    assert outcome == Outcome(3)


async def test_an_end_that_was_told_while_the_engine_is_away(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only whether memory ran out is asked of it."""
    (one,) = await warmed(lab)
    job = await start(lab, "echo out; read x; kill -KILL $$")

    async def away(*_: object, **__: object) -> None:
        raise EngineError("the Docker engine cannot be reached")

    try:
        async with asyncio.timeout(PATIENCE):
            assert await anext(job.output()) == (1, b"out\n")
            monkeypatch.setattr(Api, "call", away)
            await job.send(b"\n")
            for _ in range(2):
                assert await job.wait() == Outcome(137, Reason.SIGNAL)
    finally:
        monkeypatch.undo()
        await job.aclose()
    assert job.container == one.container


@EITHER
async def test_how_a_run_is_handed_over(lab: Lab, request: pytest.FixtureRequest) -> None:
    job = await start(lab, "true")
    await job.aclose()
    handed = lab is request.getfixturevalue("handed")
    assert isinstance(job, HandedJob if handed else DirectJob)


@EITHER
async def test_a_script_that_kills_all_that_it_may(
    lab: Lab, request: pytest.FixtureRequest
) -> None:
    """The waiter with it: the status comes from the container then. It cannot kill a launcher."""
    _, out, outcome = await ran(lab, "(sleep 60; echo never) & echo before; kill -KILL -1; exit 4")
    killed = lab is request.getfixturevalue("handed")
    assert (out, outcome) == (b"before\n", Outcome(137, Reason.SIGNAL) if killed else Outcome(4))


async def test_those_for_the_network(lab: Lab) -> None:
    (one,) = await warmed(lab, network=Network.INTERNET)
    taken, out, _ = await ran(lab, "ls /sys/class/net", network=Network.INTERNET)
    assert (taken, out) == (one.container, b"eth0\nlo\n")
    await lab.engine._runs._warm.drop()
    await until(lambda: lab.containers() == [])
    lab.client.networks.get(one.kind.network).remove()
    assert lab.engine._runs._warm.take(one.kind) is None  # and so one is made
    await until(lambda: lab.engine.warm == 1)


async def test_a_layer_that_was_removed_behind_its_back_is_missed(lab: Lab) -> None:
    recipe = lab.layer("hello-noarch")
    await lab.engine.build(recipe, lambda _: None)
    lab.client.images.remove(lab.engine._layers._here[recipe.digest], force=True)
    with pytest.raises(LookupError):
        await lab.engine.expect(recipe, lab.settings.limits, Network.NONE)
    assert lab.engine._runs._warm._filling is None


async def test_none_waits_for_an_imported_image(lab: Lab) -> None:
    name = f"alpine@sha256:{'a' * 64}"
    recipe = Recipe(name, "", (), name)
    assert recipe.imported
    await lab.engine.expect(recipe, lab.settings.limits, Network.NONE)
    assert lab.engine._runs._warm._filling is None


async def test_none_where_there_are_to_be_none(
    host: str, kit: Kit, mirror: Server, tmp_path: Path
) -> None:
    async with dockerlab.lab(host, tmp_path, kit, mirror, warm=0) as own:
        assert await own.run("echo x") == (b"x\n", Outcome(0))
        assert own.engine.warm == 0
        assert own.engine._runs._warm._filling is None


async def test_everything_can_be_removed(lab: Lab) -> None:
    await warmed(lab)
    await lab.engine.purge()
    assert lab.engine.warm == 0
    assert lab.containers() == []
    await lab.engine.build(lab.recipe, lambda _: None)
