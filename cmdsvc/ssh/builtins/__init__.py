"""The verbs of the service, a file each; they are spelled with a colon."""

from __future__ import annotations

import difflib
from argparse import Namespace

from cmdsvc.errors import BusyError, UsageError, printable
from cmdsvc.model import Identity, Outcome, Terminal
from cmdsvc.relay import Caller
from cmdsvc.ssh.builtins import create, delete, edit, help_, ls, source, whoami
from cmdsvc.ssh.verbs import Builtin, Call, Services

BUILTINS: dict[str, Builtin] = {
    verb: module.BUILTIN
    for module in (help_, create, edit, source, ls, delete, whoami)
    for verb in (module.BUILTIN.verb, module.BUILTIN.alias)
    if verb is not None
}


async def dispatch(
    words: list[str],
    services: Services,
    identity: Identity,
    caller: Caller,
    terminal: Terminal | None,
) -> Outcome:
    """Does what `words` say, the first of them a verb. UsageError (64) for an unknown one."""
    builtin = BUILTINS.get(words[0])
    if builtin is None:
        near = difflib.get_close_matches(words[0], BUILTINS, n=1)
        raise UsageError(
            f"no builtin {printable(words[0])[:80]}",
            f"did you mean {near[0]}?" if near else "see :help",
        )
    if services.runs.draining:
        raise BusyError("the service is shutting down", "try again in a minute")
    parser = builtin.parser()
    helping = "--help" in words[1:]
    options = Namespace() if helping else parser.parse_args(words[1:])
    call = Call(identity, services, caller, terminal, options)
    if helping:
        await call.out(parser.format_help())
        return Outcome(0)
    return Outcome(await builtin.run(call))
