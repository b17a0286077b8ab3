"""`:edit NAME`: a new version of a command, from stdin or from an editor on a terminal."""

from __future__ import annotations

from cmdsvc.access import Action
from cmdsvc.ssh.verbs import Builtin, Call, Parser


def _arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME")
    parser.add_argument(
        "stdin", nargs="?", choices=["-"], help="the source is on stdin, also with a terminal"
    )


async def _run(call: Call) -> int:
    commands, name = call.services.commands, call.options.name
    command = await commands.find(call.identity, name, Action.EDIT)
    if call.terminal and not call.options.stdin:
        before = command.version.source
        source = await call.services.editor.edit(before, call.caller, call.terminal)
        if source == before:
            await call.err(f"{command.name} is unchanged\n")
            return 0
    else:
        source = await call.source()
    async with call.progress() as progress:
        command = await commands.edit(call.identity, name, source, progress)
    await call.err(f"{command.name} is now version {command.version.number}\n")
    return 0


BUILTIN = Builtin(
    verb=":edit",
    summary="Make a new version of a command: from stdin, or in an editor with ssh -t.",
    example="ssh HOST :source http | sed s/http:/https:/ | ssh HOST :edit http",
    run=_run,
    arguments=_arguments,
)
