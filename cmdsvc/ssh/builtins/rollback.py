"""`:rollback NAME`: back to an earlier version, or forth to a later one."""

from __future__ import annotations

from cmdsvc.ssh.verbs import Builtin, Call, Parser


def _arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME")
    parser.add_argument(
        "version", nargs="?", type=int, metavar="VERSION", help="by default the one before"
    )


async def _run(call: Call) -> int:
    async with call.progress() as progress:
        command = await call.services.versions.rollback(
            call.identity, call.options.name, call.options.version, progress
        )
    await call.err(f"{command.name} is now version {command.version.number}\n")
    return 0


BUILTIN = Builtin(
    verb=":rollback",
    summary="Make an earlier version of a command its current one again.",
    example="ssh HOST :rollback http 3",
    run=_run,
    arguments=_arguments,
)
