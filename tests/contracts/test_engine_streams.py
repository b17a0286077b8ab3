"""Bytes in and out of a run, and who waits for whom."""

from __future__ import annotations

import asyncio
import hashlib
import random

import pytest

from cmdsvc.model import Outcome, Terminal
from tests.contracts import engine_host as host
from tests.contracts.engine_lab import MB, PATIENCE, Lab, Transcript, feed, marker

pytestmark = [pytest.mark.every_road, pytest.mark.asyncio(loop_scope="session")]

NOISE = random.Random(1).randbytes(3 * MB + 17)
DIGEST = hashlib.sha256(NOISE).hexdigest()


async def test_binary_stdin_reaches_stdout(lab: Lab) -> None:
    result = await lab.run("exec cat", stdin=NOISE)
    assert hashlib.sha256(result.ok()).hexdigest() == DIGEST
    assert result.stderr == b""


async def test_a_program_answers_after_the_end_of_its_input(lab: Lab) -> None:
    result = await lab.run("sha256sum; echo done", stdin=NOISE)
    assert result.ok() == f"{DIGEST}  -\ndone\n".encode()


async def test_an_empty_input_has_an_end(lab: Lab) -> None:
    assert (await lab.run("wc -c; echo done")).ok() == b"0\ndone\n"


async def test_input_begins_at_its_first_byte(lab: Lab) -> None:
    """Whatever hands the run over takes none of the program's own input."""
    for size in (1, 2, 4095, 4096, 4097):
        result = await lab.run("cat", b"x" * 5000, stdin=NOISE[:size])
        assert result.ok() == NOISE[:size]


async def test_a_conversation(lab: Lab) -> None:
    async with lab.job('while read -r line; do echo "got $line"; done; echo end') as job:
        talk = Transcript(job)
        for n in range(20):
            await talk.say(b"%d\n" % n)
            assert await talk.line() == f"got {n}"
        await job.send_eof()
        assert await talk.line() == "end"
        assert (await talk.end()).outcome == Outcome(0)


async def test_output_comes_without_a_line_break(lab: Lab) -> None:
    async with lab.job("printf '? '; read -r x; printf %s \"$x\"") as job:
        talk = Transcript(job)
        await talk.until(b"? ")
        await talk.say(b"yes\n")
        assert (await talk.end()).ok() == b"? yes"


async def test_streams_are_apart(lab: Lab) -> None:
    script = "i=0; while [ $i -lt 500 ]; do echo o$i; echo e$i >&2; i=$((i+1)); done"
    result = await lab.run(script)
    assert result.ok() == b"".join(b"o%d\n" % n for n in range(500))
    assert result.stderr == b"".join(b"e%d\n" % n for n in range(500))


async def test_a_closed_stream_is_no_end(lab: Lab) -> None:
    async with lab.job("exec >&-; read -r x; echo later >&2; exit 3") as job:
        await job.send(b"go\n")
        result = await Transcript(job).end()
    assert (result.status, result.stdout, result.stderr) == (3, b"", b"later\n")


async def test_both_streams_closed_are_no_end(lab: Lab) -> None:
    """The end is the program's end."""
    async with lab.job("exec >&- 2>&-; read -r x; exit 3") as job:
        await job.send(b"go\n")
        result = await Transcript(job).end()
    assert (result.status, result.stdout, result.stderr) == (3, b"", b"")


async def test_what_looks_like_an_end_is_none(lab: Lab) -> None:
    """Bytes that resemble an engine's own marks pass through."""
    odd = b"\0" + b"0" * 32 + b" 0\n\0\1\2\0\0\0\0\4done\x04\x03G R\nexit-code 0\n\0"
    result = await lab.run("cat; cat /proc/self/stat >/dev/null; exit 9", stdin=odd * 100)
    assert (result.status, result.stdout) == (9, odd * 100)


async def test_all_that_was_written_comes_before_the_end(lab: Lab) -> None:
    script = "dd if=/dev/zero bs=1k count=900 2>/dev/null; dd if=/dev/zero bs=1k count=50 >&2 2>/dev/null"
    for _ in range(5):
        result = await lab.run(script)
        assert (len(result.stdout), len(result.stderr)) == (900 * 1024, 50 * 1024)


