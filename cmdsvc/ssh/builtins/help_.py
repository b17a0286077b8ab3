"""`:help`, and what a session without a command shows."""

from __future__ import annotations

import socket

from cmdsvc import __version__
from cmdsvc.errors import UsageError, printable
from cmdsvc.ssh.verbs import Builtin, Call, Parser

SNIPPET = """\
# Put this into ~/.ssh/config; HostName is as the server knows itself: mend it if it is not yours.
Host cmd
    HostName {host}
    Port {port}
    ControlMaster auto
    ControlPath ~/.ssh/control-%C
    ControlPersist 10m
    # Then `ssh cmd NAME` runs a command, the second time without a handshake.
    # Names are completed in your shell by what `cmdsvc completion bash` prints (zsh, fish).
"""


def _arguments(parser: Parser) -> None:
    parser.add_argument("builtin", metavar="BUILTIN", nargs="?")


async def _run(call: Call) -> int:
    from cmdsvc.ssh.builtins import BUILTINS  # noqa: PLC0415 - the table that this one is in

    if (asked := call.options.builtin) is not None:
        if asked == "ssh":
            await call.out(_snippet(call))
            return 0
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
        "`:help ssh` prints what makes your ssh faster here.",
    ]
    await call.out("\n".join(lines) + "\n")
    return 0


def _snippet(call: Call) -> str:
    """For ~/.ssh/config: one connection is shared, so that a run has no handshake to wait for."""
    host, port = call.services.address()
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - compared
        host = socket.getfqdn()
    return SNIPPET.format(host=host, port=port)


BUILTIN = Builtin(
    verb=":help",
    summary="Show what there is, or how a builtin is used.",
    example="ssh HOST :help create",
    run=_run,
    arguments=_arguments,
)
