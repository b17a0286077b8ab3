"""`:edit NAME`: a new version of a command, from stdin."""

from __future__ import annotations

from cmdsvc.access import Action
from cmdsvc.ssh.verbs import Builtin, Call, Parser


def _arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("stdin", nargs="?", choices=["-"], help="the source is on stdin (always)")


async def _run(call: Call) -> int:
    commands, name = call.services.commands, call.options.name
    await commands.find(call.identity, name, Action.EDIT)
    source = await call.source()
    async with call.progress() as progress:
        command = await commands.edit(call.identity, name, source, progress)
    await call.err(f"{command.name} is now version {command.version.number}\n")
    return 0


BUILTIN = Builtin(
    verb=":edit",
    summary="Make a new version of a command from the script on stdin.",
    example="ssh HOST :source http | sed s/http:/https:/ | ssh HOST :edit http",
    run=_run,
    arguments=_arguments,
)