@pytest.mark.parametrize("terminal", [None, Terminal("xterm", 80, 24)], ids=["pipes", "terminal"])
async def test_output_left_full_by_a_program_that_does_not_wait(
    lab: Lab, probe: bytes, terminal: Terminal | None
) -> None:
    """As programs do that make their streams non-blocking: the word of its end finds room too."""
    mark = marker()
    async with lab.job(probe, "full", mark, terminal=terminal) as job:
        await host.until(lambda: host.with_argument(mark))
        await host.gone(lambda: host.with_argument(mark))
        result = await Transcript(job).end()
    assert result.outcome == Outcome(7)


async def test_64_mb_out_do_not_grow_the_memory(lab: Lab) -> None:
    await lab.run("dd if=/dev/zero bs=1M count=8 2>/dev/null")  # buffers that stay
    before = peak = host.resident()
    total = 0
    async with lab.job("exec dd if=/dev/zero bs=64k count=1024 2>/dev/null") as job:
        async with asyncio.timeout(PATIENCE):
            async for fd, data in job.output():
                assert fd == 1
                total += len(data)
                peak = max(peak, host.resident())
            assert await job.wait() == Outcome(0)
    assert total == 64 * MB
    assert peak - before < 16 * MB


async def test_a_slow_reader_stops_the_program(lab: Lab) -> None:
    mark = marker()
    script = "echo ready; dd if=/dev/zero bs=64k count=1024 2>/dev/null; exit 0"
    async with lab.job(script, mark) as job:
        talk = Transcript(job)
        await talk.line()
        before = host.resident()
        written = [-1]

        def stalled() -> bool:
            written.append(host.written_by_all(mark))
            return len(set(written[-4:])) == 1

        await host.until(stalled)
        assert 0 < written[-1] < 16 * MB
        assert host.resident() - before < 16 * MB
        result = await talk.end()
    assert len(result.ok()) == len(b"ready\n") + 64 * MB


async def test_input_that_nobody_reads_does_not_hold_the_end(lab: Lab) -> None:
    result = await lab.run("echo done; exit 4", stdin=bytes(4 * MB))
    assert (result.status, result.stdout) == (4, b"done\n")


async def test_input_that_is_not_read_yet_waits(lab: Lab) -> None:
    """A sender is held up, with bounded memory, until the program reads."""
    before = host.resident()
    data = bytes(32 * MB)
    async with lab.job("echo ready; read -r x; wc -c") as job:
        talk = Transcript(job)
        await talk.line()
        await talk.say(b"go\n")
        feeding = asyncio.create_task(feed(job, data))
        assert await talk.line() == str(len(data))
        await feeding
        assert (await talk.end()).status == 0
    assert host.resident() - before < 48 * MB  # of which the data is 32


async def test_a_program_that_closes_its_input(lab: Lab) -> None:
    """Its sender may be held up, but no longer than the program runs."""
    async with lab.job("exec <&-; echo closed; sleep 0.2; echo later") as job:
        talk = Transcript(job)
        await talk.line()
        feeding = asyncio.create_task(feed(job, bytes(4 * MB)))
        assert (await talk.end()).ok() == b"closed\nlater\n"
        async with asyncio.timeout(PATIENCE):
            await feeding


async def test_after_the_end_nothing_does_harm(lab: Lab) -> None:
    async with lab.job("exit 6") as job:
        result = await Transcript(job).end()
        async with asyncio.timeout(PATIENCE):
            await job.send(b"x" * MB)
            await job.send_eof()
            await job.send_eof()
            await job.resize(80, 24)
            await job.signal("TERM")
            assert await job.wait() == result.outcome == Outcome(6)
            await job.aclose()
            await job.aclose()
            await job.send(b"x")
            await job.send_eof()
            await job.resize(1, 1)
            await job.signal("KILL")
            assert await job.wait() == Outcome(6)


async def test_eof_twice_and_data_after_it(lab: Lab) -> None:
    async with lab.job("cat; echo end") as job:
        await job.send(b"x\n")
        await job.send_eof()
        await job.send_eof()
        assert (await Transcript(job).end()).ok() == b"x\nend\n"
