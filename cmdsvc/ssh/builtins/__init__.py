"""The verbs of the service, a file each; they are spelled with a colon."""

from __future__ import annotations

import difflib
from argparse import Namespace
from collections.abc import Callable, Sequence

from cmdsvc.access import Action, Verdict, may
from cmdsvc.errors import BusyError, ForbiddenError, UsageError, printable
from cmdsvc.model import Identity, Outcome, Terminal
from cmdsvc.relay import Caller
from cmdsvc.service.invocation import Request
from cmdsvc.ssh.builtins import (
    access,
    admins,
    apply,
    create,
    delete,
    edit,
    env,
    help_,
    history,
    hooks,
    import_,
    keys,
    kill,
    logs,
    ls,
    rollback,
    run,
    runs,
    schedule,
    source,
    system,
    tokens,
    top,
    whoami,
)
from cmdsvc.ssh.verbs import Builtin, Call, Services

WORDS = 1000
CHARACTERS = 32 << 10
"""That a builtin is asked with: argparse takes time by their square."""

BUILTINS: dict[str, Builtin] = {
    verb: module.BUILTIN
    for module in (
        help_,
        create,
        edit,
        apply,
        source,
        history,
        rollback,
        import_,
        ls,
        delete,
        env,
        access,
        admins,
        tokens,
        keys,
        run,
        runs,
        logs,
        kill,
        hooks,
        schedule,
        top,
        system,
        whoami,
    )
    for verb in (module.BUILTIN.verb, module.BUILTIN.alias)
    if verb is not None
}


async def dispatch(
    words: list[str],
    services: Services,
    identity: Identity,
    caller: Caller,
    terminal: Terminal | None,
    *,
    request: Callable[[str, Sequence[str]], Request],
) -> Outcome:
    """Does what `words` say, the first of them a verb. UsageError (64) for an unknown one."""
    builtin = BUILTINS.get(words[0])
    if builtin is None:
        near = difflib.get_close_matches(words[0], BUILTINS, n=1)
        raise UsageError(
            f"no builtin {printable(words[0])[:80]}",
            f"did you mean {near[0]}?" if near else "see :help",
        )
    if may(identity, Action.CREATE) is not Verdict.ALLOWED:
        raise ForbiddenError("a token only runs commands", "log in with a key")
    if services.runs.draining:
        raise BusyError("the service is shutting down", "try again in a minute")
    parser = builtin.parser()
    own, rest = words[1:], []
    if builtin.own is not None:
        count = builtin.own(own)
        own, rest = own[:count], own[count:]
    if len(own) > WORDS or sum(map(len, own)) > CHARACTERS:
        raise UsageError("too many words for a builtin", "what is long goes to its stdin")
    helping = "--help" in own
    options = Namespace() if helping else parser.parse_intermixed_args(own)
    options.rest = rest
    call = Call(identity, services, caller, terminal, options, request)
    if helping:
        await call.out(parser.format_help())
        return Outcome(0)
    return Outcome(await builtin.run(call))
