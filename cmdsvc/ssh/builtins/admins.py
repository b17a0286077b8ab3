"""`:admins NAME`: who may change a command beside its owner."""

from __future__ import annotations

from cmdsvc.ssh.verbs import Builtin, Call, Parser, granted, grants


def _arguments(parser: Parser) -> None:
    grants(parser, "U", "a user")


async def _run(call: Call) -> int:
    sharing, options = call.services.sharing, call.options
    subjects = granted(options)
    match options.what:
        case "grant":
            await sharing.grant_admins(call.identity, options.name, subjects)
        case "revoke":
            await sharing.revoke_admins(call.identity, options.name, subjects)
        case _:
            listed = await sharing.admins(call.identity, options.name)
            await call.table(("name",), [(user,) for user in listed])
    return 0


BUILTIN = Builtin(
    verb=":admins",
    summary="Say who may change a command: all that its owner may, but :delete and :admins.",
    example="ssh HOST :admins http grant bob",
    run=_run,
    arguments=_arguments,
)
