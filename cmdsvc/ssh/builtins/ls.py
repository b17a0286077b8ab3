"""`:ls`: what there is."""

from __future__ import annotations

from cmdsvc.ssh.verbs import Builtin, Call, Parser


def _arguments(parser: Parser) -> None:
    parser.add_argument("-a", "--all", action="store_true", help="all that you may run")
    parser.add_argument("-j", "--json", action="store_true", help="a list of objects")


async def _run(call: Call) -> int:
    listing = await call.services.commands.list(call.identity, all_=call.options.all)
    await call.table(
        ("name", "version", "updated", "description"),
        [
            (
                c.name if c.owner == call.identity.user else c.full_name,
                c.version,
                f"{c.updated_at:%Y-%m-%dT%H:%M:%SZ}",
                c.description,
            )
            for c in listing
        ],
    )
    return 0


BUILTIN = Builtin(
    verb=":ls",
    summary="List your commands.",
    example="ssh HOST :ls -a",
    run=_run,
    arguments=_arguments,
)
