"""`:delete NAME`: a command with all its versions."""

from __future__ import annotations

from cmdsvc.ssh.verbs import Builtin, Call, Parser


def _arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME")


async def _run(call: Call) -> int:
    command = await call.services.commands.delete(call.identity, call.options.name)
    await call.err(f"deleted {command.name}\n")
    return 0


BUILTIN = Builtin(
    verb=":delete",
    alias=":rm",
    summary="Delete a command with all its versions. What runs goes on.",
    example="ssh HOST :delete http",
    run=_run,
    arguments=_arguments,
)
