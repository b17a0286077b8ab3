"""Signals and terminals: what reaches a program besides bytes."""

from __future__ import annotations

import contextlib
import hashlib
import signal
from collections.abc import AsyncIterator

import pytest

from cmdsvc.model import Outcome, Reason, Terminal
from cmdsvc.relay import Job
from tests.contracts.engine_lab import ENV, Lab, Transcript

pytestmark = [pytest.mark.every_road, pytest.mark.asyncio(loop_scope="session")]

TERMINAL = Terminal("xterm-256color", 101, 37)


# ---- death by signal


@pytest.mark.parametrize(
    "name", ["HUP", "INT", "ABRT", "KILL", "USR1", "SEGV", "PIPE", "ALRM", "TERM", "RTMIN"]
)
async def test_death_by_a_signal_of_its_own(lab: Lab, name: str) -> None:
    number = signal.Signals[f"SIG{name}"].value
    result = await lab.run(f"ulimit -c 0; kill -{number} $$; sleep 60")
    assert result.status == 128 + number
    assert result.outcome.reason in (Reason.SIGNAL, Reason.EXIT)
    assert result.outcome.message == ""
    assert result.stderr == b""


async def test_a_child_killed_is_the_shells_to_tell(lab: Lab) -> None:
    result = await lab.run("sh -c 'kill -KILL $$'; echo $?; exit 5")
    assert (result.status, result.stdout) == (5, b"137\n")


# ---- signals sent from outside


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP", "KILL", "USR1", "USR2", "ALRM"])
async def test_a_signal_ends_a_program(lab: Lab, name: str) -> None:
    """The shell's foreground program gets it too: neither is waited for.

    It has said that it is there: a shell that is about to start one may lose an interrupt.
    """
    async with lab.job("ulimit -c 0; cat; echo not here") as job:
        talk = Transcript(job)
        await talk.say(b"ready\n")
        await talk.line()
        await job.signal(name)
        result = await talk.end()
    assert result.status == 128 + signal.Signals[f"SIG{name}"].value
    assert result.stdout == b"ready\n"


@pytest.mark.parametrize("name", ["TERM", "INT", "QUIT", "PIPE", "ABRT", "SEGV", "FPE", "ILL"])
async def test_a_signal_ends_a_program_that_is_no_shell(lab: Lab, name: str) -> None:
    """All of RFC 4254; some of them a shell ignores or has its own mind about."""
    script = b'#!/usr/bin/awk -f\nBEGIN { print "ready"; fflush(); while (1) x++ }\n'
    async with lab.job(script) as job:
        talk = Transcript(job)
        await talk.line()
        await job.signal(name)
        assert (await talk.end()).status == 128 + signal.Signals[f"SIG{name}"].value


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP", "USR1", "ALRM"])
async def test_a_trap_has_its_say(lab: Lab, name: str) -> None:
    script = f"trap 'echo trapped; exit 7' {name}; echo ready; while :; do sleep 60 & wait; done"
    async with lab.job(script) as job:
        talk = Transcript(job)
        await talk.line()
        await job.signal(name)
        result = await talk.end()
    assert (result.status, result.stdout) == (7, b"ready\ntrapped\n")


async def test_a_trap_runs_again_and_again(lab: Lab) -> None:
    script = """
        n=0
        trap 'n=$((n+1)); echo $n; [ $n = 3 ] && exit 0' USR1
        echo ready
        while :; do sleep 60 & wait; done
    """
    async with lab.job(script) as job:
        talk = Transcript(job)
        await talk.line()
        for n in range(1, 4):
            await job.signal("USR1")
            assert await talk.line() == str(n)
        assert (await talk.end()).outcome == Outcome(0)


async def test_an_ignored_signal_is_ignored(lab: Lab) -> None:
    async with lab.job("trap '' TERM; echo ready; read -r x; echo \"$x\"") as job:
        talk = Transcript(job)
        await talk.line()
        await job.signal("TERM")
        await job.send(b"still here\n")
        assert (await talk.end()).ok() == b"ready\nstill here\n"


@pytest.mark.parametrize(
    "name",
    ["", "NOPE", "SIGTERM ", "TERM; exit 1", "../TERM", "9999", "-1", "int\n", "TERM\0", "é"],
)
async def test_an_unknown_signal_is_ignored(lab: Lab, name: str) -> None:
    async with lab.job('echo ready; read -r x; echo "$x"') as job:
        talk = Transcript(job)
        await talk.line()
        await job.signal(name)
        await job.send(b"still here\n")
        assert (await talk.end()).ok() == b"ready\nstill here\n"


async def test_a_script_starts_with_no_signal_blocked_or_ignored(lab: Lab) -> None:
    result = await lab.run(None, argv=(b"grep", b"-E", b"^Sig(Blk|Ign)", b"/proc/self/status"))
    # 32 and 33 are the C library's own (nptl(7)); make(1) has its children ignore them.
    masks = [int(line.split()[1], 16) & ~(0b11 << 31) for line in result.lines]
    assert masks == [0, 0]


# ---- terminals


@contextlib.asynccontextmanager
async def terminal(lab: Lab, script: str) -> AsyncIterator[tuple[Job, Transcript]]:
    env = {**ENV, b"TERM": TERMINAL.term.encode()}
    async with lab.job(script, terminal=TERMINAL, env=env) as job:
        yield job, Transcript(job)


async def test_a_terminal_is_one(lab: Lab) -> None:
    script = (
        "tty; [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo three; echo $TERM; stty size; echo e >&2"
    )
    async with terminal(lab, script) as (_, talk):
        result = await talk.end()
    assert result.outcome == Outcome(0)
    assert result.stderr == b""
    device, *rest = result.lines
    assert device.startswith("/dev/")
    assert rest == ["three", "xterm-256color", "37 101", "e"]
    assert result.stdout.endswith(b"e\r\n")


