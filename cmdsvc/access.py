"""The one place that decides who may do what; pure."""

from __future__ import annotations

from enum import StrEnum

from cmdsvc.model import READY_MADE, Identity


class Action(StrEnum):
    RUN = "run"
    READ = "read"
    """See its source."""
    EDIT = "edit"
    DELETE = "delete"


def may(identity: Identity, action: Action, owner: str) -> bool:
    """Whether `identity` may do `action` to a command of `owner`.

    What one may not do is answered as if the command did not exist.
    """
    if owner == READY_MADE:
        return action in {Action.RUN, Action.READ}
    return identity.user == owner
