"""`:import NAME IMAGE`: a new command of an image that exists already."""

from __future__ import annotations

from cmdsvc.ssh.verbs import Builtin, Call, Parser


def _arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("image", metavar="IMAGE", help="as in `docker run IMAGE`; it is pinned")
    parser.add_argument("-d", "--description", metavar="TEXT", help="what :ls shows of it")


async def _run(call: Call) -> int:
    options = call.options
    async with call.progress() as progress:
        command = await call.services.commands.import_(
            call.identity, options.name, options.image, progress, description=options.description
        )
    await call.err(f"created {command.name}\n")
    return 0


BUILTIN = Builtin(
    verb=":import",
    summary="Make a command of an existing image: its entry point, user and working folder.",
    example="ssh HOST :import pandoc pandoc/core:3.6",
    run=_run,
    arguments=_arguments,
)
