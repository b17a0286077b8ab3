"""`:schedule NAME`: when a command runs by itself."""

from __future__ import annotations

from datetime import datetime

from cmdsvc.errors import UsageError
from cmdsvc.service.schedules import Planned
from cmdsvc.ssh.verbs import Builtin, Call, Parser


def _arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("what", nargs="?", choices=["ls", "set", "rm"], default="ls")
    parser.add_argument(
        "cron", nargs="*", metavar="CRON", help="five fields as in crontab(5), or @daily; for set"
    )
    parser.add_argument("--tz", metavar="ZONE", help="such as Europe/Vienna (UTC); for set")
    parser.add_argument(
        "--overlap", action="store_true", help="though the run before goes on; for set"
    )
    parser.add_argument("-j", "--json", action="store_true", help="a list of objects")


async def _run(call: Call) -> int:
    schedules, options = call.services.schedules, call.options
    identity, name = call.identity, options.name
    if bool(options.cron) != (options.what == "set"):
        raise UsageError("what is meant?", 'NAME [ls | set "CRON" [--tz ZONE] | rm]')
    if options.what != "set" and (options.tz is not None or options.overlap):
        raise UsageError("--tz and --overlap are for set", "see :schedule --help")
    match options.what:
        case "set":
            zone = "UTC" if options.tz is None else options.tz
            # In quotes on the client's side it comes as five words all the same.
            expression = " ".join(options.cron)
            planned = await schedules.set(identity, name, expression, zone, overlap=options.overlap)
            await call.err(f"next at {_when(planned.next_at)}\n")
        case "rm":
            if not await schedules.remove(identity, name):
                await call.err("none was set\n")
            if (left := await schedules.planned(identity, name)) is not None:
                await call.err(f"the script's own holds: {left.schedule.expression}\n")
        case _:
            found = await schedules.planned(identity, name)
            await _list(call, [] if found is None else [found])
    return 0


async def _list(call: Call, found: list[Planned]) -> None:
    await call.table(
        ("name", "schedule", "zone", "from", "next", "last", "became", "overlap"),
        [
            (
                planned.schedule.command.rpartition("/")[2],
                planned.schedule.expression,
                planned.schedule.zone,
                "owner" if planned.schedule.own else "script",
                _when(planned.next_at),
                _when(planned.schedule.last_at),
                planned.schedule.last,
                planned.schedule.overlap,
            )
            for planned in found
        ],
    )


def _when(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}" if moment else ""


BUILTIN = Builtin(
    verb=":schedule",
    summary="When a command runs by itself: show, set and remove it.",
    example='ssh HOST :schedule backup set "30 3 * * *" --tz Europe/Vienna',
    run=_run,
    arguments=_arguments,
)
