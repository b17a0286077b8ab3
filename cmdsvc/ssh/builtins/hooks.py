"""`:hooks NAME`: how others have a command run, and what came of it."""

from __future__ import annotations

from datetime import datetime

from cmdsvc.errors import UsageError
from cmdsvc.model import Delivery, Hook
from cmdsvc.service.hooks import SECRET_MAX, Settings
from cmdsvc.service.schemes import ALGORITHMS, ENCODINGS, SCHEMES
from cmdsvc.ssh.verbs import Builtin, Call, Parser

MOST = 1000
"""Deliveries that are listed."""


def _arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME")
    parser.add_argument(
        "what", nargs="?", choices=["ls", "new", "rotate", "rm", "log", "replay"], default="ls"
    )
    parser.add_argument("subject", nargs="?", metavar="HOOK|DELIVERY", help="which is meant")
    new = parser.add_argument_group("for new")
    new.add_argument("--scheme", choices=SCHEMES, help="how its sender signs")
    new.add_argument("--header", metavar="H", help="where hmac has its signature")
    new.add_argument("--encoding", choices=ENCODINGS, help="of hmac's signature (hex)")
    new.add_argument("--algorithm", choices=ALGORITHMS, help="of hmac (sha256)")
    new.add_argument(
        "--retries", type=int, metavar="N", help="what failed is tried again at most so often (5)"
    )
    new.add_argument(
        "--retry", choices=["any"], help="any failure is tried again, not only 75 and a time-out"
    )
    new.add_argument("--ordered", action="store_true", help="one after another, as they came")
    parser.add_argument(
        "--secret", choices=["-"], help="read it from stdin; for new and rotate, else one is made"
    )
    parser.add_argument("--failed", action="store_true", help="all that failed; for replay")
    parser.add_argument(
        "-n", "--number", type=int, metavar="N", help="how many, newest first (20); for log"
    )
    parser.add_argument("-j", "--json", action="store_true", help="a list of objects")


_WORDS = {
    "new": {"scheme", "header", "encoding", "algorithm", "retries", "retry", "ordered", "secret"},
    "rotate": {"secret"},
    "log": {"number"},
    "replay": {"failed"},
}


async def _run(call: Call) -> int:
    hooks, options = call.services.hooks, call.options
    identity, name, subject = call.identity, options.name, options.subject
    for word in sorted(set().union(*_WORDS.values()) - _WORDS.get(options.what, set())):
        if getattr(options, word) not in (None, False):
            raise UsageError(f"--{word} is not for {options.what}", "see :hooks --help")
    if options.what in {"new", "rotate", "rm"} and subject is None:
        raise UsageError("which hook?", f":hooks {name} {options.what} HOOK")
    match options.what:
        case "new":
            if options.scheme is None:
                raise UsageError("how does its sender sign?", f"--scheme {'|'.join(SCHEMES)}")
            settings = Settings(
                scheme=options.scheme,
                header=options.header,
                encoding=options.encoding,
                algorithm=options.algorithm,
                retries=5 if options.retries is None else options.retries,
                retry_any=options.retry == "any",
                ordered=options.ordered,
            )
            settings.options()
            await _tell(
                call, *await hooks.new(identity, name, subject, settings, await _given(call))
            )
        case "rotate":
            await _tell(call, *await hooks.rotate(identity, name, subject, await _given(call)))
        case "rm":
            await hooks.remove(identity, name, subject)
        case "log":
            number = 20 if options.number is None else options.number
            if not 0 < number <= MOST:
                raise UsageError(f"no {number} deliveries can be shown", f"use 1 to {MOST}")
            await _log(call, await hooks.deliveries(identity, name, subject, number))
        case "replay":
            if (subject is None) != options.failed:
                raise UsageError("which delivery?", f":hooks {name} replay DELIVERY|--failed")
            count = await hooks.replay(identity, name, subject)
            await call.err(f"{count} to run again\n")
        case _:
            if subject is not None:
                raise UsageError("ls lists all hooks", f"see :hooks {name} log {subject}")
            await _list(call, await hooks.hooks(identity, name))
    return 0


async def _given(call: Call) -> bytes | None:
    if call.options.secret is None:
        return None
    return await call.value(SECRET_MAX, ":hooks NAME new HOOK --scheme S --secret -")


async def _tell(call: Call, hook: Hook, secret: str) -> None:
    """A secret that was made, by itself on stdout, and where the hook is."""
    await call.err(f"{_path(hook)}\n")
    if call.options.secret is None:
        await call.out(f"{secret}\n")


async def _list(call: Call, hooks: list[Hook]) -> None:
    await call.table(
        ("name", "scheme", "options", "path", "retries", "retry", "ordered", "created", "rotated"),
        [
            (
                hook.name,
                hook.scheme,
                " ".join(f"{key}={value}" for key, value in hook.options.items()),
                _path(hook),
                hook.retries,
                "any" if hook.retry_any else "later",
                hook.ordered,
                _when(hook.created_at),
                _when(hook.rotated_at),
            )
            for hook in hooks
        ],
    )


async def _log(call: Call, deliveries: list[Delivery]) -> None:
    absent = None if call.options.json else ""
    await call.table(
        (
            *("name", "hook", "event", "received", "state", "attempt"),
            *("exit_status", "run", "due", "message"),
        ),
        [
            (
                delivery.id,
                delivery.hook,
                delivery.event,
                _when(delivery.received_at),
                delivery.state,
                delivery.attempt,
                absent if delivery.exit_status is None else delivery.exit_status,
                delivery.run or absent,
                _when(delivery.due_at),
                delivery.message,
            )
            for delivery in deliveries
        ],
    )


def _path(hook: Hook) -> str:
    return f"/hook/{hook.command}/{hook.name}"


def _when(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}" if moment else ""


BUILTIN = Builtin(
    verb=":hooks",
    summary="Webhooks of a command: make and remove them, see what came, have it run again.",
    example="ssh HOST :hooks deploy new push --scheme github",
    run=_run,
    arguments=_arguments,
)