async def test_without_a_terminal_there_is_none(lab: Lab) -> None:
    result = await lab.run("[ -t 0 ] || [ -t 1 ] || [ -t 2 ] && exit 1; echo x >/dev/tty")
    assert result.status != 0
    assert result.stdout == b""


async def test_a_terminal_echoes(lab: Lab) -> None:
    async with terminal(lab, 'echo ready; read -r x; echo "got $x"') as (job, talk):
        await talk.line()
        await job.send(b"hello\r")
        assert await talk.line() == "hello"
        assert await talk.line() == "got hello"
        assert (await talk.end()).outcome == Outcome(0)


async def test_what_is_typed_before_the_prompt_is_not_lost(lab: Lab) -> None:
    async with terminal(lab, 'read -r x; echo "got $x"') as (job, talk):
        await job.send(b"early\n")
        await talk.until(b"got early")
        assert (await talk.end()).outcome == Outcome(0)


async def test_a_terminal_passes_a_long_line_in_raw_mode(lab: Lab) -> None:
    data = bytes(range(256)) * 400
    script = f"stty raw -echo; printf ready.; head -c {len(data)} | sha256sum"
    async with terminal(lab, script) as (_, talk):
        await talk.until(b"ready.")
        await talk.say(data)
        digest = (await talk.until(b"  -")).split()[-2]
        assert digest.decode() == hashlib.sha256(data).hexdigest()


async def test_interrupt_by_key(lab: Lab) -> None:
    async with terminal(lab, "cat; echo not here") as (job, talk):
        await talk.say(b"ready\n")
        await talk.until(b"ready\r\nready\r\n")  # typed, and said by the program in front
        await job.send(b"\x03")
        result = await talk.end()
    assert result.status == 130
    assert b"not here" not in result.stdout


async def test_end_of_file_by_key(lab: Lab) -> None:
    async with terminal(lab, "echo ready; cat; echo end") as (job, talk):
        await talk.line()
        await job.send(b"x\n\x04")
        await talk.until(b"end\r\n")
        assert (await talk.end()).outcome == Outcome(0)


async def test_the_end_of_input_reaches_a_terminal_as_one(lab: Lab) -> None:
    async with terminal(lab, "echo ready; cat; echo end") as (job, talk):
        await talk.line()
        await job.send(b"x\n")
        await talk.until(b"x\r\nx\r\n")
        await job.send_eof()
        await talk.until(b"end\r\n")
        assert (await talk.end()).outcome == Outcome(0)


async def test_a_new_size_is_seen(lab: Lab) -> None:
    script = "trap 'stty size; exit 8' WINCH; echo ready; while :; do sleep 60 & wait; done"
    async with terminal(lab, script) as (job, talk):
        await talk.line()
        await job.resize(64, 21)
        assert await talk.line() == "21 64"
        assert (await talk.end()).status == 8


async def test_a_size_set_at_once_is_seen(lab: Lab) -> None:
    async with terminal(lab, "read -r x; stty size") as (job, talk):
        await job.resize(90, 30)
        await job.send(b"\n")
        await talk.until(b"30 90")


@pytest.mark.parametrize("size", [(0, 0), (1, 1), (65535, 65535), (70000, -1), (10**12, 3)])
async def test_odd_sizes_do_no_harm(lab: Lab, size: tuple[int, int]) -> None:
    async with terminal(lab, "read -r x; echo end") as (job, talk):
        await job.resize(*size)
        await job.send(b"\n")
        await talk.until(b"end")
        assert (await talk.end()).outcome == Outcome(0)


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("stty olcuc; exit 3", 3),
        ("stty -opost; exit 3", 3),
        ("stty tostop; set -m; sh -c 'kill -KILL $PPID'", 137),
    ],
    ids=["capitals", "raw", "another's"],
)
async def test_a_terminal_left_in_an_odd_state(lab: Lab, script: str, status: int) -> None:
    async with lab.job(script, terminal=TERMINAL) as job:
        result = await Transcript(job).end()
    assert (result.status, result.stdout) == (status, b"")


async def test_job_control(lab: Lab) -> None:
    # It tells when it is in the foreground, and when it is there again; the halves of the words
    # keep what is typed from being taken for it.
    program = "sh -c 'trap \"echo aga''in\" CONT; echo u''p; while :; do sleep 0.1; done'\n"
    async with terminal(lab, "exec sh -i") as (job, talk):
        await job.send(b"PS1='pro''mpt> '\n")
        await talk.until(b"prompt> ")
        await job.send(program.encode())
        await talk.until(b"up\r\n")
        await job.send(b"\x1a")
        await talk.until(b"Stopped")
        await talk.until(b"prompt> ")
        await job.send(b"jobs\n")
        await talk.until(b"Stopped")
        await talk.until(b"prompt> ")
        await job.send(b"fg\n")
        await talk.until(b"again\r\n")
        await job.send(b"\x03")
        await talk.until(b"prompt> ")
        await job.send(b"exit 11\n")
        assert (await talk.end()).status == 11


async def test_signals_reach_a_program_on_a_terminal(lab: Lab) -> None:
    script = "trap 'echo trapped; exit 7' TERM; echo ready; while :; do sleep 60 & wait; done"
    async with terminal(lab, script) as (job, talk):
        await talk.line()
        await job.signal("TERM")
        result = await talk.end()
    assert result.status == 7
    assert b"trapped" in result.stdout


async def test_a_terminal_carries_much(lab: Lab) -> None:
    async with terminal(lab, "stty -opost; dd if=/dev/zero bs=64k count=64 2>/dev/null") as (
        _,
        talk,
    ):
        assert len((await talk.end()).ok()) == 64 * 65536
