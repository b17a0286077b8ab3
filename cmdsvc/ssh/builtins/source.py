"""`:source NAME`: the source as it was uploaded."""

from __future__ import annotations

from cmdsvc.ssh.verbs import Builtin, Call, Parser


def _arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--version", type=int, metavar="N", help="by default the current one")


async def _run(call: Call) -> int:
    source = await call.services.versions.source(
        call.identity, call.options.name, call.options.version
    )
    await call.caller.write(1, source)
    return 0


BUILTIN = Builtin(
    verb=":source",
    summary="Print a command's source, byte for byte as it was uploaded.",
    example="ssh HOST :source http > http.cmd",
    run=_run,
    arguments=_arguments,
)
