"""`:system`: the service as a whole, for operators."""

from __future__ import annotations

import re

from cmdsvc.errors import UsageError
from cmdsvc.ssh.verbs import Builtin, Call, Parser, spell_size

MOST = 1000
SIZES = frozenset({"free"})
DIGEST = re.compile(r"([0-9a-f]{12})[0-9a-f]{52}")


def _arguments(parser: Parser) -> None:
    parser.add_argument(
        "what",
        nargs="?",
        choices=["info", "df", "prune", "log"],
        default="info",
        help="facts (info); what takes space; remove what nobody needs; who changed what",
    )
    parser.add_argument("--dry-run", action="store_true", help="prune: only say what it would do")
    parser.add_argument(
        "-n", "--number", type=int, metavar="N", help="log: how many, newest first (20)"
    )
    parser.add_argument("-j", "--json", action="store_true", help="a list of objects")


async def _run(call: Call) -> int:
    options = call.options
    if options.dry_run and options.what != "prune":
        raise UsageError("--dry-run is for prune", "see :system --help")
    if options.number is not None and options.what != "log":
        raise UsageError("-n is for log", "see :system --help")
    match options.what:
        case "info":
            await _info(call)
        case "df":
            await _df(call)
        case "prune":
            await _prune(call)
        case _:
            await _log(call)
    return 0


async def _info(call: Call) -> None:
    facts = await call.services.keeping.info(call.identity)
    await call.table(
        ("name", "value"),
        [
            (name, _size(call, int(value)) if name in SIZES else value)
            for name, value in facts.items()
        ],
    )


async def _df(call: Call) -> None:
    await call.table(
        ("name", "kind", "count", "own", "shared"),
        [
            (
                _name(call, one.name),
                one.kind,
                one.count,
                _size(call, one.size),
                _size(call, one.shared),
            )
            for one in await call.services.keeping.df(call.identity)
        ],
    )


async def _prune(call: Call) -> None:
    dry_run = call.options.dry_run
    freed = await call.services.keeping.prune(call.identity, dry_run=dry_run)
    await call.table(
        ("name", "kind", "count", "freed"),
        [(_name(call, one.name), one.kind, one.count, _size(call, one.size)) for one in freed],
    )
    size = spell_size(sum(one.size for one in freed))
    await call.err(f"would free {size}\n" if dry_run else f"freed {size}\n")


async def _log(call: Call) -> None:
    number = 20 if call.options.number is None else call.options.number
    if not 0 < number <= MOST:
        raise UsageError(f"no {number} entries can be shown", f"use 1 to {MOST}")
    await call.table(
        ("name", "action", "user", "at", "detail"),
        [
            (e.subject, e.action, e.user, f"{e.at:%Y-%m-%dT%H:%M:%SZ}", e.detail)
            for e in await call.services.keeping.log(call.identity, number)
        ],
    )


def _name(call: Call, name: str) -> str:
    """On a terminal a digest's beginning, so that there is room for the sizes beside it."""
    return DIGEST.sub(r"\1", name) if call.terminal and not call.options.json else name


def _size(call: Call, size: int) -> int | str:
    """For people on a terminal in few digits, else exact."""
    return spell_size(size) if call.terminal and not call.options.json else size


BUILTIN = Builtin(
    verb=":system",
    summary="Show, and keep in order, the service as a whole (operators).",
    example="ssh HOST :system prune --dry-run",
    run=_run,
    arguments=_arguments,
)
