"""Who may do what: the whole table."""

from __future__ import annotations

import pytest

from cmdsvc.access import Action, may
from cmdsvc.model import READY_MADE, Identity, Via

ANN = Identity("ann", Via.KEY)
OPERATOR = Identity("ann", Via.KEY, operator=True)
EVERYTHING = {Action.RUN, Action.READ, Action.EDIT, Action.DELETE}


@pytest.mark.parametrize(
    ("identity", "owner", "allowed"),
    [
        (ANN, "ann", EVERYTHING),
        (ANN, "bob", set()),
        (ANN, READY_MADE, {Action.RUN, Action.READ}),
        (OPERATOR, "ann", EVERYTHING),
        (OPERATOR, "bob", set()),
        (OPERATOR, READY_MADE, {Action.RUN, Action.READ}),
    ],
)
def test_table(identity: Identity, owner: str, allowed: set[Action]):
    assert {action for action in Action if may(identity, action, owner)} == allowed


@pytest.mark.parametrize("owner", ["", "ANN", "ann ", "an", "anna", "ann/x"])
def test_another_spelling_is_another_owner(owner: str):
    assert not any(may(ANN, action, owner) for action in Action)
