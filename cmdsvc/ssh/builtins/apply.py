"""`:apply NAME`: a command as the source on stdin has it, made or changed where it has to be."""

from __future__ import annotations

from cmdsvc.ssh.verbs import Builtin, Call, Parser


def _arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME")
    parser.add_argument(
        "--rebuild",
        action="store_true",
        help="fetch the base and install the packages again, changed or not",
    )
    parser.add_argument("stdin", nargs="?", choices=["-"], help="the source is on stdin (always)")


async def _run(call: Call) -> int:
    source = await call.source()
    async with call.progress() as progress:
        applied, command = await call.services.versions.apply(
            call.identity, call.options.name, source, progress, rebuild=call.options.rebuild
        )
    await call.err(f"{applied} {command.name}{', rebuilt' if call.options.rebuild else ''}\n")
    return 0


BUILTIN = Builtin(
    verb=":apply",
    summary="Make or change a command, as stdin has it; where nothing changed, do nothing.",
    example="ssh HOST :apply http < http.cmd",
    run=_run,
    arguments=_arguments,
)
