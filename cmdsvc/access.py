"""The one place that decides who may do what; pure."""

from __future__ import annotations

from enum import Enum, auto

from cmdsvc.model import PUBLIC, READY_MADE, Command, Identity, Via


class Action(Enum):
    """What can be asked for; of a command, but for the last ones."""

    RUN = auto()
    READ = auto()
    """Its source, its history."""
    EDIT = auto()
    """New versions, and back to old ones."""
    ENV = auto()
    ACCESS = auto()
    HOOKS = auto()
    SCHEDULE = auto()
    LOGS = auto()
    """Calls of others, and their output; everyone sees his own."""
    KILL = auto()
    """Runs of others; everyone stops his own."""
    ADMINS = auto()
    DELETE = auto()
    AGENT = auto()
    """To have one's own SSH agent within a run: who can change the script could use it."""

    CREATE = auto()
    """Commands of one's own; listings, keys and tokens too."""
    OPERATE = auto()
    """The service as a whole."""


class Verdict(Enum):
    ALLOWED = auto()
    FORBIDDEN = auto()
    """It is known to the caller, but not his to do (77)."""
    UNKNOWN = auto()
    """To be answered like what does not exist (127)."""


OWNERS = frozenset({Action.ADMINS, Action.DELETE, Action.AGENT})
"""Of a command's owner alone."""
LIMITED = frozenset({Via.TOKEN, Via.ANONYMOUS, Via.ITSELF})
"""Who only runs commands."""
OPERATORS = frozenset({Action.DELETE, Action.KILL})
"""Of any command, for operators."""


def may(identity: Identity | None, action: Action, command: Command | None = None) -> Verdict:
    """What becomes of `action`, on `command` where it is one on a command.

    `identity` is None for who has not shown who he is: a token that does not hold is nobody's.
    A token has no rights of its maker: it runs what it is granted, and nothing else.
    """
    if action in {Action.CREATE, Action.OPERATE}:
        if identity is None or identity.via in LIMITED:
            return Verdict.FORBIDDEN
        if action is Action.OPERATE and not identity.operator:
            return Verdict.FORBIDDEN
        return Verdict.ALLOWED
    if identity is None or command is None:
        return Verdict.UNKNOWN
    if identity.via is Via.ANONYMOUS:
        allowed = action is Action.RUN and command.anonymous
        return Verdict.ALLOWED if allowed else Verdict.UNKNOWN
    if identity.via is Via.ITSELF:
        mine = action is Action.RUN and identity.user == command.owner
        return Verdict.ALLOWED if mine else Verdict.UNKNOWN
    token = identity.via is Via.TOKEN
    if not token:
        if identity.user == command.owner:
            return Verdict.ALLOWED
        if identity.user in command.admins:
            return (
                Verdict.FORBIDDEN
                if action in OWNERS and not _operates(identity, action)
                else Verdict.ALLOWED
            )
        if _operates(identity, action):
            return Verdict.ALLOWED
    if command.owner == READY_MADE:
        granted = True
    else:
        granted = identity.subject in command.access or PUBLIC in command.access
    if not granted:
        return Verdict.UNKNOWN
    if action is Action.RUN or (
        action is Action.READ and command.owner == READY_MADE and not token
    ):
        return Verdict.ALLOWED
    return Verdict.FORBIDDEN


def _operates(identity: Identity, action: Action) -> bool:
    return identity.operator and action in OPERATORS
