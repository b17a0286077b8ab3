"""What a git client asks for: a push runs a command that takes one, fetching is refused.

The client's words are those of git-receive-pack(1) on a server: the program and the repository's
path, which names the command.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from cmdsvc.access import Action
from cmdsvc.errors import CmdError, ForbiddenError, NotFoundError, UsageError
from cmdsvc.model import Identity
from cmdsvc.service.commands import Commands
from cmdsvc.service.invocation import Request

RECEIVE = "git-receive-pack"
FETCHING = frozenset({"git-upload-pack", "git-upload-archive"})


def repository(words: Sequence[str]) -> str | None:
    """The name that a git client has given, None where it is no git client that asks.

    `/NAME` of an ssh:// address and `NAME` of HOST:NAME are the same; `.git` at its end is left out.
    """
    if len(words) == 2 and words[0] in {RECEIVE, *FETCHING}:
        return words[1].strip("/").removesuffix(".git")
    return None


async def asked(
    name: str,
    words: Sequence[str],
    identity: Identity,
    commands: Commands,
    request: Callable[[str, Sequence[str]], Request],
) -> Request:
    """The run that the words, which name the repository `name`, ask for.

    It is of the command of that name if its metadata says so, else of the caller's own named
    git-receive-pack, which gets the path. Errors: ForbiddenError (77: fetching, or a command that
    takes no push), NotFoundError (127), UsageError (64: no name).
    """
    if words[0] != RECEIVE:
        raise ForbiddenError("there is nothing to fetch: it is a command", "only `git push` works")
    refusal: CmdError
    try:
        command = await commands.find(identity, name, Action.RUN)
        script, _ = commands.parse(command.version.source)
        if script.metadata.git_receive:
            return replace(request(name, ()), git=True)
        refusal = ForbiddenError(
            f"{command.full_name} takes no git push", "put git_receive = true into its metadata"
        )
    except (NotFoundError, UsageError) as error:
        refusal = error
    try:
        await commands.find(identity, RECEIVE, Action.RUN)
    except NotFoundError:
        raise refusal from None
    return replace(request(RECEIVE, words[1:]), git=True)
