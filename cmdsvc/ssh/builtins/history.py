"""`:history NAME`: its versions, and what is different between two of them."""

from __future__ import annotations

from collections.abc import Sequence

from cmdsvc.errors import printable
from cmdsvc.ssh.verbs import Builtin, Call, Parser

DIGEST = 12
"""Characters of a digest that are shown: enough to see that two are alike."""


def _arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("-j", "--json", action="store_true", help="a list of objects")
    parser.add_argument(
        "--diff", nargs=2, type=int, metavar=("A", "B"), help="what changed from A to B"
    )


async def _run(call: Call) -> int:
    versions, options = call.services.versions, call.options
    if options.diff:
        diff = await versions.diff(call.identity, options.name, *options.diff)
        if call.terminal:
            await call.out(printable(diff.decode(errors="replace")))
        elif diff:
            await call.caller.write(1, diff)
        return 0
    columns: Sequence[str] = ("version", "created", "author", "digest", "bytes", "current")
    rows: list[tuple[object, ...]] = [
        (
            v.number,
            f"{v.created_at:%Y-%m-%dT%H:%M:%SZ}",
            v.author,
            v.digest[:DIGEST],
            v.size,
            v.current if options.json else "*" if v.current else "",
        )
        for v in await versions.history(call.identity, options.name)
    ]
    if options.json:  # as in every other listing; each line would begin with it
        columns, rows = ("name", *columns), [(options.name, *row) for row in rows]
    await call.table(columns, rows)
    return 0


BUILTIN = Builtin(
    verb=":history",
    summary="List a command's versions, or show what changed between two.",
    example="ssh HOST :history http --diff 1 2",
    run=_run,
    arguments=_arguments,
)
