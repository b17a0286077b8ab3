"""What a run may use, and what happens when it wants more."""

from __future__ import annotations

import asyncio
import time

import pytest

from cmdsvc.model import Outcome, Reason
from cmdsvc.relay import relay
from tests.contracts import engine_host as host
from tests.contracts.engine_lab import MB, PATIENCE, Lab, ScriptedCaller, Transcript, marker

pytestmark = pytest.mark.asyncio(loop_scope="session")

EAT = "awk 'BEGIN { x = \"0123456789abcdef\"; while (1) x = x x }'"


async def test_a_time_limit_ends_all(lab: Lab) -> None:
    mark = marker()
    script = (
        "trap '' TERM INT HUP; sh -c 'trap \"\" TERM; sleep 300' $1 & setsid sleep 300 & sleep 300"
    )
    caller = ScriptedCaller()
    job = await lab.engine.start(lab.invocation(script, mark))
    started = time.monotonic()
    outcome = await relay(caller, job, timeout=1.5)
    assert time.monotonic() - started < 1.5 + 5
    assert outcome.exit_status == 124
    assert outcome.reason is Reason.TIMEOUT
    assert outcome.message == "timed out after 1.5 s; give it more time"
    assert host.with_argument(mark) == []


async def test_output_before_the_time_limit_is_kept(lab: Lab) -> None:
    caller = ScriptedCaller()
    job = await lab.engine.start(lab.invocation("echo early; echo err >&2; sleep 300"))
    outcome = await relay(caller, job, timeout=3)
    assert outcome.reason is Reason.TIMEOUT
    assert caller.written == {1: b"early\n", 2: b"err\n"}


async def test_a_run_within_its_time_is_not_touched(lab: Lab) -> None:
    caller = ScriptedCaller(b"in\n")
    job = await lab.engine.start(lab.invocation("cat; exit 3"))
    assert await relay(caller, job, timeout=PATIENCE) == Outcome(3)
    assert caller.written[1] == b"in\n"


async def test_out_of_memory_is_told(lab: Lab) -> None:
    result = await lab.run(f"echo before; exec {EAT}", memory=48 * MB)
    if await lab.shortcoming("memory"):  # then the program is refused, and may tell of it itself
        assert result.status != 0
        return
    assert result.status == 137
    assert result.outcome.reason is Reason.MEMORY
    assert "memory" in result.outcome.message
    assert "\n" not in result.outcome.message
    assert result.stdout == b"before\n"


async def test_a_script_may_outlive_what_ran_out_of_memory(lab: Lab) -> None:
    result = await lab.run(f"{EAT}; echo $?; exit 4", memory=48 * MB)
    assert result.status == 4
    assert result.stdout == b"137\n" or await lab.shortcoming("memory")
    assert result.outcome.reason is Reason.EXIT


async def test_a_kill_is_not_told_as_out_of_memory(lab: Lab) -> None:
    result = await lab.run("kill -KILL $$", memory=48 * MB)
    assert result.status == 137
    assert result.outcome.reason is not Reason.MEMORY
    assert result.outcome.message == ""


async def test_memory_within_the_limit_can_be_had(lab: Lab) -> None:
    script = "dd if=/dev/zero of=/dev/null bs=96M count=1 && echo ok"
    assert (await lab.run(script, memory=128 * MB)).ok() == b"ok\n"


async def test_files_kept_in_memory_cannot_exceed_it(lab: Lab) -> None:
    """Refused or killed, but never more than the limits together allow."""
    script = (
        "for f in /tmp /cmd; do dd if=/dev/zero of=$f/x bs=1M count=200 2>/dev/null; done; exit 1"
    )
    result = await lab.run(script, memory=48 * MB, disk=512 * MB)
    assert result.status in (1, 137)


async def test_processes_are_bounded(lab: Lab) -> None:
    mark = marker()
    script = """
        ( while :; do sleep 300 & done ) 2>/dev/null
        echo full
        read -r x
    """
    async with lab.job(script, mark, pids=40) as job:
        talk = Transcript(job)
        await talk.line()
        pid = host.with_argument(mark)[0]
        assert 20 <= len(host.companions(max(host.with_argument(mark)))) <= 44, pid
        await job.send(b"\n")
        assert (await talk.end()).status == 0
    assert host.with_argument(mark) == []


