"""`:create NAME`: a new command from stdin."""

from __future__ import annotations

from cmdsvc.ssh.verbs import Builtin, Call, Parser


def _arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("-d", "--description", metavar="TEXT", help="what :ls shows of it")
    parser.add_argument("stdin", nargs="?", choices=["-"], help="the source is on stdin (always)")


async def _run(call: Call) -> int:
    commands, name = call.services.commands, call.options.name
    await commands.check_new(call.identity, name)
    source = await call.source()
    async with call.progress() as progress:
        command = await commands.create(
            call.identity, name, source, progress, description=call.options.description
        )
    await call.err(f"created {command.name}\n")
    return 0


BUILTIN = Builtin(
    verb=":create",
    summary="Make a command of the script on stdin.",
    example="ssh HOST :create http < http.cmd",
    run=_run,
    arguments=_arguments,
)
