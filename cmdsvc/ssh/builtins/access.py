"""`:access NAME`: who may run a command."""

from __future__ import annotations

from cmdsvc.errors import UsageError
from cmdsvc.ssh.verbs import Builtin, Call, Parser, granted, grants


def _arguments(parser: Parser) -> None:
    grants(parser, "S", "a user, a token (or its id), or public")
    parser.add_argument("--now", action="store_true", help="end their runs of it too; for revoke")


async def _run(call: Call) -> int:
    sharing, options = call.services.sharing, call.options
    subjects = granted(options)
    if options.now and options.what != "revoke":
        raise UsageError("--now is for revoke", "see :access --help")
    match options.what:
        case "grant":
            await sharing.grant(call.identity, options.name, subjects)
        case "revoke":
            command, gone = await sharing.revoke(call.identity, options.name, subjects)
            for subject in gone if options.now else ():
                await call.services.runs.stop(
                    subject, by=call.identity.user, command=command.full_name
                )
        case _:
            listed = await sharing.access(call.identity, options.name)
            await call.table(("name",), [(subject,) for subject in listed])
    return 0


BUILTIN = Builtin(
    verb=":access",
    summary="Say who may run a command: users, tokens, or public (everyone who is identified).",
    example="ssh HOST :access http grant bob cmd_k3j9a8v0",
    run=_run,
    arguments=_arguments,
)
