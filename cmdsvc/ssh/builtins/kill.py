"""`:kill RUN`: the end of a run."""

from __future__ import annotations

from cmdsvc.ssh.verbs import Builtin, Call, Parser


def _arguments(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="its id, as :runs has it")


async def _run(call: Call) -> int:
    run_id = call.options.run
    killed = await call.services.runs.live.kill(call.identity, run_id)
    await call.err(f"killed {run_id}\n" if killed else f"{run_id} has ended already\n")
    return 0


BUILTIN = Builtin(
    verb=":kill",
    summary="End a run: your own, or one of a command that you administer.",
    example="ssh HOST :kill 03jd1fh8k2n5q7sv",
    run=_run,
    arguments=_arguments,
)
