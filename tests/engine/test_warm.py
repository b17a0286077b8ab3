"""Sandboxes that wait for a run: each is for one, and nothing of them is left."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest
import pytest_asyncio

from cmdsvc.engine import Layer
from cmdsvc.engine.bubblewrap import BubblewrapEngine
from cmdsvc.engine.bubblewrap.prepared import Kind, Prepared
from cmdsvc.engine.bubblewrap.stub import Stub
from cmdsvc.engine.warm import IDLE, Warm
from cmdsvc.errors import EngineError
from cmdsvc.model import Network, Outcome, Terminal
from cmdsvc.recipe import Recipe
from tests.engine.bubblewrap_lab import (
    LIMITS,
    MB,
    children,
    invocation,
    opened,
    quiet,
    recipe_on,
    run,
    settings_for,
    spawner_of,
    until,
)

MOST = 3
FIRST = b"first\n"


@pytest_asyncio.fixture
async def engine(kit, tmp_path) -> AsyncIterator[BubblewrapEngine]:
    async with opened(settings_for(tmp_path, str(kit.base), warm=MOST)) as engine:
        await engine.build(recipe_on(kit), quiet)
        yield engine


@pytest.fixture
def recipe(kit) -> Recipe:
    return recipe_on(kit)


def waiting(engine: BubblewrapEngine) -> list[Prepared]:
    return list(engine._runs._warm._waiting)


async def warmed(engine: BubblewrapEngine, recipe: Recipe, **changes) -> Prepared:
    """The one sandbox that waits, after a run that found none."""
    assert await run(engine, invocation(recipe, "echo first", **changes)) == (Outcome(0), FIRST)
    await until(lambda: engine.warm == 1)
    return waiting(engine)[0]


async def test_a_run_takes_the_one_that_waits_and_another_takes_its_place(
    engine: BubblewrapEngine, recipe: Recipe
) -> None:
    one = await warmed(engine, recipe)
    leave = "echo mine >/tmp/left; echo mine >/cmd/left; ls -A /tmp /cmd"
    job = await engine.start(invocation(recipe, leave))
    assert job.group == one.stub.group
    assert await job.wait() == Outcome(0)
    await job.aclose()
    await until(lambda: engine.warm == 1)
    [other] = waiting(engine)
    assert other.stub.group != one.stub.group
    look = await run(engine, invocation(recipe, "ls -A /tmp /cmd"))
    assert look == (Outcome(0), b"/cmd:\n\n/tmp:\n")
    await until(lambda: not engine._runs._jobs)  # nothing is kept of a run that has ended


async def test_arguments_environment_script_and_limits_come_with_the_run(
    engine: BubblewrapEngine, recipe: Recipe
) -> None:
    one = await warmed(engine, recipe)
    limits = replace(LIMITS, pids=20, memory=32 * MB)
    odd = b"\xff \n'\""
    env = {b"ODD": odd}
    script = 'printf "%s|%s" "$1" "$ODD"; head -c 64000000 /dev/zero | tail -c 60000000 >/dev/null'
    what = invocation(recipe, script, odd, env=env, limits=limits)
    job = await engine.start(what)
    assert job.group == one.stub.group
    out = b"".join([data async for number, data in job.output() if number == 1])
    outcome = await job.wait()
    await job.aclose()
    assert out == odd + b"|" + odd
    assert outcome.exit_status == 137
    assert "out of memory" in outcome.message


async def test_a_terminal(engine: BubblewrapEngine, recipe: Recipe) -> None:
    one = await warmed(engine, recipe)
    what = invocation(recipe, "stty size; tty", terminal=Terminal("xterm", 0, 7))
    job = await engine.start(what)
    assert job.group == one.stub.group
    out = b"".join([data async for _, data in job.output()])
    assert await job.wait() == Outcome(0)
    await job.aclose()
    # No columns: stty says what is usual.
    assert out == b"7 80\r\n/dev/pts/0\r\n"


async def test_another_kind_is_not_taken(engine: BubblewrapEngine, recipe: Recipe) -> None:
    one = await warmed(engine, recipe)
    small = replace(LIMITS, disk=MB)
    job = await engine.start(invocation(recipe, "df -k /tmp | tail -1", limits=small))
    out = b"".join([data async for _, data in job.output()])
    await job.aclose()
    assert job.group != one.stub.group
    assert b" 1024 " in out
    assert one in waiting(engine)


async def test_the_program_can_read_nothing_of_the_hand_over(
    engine: BubblewrapEngine, recipe: Recipe
) -> None:
    await warmed(engine, recipe)
    script = """
        for fd in /proc/$$/fd/*; do readlink $fd | sed 's/:.*//'; done | sort -u | tr '\\n' ' '; echo
        cat /proc/1/environ /proc/1/mem /proc/1/fd/* 2>/dev/null
        tr '\\0' ' ' </proc/1/cmdline
    """
    outcome, out = await run(engine, invocation(recipe, script))
    fds, line = out.decode().splitlines()
    assert outcome == Outcome(0)
    assert fds.split() == ["/run/cmd/main", "pipe"], "the shell reads the script"
    assert line.split()[0] == "/run/cmd/launch"


async def test_as_many_as_were_wanted_but_no_more_than_are_allowed(
    engine: BubblewrapEngine, recipe: Recipe
) -> None:
    runs = [run(engine, invocation(recipe, f"echo {n}")) for n in range(12)]
    results = await asyncio.gather(*runs)
    assert results == [(Outcome(0), b"%d\n" % n) for n in range(12)]
    await until(lambda: engine.warm == MOST)
    await until(lambda: engine._runs._warm._filling is None)
    assert engine.warm == MOST


async def test_those_that_nobody_takes_are_ended(engine: BubblewrapEngine, recipe: Recipe) -> None:
    await warmed(engine, recipe)
    assert IDLE > 0
    engine._runs._warm._age()
    assert engine.warm == 1, "it was asked for since the last time"
    engine._runs._warm._age()
    assert engine.warm == 0
    await until(lambda: len(children(spawner_of(engine))) == engine._machine._stubs.ready)


async def test_one_that_was_killed_is_not_missed(engine: BubblewrapEngine, recipe: Recipe) -> None:
    one = await warmed(engine, recipe)
    signal.pidfd_send_signal(one.stub.pidfd, signal.SIGKILL)
    await until(lambda: not one.stub.alive)
    assert await run(engine, invocation(recipe, "echo x")) == (Outcome(0), b"x\n")
    await until(lambda: engine._runs._warm._filling is None)
    others = waiting(engine)
    assert one not in others
    assert others
    for pid in children(spawner_of(engine)):
        for below in children(pid):
            os.kill(below, signal.SIGKILL)
    for other in others:
        await other.stub.gone.wait()
    assert await run(engine, invocation(recipe, "echo y")) == (Outcome(0), b"y\n")


@pytest.mark.parametrize("whole", [True, False], ids=["all of it", "the first inside"])
async def test_one_that_was_killed_unnoticed_is_not_missed(
    engine: BubblewrapEngine, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """As between the look whether it is there and the hand-over."""
    one = await warmed(engine, recipe)
    inside = next(pid for c in children(spawner_of(engine)) for pid in children(c))
    if whole:
        signal.pidfd_send_signal(one.stub.pidfd, signal.SIGKILL)
    else:
        os.kill(inside, signal.SIGKILL)
    await until(lambda: not one.stub.alive)
    with monkeypatch.context() as patch:
        patch.setattr(Stub, "alive", True)
        assert one.alive
        assert await run(engine, invocation(recipe, "echo x; exit 3")) == (Outcome(3), b"x\n")
    await until(lambda: one not in waiting(engine))
    await until(lambda: engine.warm > 0)


async def test_a_layer_can_be_removed(engine: BubblewrapEngine, recipe: Recipe) -> None:
    await warmed(engine, recipe)
    assert await engine.remove(Layer(recipe.digest, base=False, size=0))
    assert engine.warm == 0
    with pytest.raises(LookupError):
        await engine.start(invocation(recipe, "echo x"))
    await engine.build(recipe, quiet)
    assert await run(engine, invocation(recipe, "echo x")) == (Outcome(0), b"x\n")


async def test_a_layer_that_is_made_again_is_what_the_next_run_has(
    engine: BubblewrapEngine, recipe: Recipe
) -> None:
    one = await warmed(engine, recipe)
    await engine.build(recipe, quiet, again=True)
    job = await engine.start(invocation(recipe, "echo x"))
    await job.wait()
    await job.aclose()
    assert job.group != one.stub.group
    assert one.stub.gone.is_set()


async def test_everything_can_be_removed(engine: BubblewrapEngine, recipe: Recipe) -> None:
    await warmed(engine, recipe)
    await engine.purge()
    assert engine.warm == 0


async def test_a_spawner_that_died_is_replaced(engine: BubblewrapEngine, recipe: Recipe) -> None:
    await warmed(engine, recipe)
    os.kill(spawner_of(engine), signal.SIGKILL)
    await until(lambda: not engine._machine._stubs.alive)
    assert await run(engine, invocation(recipe, "echo x")) == (Outcome(0), b"x\n")
    await until(lambda: engine.warm == 2)


async def test_none_where_there_are_to_be_none(kit, tmp_path, recipe: Recipe) -> None:
    async with opened(settings_for(tmp_path, str(kit.base), warm=0)) as engine:
        await engine.build(recipe, quiet)
        for _ in range(3):
            assert await run(engine, invocation(recipe, "echo x")) == (Outcome(0), b"x\n")
        assert engine.warm == 0
        assert engine._runs._warm._filling is None


async def test_what_cannot_be_made_is_not_tried_again_and_again() -> None:
    tried = []

    async def fail(kind: Kind) -> Prepared:
        tried.append(kind)
        raise EngineError("no")

    warm = Warm(fail, 4)
    kind = Kind("layer", Network.NONE, disk=1, memory=0)
    assert warm.take(kind) is None
    await until(lambda: warm._filling is None)
    assert tried == [kind]
    await warm.aclose()


async def test_one_dropped_before_it_began_to_fill_fills_again() -> None:
    tried = []

    async def fail(kind: Kind) -> Prepared:
        tried.append(kind)
        raise EngineError("no")

    warm: Warm[Kind, Prepared] = Warm(fail, 4)
    kind = Kind("layer", Network.NONE, disk=1, memory=0)
    assert warm.take(kind) is None
    await warm.drop()
    assert warm.take(kind) is None
    await until(lambda: tried == [kind])
    await warm.aclose()


@dataclass(eq=False)
class Member:
    """Stands for a sandbox that waits."""

    kind: str
    alive: bool = True

    async def aclose(self) -> None:
        self.alive = False


async def make(kind: str) -> Member:
    return Member(kind)


@asynccontextmanager
async def warm_of(most: int) -> AsyncIterator[Warm[str, Member]]:
    warm: Warm[str, Member] = Warm(make, most)
    yield warm
    await warm.aclose()


async def kinds(warm: Warm[str, Member]) -> list[str]:
    """Of those that wait once there is nothing more to be made."""
    await until(lambda: warm._filling is None)
    return sorted(one.kind for one in warm._waiting if one.alive)


async def test_one_that_is_wanted_waits_and_another_takes_its_place() -> None:
    async with warm_of(3) as warm:
        warm.want("a")
        warm.want("a")
        assert await kinds(warm) == ["a"]
        [one] = warm._waiting
        assert warm.take("a") is one
        assert await kinds(warm) == ["a"]
        [other] = warm._waiting
        other.alive = False
        warm.want("a")
        assert await kinds(warm) == ["a"]


async def test_one_that_is_wanted_again_and_again_stays() -> None:
    async with warm_of(3) as warm:
        warm.want("a")
        warm.want("b")
        assert await kinds(warm) == ["a", "b"]
        warm._age()
        warm.want("a")
        warm._age()
        assert await kinds(warm) == ["a"]
        warm._age()
        assert await kinds(warm) == []
        for kind in "cde":
            warm.want(kind)
        assert await kinds(warm) == ["c", "d", "e"]


async def test_those_that_are_wanted_do_not_give_way() -> None:
    async with warm_of(3) as warm:
        for _ in range(5):
            warm.take("x")
        assert await kinds(warm) == ["x", "x", "x"]
        warm.want("a")
        assert await kinds(warm) == ["a", "x", "x"]
        for _ in range(5):
            for kind in "xyz":
                warm.take(kind)
        assert "a" in await kinds(warm)
        warm._age()
        for _ in range(5):
            for kind in "xyz":
                warm.take(kind)
        assert "a" in await kinds(warm), "it is asked for again before the next time"
        for kind in "bcde":
            warm.want(kind)
        assert await kinds(warm) == ["a", "b", "c"]
        warm.take("x")
        assert await kinds(warm) == ["a", "b", "c"]
        await warm.drop(lambda kind: kind == "a")
        warm.want("d")
        assert await kinds(warm) == ["b", "c", "d"]


async def test_what_begins_to_fill_while_all_is_dropped_is_known() -> None:
    warm: Warm[str, Member] = Warm(make, 3)
    warm.want("a")
    filling = warm._filling
    assert filling is not None
    await asyncio.sleep(0)
    filling.add_done_callback(lambda _: warm.want("b"))
    await warm.drop()
    await until(lambda: len(warm) == 1)
    [one] = warm._waiting
    await warm.aclose()
    assert not one.alive
    assert warm._filling is None


async def test_never_more_than_are_allowed() -> None:
    async with warm_of(2) as warm:
        warm.take("a")
        assert await kinds(warm) == ["a"]
        warm.take("b")
        warm.take("b")
        assert warm.take("a") is not None, "it was not wanted any more, and there still"
        warm.take("b")
        warm.take("c")
        assert await kinds(warm) == ["b", "c"]


async def test_none_is_wanted_where_there_are_to_be_none() -> None:
    async with warm_of(0) as warm:
        warm.want("a")
        assert warm._filling is None
    async with warm_of(3) as warm:
        await warm.aclose()
        warm.want("a")
        assert warm._filling is None


async def test_what_cannot_be_made_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    failing = True

    async def try_to(kind: str) -> Member:
        if failing:
            raise EngineError("no room")
        return Member(kind)

    warm: Warm[str, Member] = Warm(try_to, 3)
    for _ in range(3):
        warm.want("a")
        assert await kinds(warm) == []
        warm._age()
    assert caplog.text.count("no room") == 1
    failing = False
    warm.want("a")
    assert await kinds(warm) == ["a"]
    failing = True
    assert warm.take("a") is not None
    assert await kinds(warm) == []
    assert caplog.text.count("no room") == 2
    await warm.aclose()


async def test_another_kind_wanted_while_one_is_made_is_not_one_too_many() -> None:
    room = asyncio.Semaphore(0)
    made: list[Member] = []

    async def slowly(kind: str) -> Member:
        await room.acquire()
        made.append(Member(kind))
        return made[-1]

    warm: Warm[str, Member] = Warm(slowly, 2)
    assert warm.take("old") is None
    assert warm.take("old") is None
    room.release()
    await until(lambda: len(warm) == 1)
    assert warm.take("new") is None, "the second of the old ones is being made"
    for _ in range(2):
        room.release()
    await until(lambda: warm._filling is None)
    assert len(warm) == 2
    assert [one.kind for one in made if one.alive] == ["old", "new"]
    await warm.aclose()


async def test_nothing_is_left_at_the_end(kit, tmp_path, recipe: Recipe) -> None:
    async with opened(settings_for(tmp_path, str(kit.base), warm=MOST)) as engine:
        await engine.build(recipe, quiet)
        one = await warmed(engine, recipe)
        pid = spawner_of(engine)
    assert one.stub.gone.is_set()
    assert not children(pid)
