"""`:tokens`: what stands for a caller without a key."""

from __future__ import annotations

from datetime import datetime

from cmdsvc.errors import UsageError
from cmdsvc.metadata import MAX_DESCRIPTION, parse_duration, valid_description
from cmdsvc.ssh.verbs import Builtin, Call, Parser


def _arguments(parser: Parser) -> None:
    parser.add_argument("what", nargs="?", choices=["ls", "new", "rm"], default="ls")
    parser.add_argument("subject", nargs="?", metavar="DESC|ID", help="what it is for, or which")
    parser.add_argument("--ttl", metavar="D", help="how long it holds, such as 12h; for new")
    parser.add_argument("--now", action="store_true", help="end its runs too; for rm")
    parser.add_argument("-j", "--json", action="store_true", help="a list of objects")


async def _run(call: Call) -> int:
    sharing, options = call.services.sharing, call.options
    if options.what == "ls" and options.subject is not None:
        raise UsageError("ls takes nothing more", "see :tokens --help")
    if options.ttl is not None and options.what != "new":
        raise UsageError("--ttl is for new", "see :tokens --help")
    if options.now and options.what != "rm":
        raise UsageError("--now is for rm", "see :tokens --help")
    match options.what:
        case "new":
            description = options.subject or ""
            if not valid_description(description):
                raise UsageError(
                    f"a description is one line of at most {MAX_DESCRIPTION} characters",
                    "shorten it",
                )
            _, text = await sharing.new_token(call.identity, description, _seconds(options.ttl))
            await call.out(f"{text}\n")
        case "rm":
            if options.subject is None:
                raise UsageError("it does not say which token", "see :tokens")
            id_ = await sharing.remove_token(call.identity, options.subject)
            if options.now:
                await call.services.runs.stop(id_, by=call.identity.user)
        case _:
            await call.table(
                ("name", "created", "expires", "used", "description"),
                [
                    (
                        t.id,
                        _when(t.created_at),
                        _when(t.expires_at),
                        _when(t.last_used_at),
                        t.description,
                    )
                    for t in await sharing.tokens(call.identity)
                ],
            )
    return 0


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise UsageError(f"--ttl: {error}", "write 30m, 12h, 90d") from None
    if not 0 < seconds <= 100 * 366 * 86400:
        raise UsageError("--ttl is out of range", "write 30m, 12h, 90d")
    return seconds


def _when(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}" if moment else ""


BUILTIN = Builtin(
    verb=":tokens",
    summary="Make, list and remove access tokens; one runs only what :access grants it.",
    example="ssh HOST :tokens new nightly --ttl 90d",
    run=_run,
    arguments=_arguments,
)
