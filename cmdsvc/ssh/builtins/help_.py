"""`:help`, and what a session without a command shows."""

from __future__ import annotations

from cmdsvc import __version__
from cmdsvc.errors import UsageError, printable
from cmdsvc.ssh.verbs import Builtin, Call, Parser


def _arguments(parser: Parser) -> None:
    parser.add_argument("builtin", metavar="BUILTIN", nargs="?")


async def _run(call: Call) -> int:
    from cmdsvc.ssh.builtins import BUILTINS  # noqa: PLC0415 - the table that this one is in

    if (asked := call.options.builtin) is not None:
        builtin = BUILTINS.get(asked) or BUILTINS.get(f":{asked}")
        if builtin is None:
            raise UsageError(f"no builtin {printable(asked)[:80]}", "see :help")
        await call.out(builtin.parser().format_help())
        return 0
    verbs = [b for verb, b in BUILTINS.items() if verb == b.verb]
    commands = await call.services.commands.list(call.identity, all_=False)
    lines = [
        f"cmdsvc {__version__}: scripts as commands. You are {call.identity.user}.",
        "",
        "Run one:    ssh HOST NAME ARG...",
        "Make one:   ssh HOST :create NAME < SCRIPT    (its first line: #!cmd alpine bash curl jq)",
        "",
        "Builtins:",
        *(f"  {b.verb:<10} {b.summary}" for b in verbs),
        "",
        f"Your commands: {' '.join(c.name for c in commands) or 'none yet'}",
        "`:ls -a` lists the ready-made ones too; --help works on each builtin.",
    ]
    await call.out("\n".join(lines) + "\n")
    return 0


BUILTIN = Builtin(
    verb=":help",
    summary="Show what there is, or how a builtin is used.",
    example="ssh HOST :help create",
    run=_run,
    arguments=_arguments,
)
