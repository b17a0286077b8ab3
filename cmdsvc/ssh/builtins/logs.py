"""`:logs RUN`: what is kept of a run's output."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from cmdsvc.service.live import Piece
from cmdsvc.service.outputs import Gap
from cmdsvc.ssh.verbs import Builtin, Call, Parser

INTERRUPT = b"\x03"


def _arguments(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="its id, as :runs has it")
    parser.add_argument(
        "-f", "--follow", action="store_true", help="go on with what it writes, until its end"
    )


async def _run(call: Call) -> int:
    options = call.options
    pieces = await call.services.runs.live.output(call.identity, options.run, follow=options.follow)
    if pieces is None:
        await call.err(
            "no output of it is kept: start it with :run --detach, or put keep_output = true "
            "into its metadata\n"
        )
        return 0
    showing = asyncio.ensure_future(_show(call, pieces))
    typing = asyncio.ensure_future(call.typed(INTERRUPT)) if call.terminal else None
    tasks = {task for task in (showing, typing) if task is not None}
    try:
        while not showing.done():
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if typing is not None and typing.done():
                if typing.result():
                    return 0
                tasks.discard(typing)
        await showing
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return 0


async def _show(call: Call, pieces: AsyncIterator[Piece]) -> None:
    fd, last = 0, b""
    async for piece in pieces:
        if isinstance(piece, Gap):
            if fd == 2 and not last.endswith(b"\n"):
                await call.err("\n")
            await call.err(f"... {piece.size} bytes left out ...\n")
            fd = 0
            continue
        fd, last = piece
        await call.caller.write(fd, last.replace(b"\n", b"\r\n") if call.terminal else last)


BUILTIN = Builtin(
    verb=":logs",
    summary="Print what is kept of a run's output; what is too much is cut from its middle.",
    example="ssh HOST :logs 03jd1fh8k2n5q7sv -f",
    run=_run,
    arguments=_arguments,
)
