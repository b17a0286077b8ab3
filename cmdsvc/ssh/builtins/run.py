"""`:run NAME ARG...`: a run with options, that goes on without its caller if he likes."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Sequence
from dataclasses import replace

from cmdsvc.errors import UsageError
from cmdsvc.metadata import parse_duration
from cmdsvc.ssh.verbs import Builtin, Call, Parser

USAGE = ":run [--detach] [--timeout DURATION] NAME [ARG ...]"


def _arguments(parser: Parser) -> None:
    parser.usage = USAGE
    parser.add_argument(
        "--detach",
        action="store_true",
        help="print the run's id and go on without the caller; stdin is empty, see :logs",
    )
    parser.add_argument(
        "--timeout",
        type=_duration,
        metavar="DURATION",
        help="end it sooner than its limit, such as 30s",
    )


def _duration(text: str) -> float:
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None
    if seconds <= 0:
        raise ArgumentTypeError("expected more than no time")
    return seconds


def _own(words: Sequence[str]) -> int:
    """The options are what stands before NAME."""
    count = 0
    while count < len(words) and words[count].startswith("-") and words[count] != "--":
        count += 2 if words[count] == "--timeout" else 1
    return min(count, len(words))


async def _run(call: Call) -> int:
    options, runs = call.options, call.services.runs
    words = options.rest[1:] if options.rest[:1] == ["--"] else options.rest
    if not words:
        raise UsageError("NAME is missing", USAGE)
    name, *args = words
    request = replace(call.request(name, args), timeout=options.timeout)
    if options.detach:
        await call.out(f"{await runs.detach(replace(request, terminal=None))}\n")
        return 0
    outcome = await runs.run(request, call.caller)
    if outcome.message:
        await call.err(f"cmdsvc: {name}: {outcome.message}\n")
    return outcome.exit_status


BUILTIN = Builtin(
    verb=":run",
    summary="Run a command with options, or without waiting for it.",
    example="ssh HOST :run --detach --timeout 5m report 2026",
    run=_run,
    arguments=_arguments,
    own=_own,
)
