"""`:whoami`: who the service takes the caller for."""

from __future__ import annotations

from cmdsvc.ssh.verbs import Builtin, Call, Parser


def _arguments(parser: Parser) -> None:
    parser.add_argument("-j", "--json", action="store_true", help="a list of one object")


async def _run(call: Call) -> int:
    identity = call.identity
    await call.table(
        ("name", "via", "key", "operator"),
        [(identity.user, identity.via, identity.key or "", identity.operator)],
    )
    return 0


BUILTIN = Builtin(
    verb=":whoami",
    summary="Show who you are here, and by which key.",
    example="ssh HOST :whoami",
    run=_run,
    arguments=_arguments,
)
