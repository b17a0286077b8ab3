"""`:keys [ls | add | rm FINGERPRINT]`: the caller's own keys."""

from __future__ import annotations

from cmdsvc.errors import UsageError
from cmdsvc.ssh.verbs import Builtin, Call, Parser


def _arguments(parser: Parser) -> None:
    parser.add_argument("action", nargs="?", choices=["ls", "add", "rm"], default="ls")
    parser.add_argument(
        "key", nargs="?", metavar="FINGERPRINT", help="for rm, as ls shows it; add reads stdin"
    )
    parser.add_argument("-j", "--json", action="store_true", help="a list of objects")


async def _run(call: Call) -> int:
    options, keys = call.options, call.services.keys
    if (options.action == "rm") != (options.key not in {None, "-"}) or (
        options.action == "ls" and options.key
    ):
        raise UsageError("rm takes a FINGERPRINT, ls and add take none", "see :keys --help")
    if options.action == "rm":
        await call.err(f"removed {await keys.remove(call.identity, options.key)}\n")
    elif options.action == "add":
        text = (await call.source()).decode(errors="replace")
        added = await keys.add(call.identity, text)
        await call.err(f"{added} new key{'' if added == 1 else 's'}\n")
    else:
        await call.table(
            ("name", "via", "type", "comment", "options"),
            [
                (key.fingerprint, key.via, key.type, key.comment, key.options)
                for key in await keys.listing(call.identity)
            ],
        )
    return 0


BUILTIN = Builtin(
    verb=":keys",
    summary="List your own keys, add those on stdin, remove one. The last one stays.",
    example="ssh HOST :keys add < ~/.ssh/id_ed25519.pub",
    run=_run,
    arguments=_arguments,
)
