"""`:source NAME`: the source as it was uploaded."""

from __future__ import annotations

from cmdsvc.access import Action
from cmdsvc.ssh.verbs import Builtin, Call, Parser


def _arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME")


async def _run(call: Call) -> int:
    command = await call.services.commands.find(call.identity, call.options.name, Action.READ)
    await call.caller.write(1, command.version.source)
    return 0


BUILTIN = Builtin(
    verb=":source",
    summary="Print a command's source, byte for byte as it was uploaded.",
    example="ssh HOST :source http > http.cmd",
    run=_run,
    arguments=_arguments,
)