async def test_a_fork_bomb_harms_nobody(lab: Lab) -> None:
    mark = marker()
    bomb = 'echo ready; b() { b "$1" | b "$1" & }; b "$1"; while :; do :; done'
    async with lab.job(bomb, mark, pids=64) as job:
        talk = Transcript(job)
        await talk.line()
        assert (await lab.run("echo alive")).ok() == b"alive\n"
        async with asyncio.timeout(PATIENCE):
            await job.aclose()
        assert host.with_argument(mark) == []
    assert (await lab.run("echo alive")).ok() == b"alive\n"


async def test_a_full_process_table_still_gives_a_status(lab: Lab) -> None:
    script = "( while :; do sleep 300 & done ) 2>/dev/null; echo full; exit 12"
    result = await lab.run(script, pids=40)
    assert (result.status, result.stdout) == (12, b"full\n")


async def test_one_run_at_its_process_limit_leaves_others_theirs(lab: Lab) -> None:
    script = "( while :; do sleep 300 & done ) 2>/dev/null; echo full; read -r x"
    async with lab.job(script, pids=60) as job:
        await Transcript(job).line()
        result = await lab.run("for i in $(seq 40); do sleep 300 & done; echo ok", pids=60)
    assert (result.ok(), result.stderr) == (b"ok\n", b"")


@pytest.mark.slow
async def test_processors_are_bounded(lab: Lab) -> None:
    if why := await lab.shortcoming("cpu", "processor"):
        pytest.skip(why)
    work = "w() { i=0; while [ $i -lt 150000 ]; do i=$((i+1)); done; }; w & w & wait"
    result = await lab.run('time -p sh -c "$1"', work, cpus=0.25)
    spent = dict(line.split() for line in result.stderr.decode().splitlines())
    used = float(spent["user"]) + float(spent["sys"])
    assert used > 0.2, "too little work to tell"
    assert used / float(spent["real"]) < 0.25 * 1.6 + 0.1 / float(spent["real"])


@pytest.mark.parametrize("folder", ["/cmd", "/tmp"])
async def test_a_full_disk_is_told_to_the_program(lab: Lab, folder: str) -> None:
    script = 'dd if=/dev/zero of="$1/x" bs=1M count=64 && exit 0; wc -c <"$1/x"; exit 9'
    result = await lab.run(script, folder, disk=24 * MB)
    assert result.status == 9
    assert b"No space left" in result.stderr
    assert int(result.stdout) <= 24 * MB


@pytest.mark.parametrize("folder", ["/cmd", "/tmp"])
async def test_what_the_disk_limit_allows_can_be_written(lab: Lab, folder: str) -> None:
    """At least half of it in any one place: the rest may be kept for the others."""
    result = await lab.run('dd if=/dev/zero of="$1/x" bs=1M count=11', folder, disk=24 * MB)
    assert result.status == 0, result.stderr


async def test_all_that_can_be_written_is_bounded_by_the_disk_limit(lab: Lab) -> None:
    script = """
        find / -xdev -type d -writable 2>/dev/null >/tmp/places
        for place in /cmd /tmp /dev/shm /dev /run /run/cmd /var/tmp /root /etc /usr /dev/mqueue \
                $(cat /tmp/places); do
            [ -d "$place" ] && dd if=/dev/zero of="$place/filler" bs=64k count=2000 2>/dev/null
        done
        find / -name filler -exec stat -c %s {} + 2>/dev/null
    """
    result = await lab.run(script, disk=24 * MB, memory=256 * MB)
    sizes = [int(line) for line in result.lines]
    assert len(sizes) >= 2
    assert sum(sizes) <= 24 * MB * 1.1, sizes


async def test_many_empty_files_are_bounded(lab: Lab) -> None:
    """Their names and inodes take memory too."""
    script = """
        cd "$1"; i=0
        while [ $i -lt 100 ]; do
            mkdir d$i || exit 9
            (cd d$i && seq 2000 | xargs touch) || exit 9
            i=$((i+1))
        done
    """
    result = await lab.run(script, "/cmd", disk=8 * MB, memory=64 * MB)
    assert result.status in (9, 137), "200000 files in 8 MB"
