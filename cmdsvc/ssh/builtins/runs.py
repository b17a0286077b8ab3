"""`:runs`: what ran, and what runs."""

from __future__ import annotations

from datetime import UTC, datetime

from cmdsvc.errors import UsageError
from cmdsvc.model import Run
from cmdsvc.ssh.verbs import Builtin, Call, Parser

MOST = 1000


def _arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="of that command alone")
    parser.add_argument(
        "-n", "--number", type=int, default=20, metavar="N", help="how many, newest first (20)"
    )
    parser.add_argument("-j", "--json", action="store_true", help="a list of objects")


async def _run(call: Call) -> int:
    options = call.options
    if not 0 < options.number <= MOST:
        raise UsageError(f"no {options.number} runs can be shown", f"use 1 to {MOST}")
    runs = await call.services.runs.live.runs(call.identity, options.name, options.number)
    await call.table(
        (
            *("name", "command", "version", "user", "door", "started"),
            *("seconds", "exit_status", "reason"),
        ),
        [
            (
                run.id,
                run.command,
                run.version,
                run.user,
                run.door,
                f"{run.started_at:%Y-%m-%dT%H:%M:%SZ}",
                round(((run.ended_at or datetime.now(UTC)) - run.started_at).total_seconds(), 3),
                *_end(run, json=options.json),
            )
            for run in runs
        ],
    )
    return 0


def _end(run: Run, *, json: bool) -> tuple[object, str]:
    if run.outcome is None:
        return None if json else "", "running"
    return run.outcome.exit_status, run.outcome.reason


BUILTIN = Builtin(
    verb=":runs",
    summary="List your runs, and all runs of commands that you own or administer.",
    example="ssh HOST :runs http -n 5",
    run=_run,
    arguments=_arguments,
)
