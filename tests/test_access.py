"""The whole table of who may do what."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from cmdsvc.access import Action, Verdict, may
from cmdsvc.model import PUBLIC, READY_MADE, Command, Identity, Version, Via

VERSION = Version(1, b"", "ann", datetime(2026, 1, 1, tzinfo=UTC), "d")
GRANTED_TOKEN, OTHER_TOKEN = "cmd_00000000", "cmd_11111111"

COMMAND = Command(
    "ann",
    "hello",
    "",
    VERSION,
    admins=frozenset({"adam"}),
    access=frozenset({"gail", GRANTED_TOKEN}),
)
OPEN = Command("ann", "open", "", VERSION, access=frozenset({PUBLIC}))
READY = Command(READY_MADE, "echo", "", VERSION)

WHO: dict[str, Identity | None] = {
    "owner": Identity("ann", Via.KEY),
    "admin": Identity("adam", Via.KEY),
    "grantee": Identity("gail", Via.KEY),
    "stranger": Identity("stan", Via.KEY),
    "operator": Identity("olga", Via.KEY, operator=True),
    "operator who administers": Identity("adam", Via.KEY, operator=True),
    "token granted": Identity("tom", Via.TOKEN, token=GRANTED_TOKEN),
    "token not granted": Identity("tom", Via.TOKEN, token=OTHER_TOKEN),
    "the owner's token not granted": Identity("ann", Via.TOKEN, token=OTHER_TOKEN),
    "an operator's token": Identity("olga", Via.TOKEN, token=OTHER_TOKEN, operator=True),
    "expired token": None,  # nobody's: see tests/service/test_tokens.py
    "anonymous": None,
}

ON_COMMANDS = [a for a in Action if a not in {Action.CREATE, Action.OPERATE}]
ALL, RUN_ONLY, NONE = set(ON_COMMANDS), {Action.RUN}, set[Action]()

# Who, the command, what is allowed, and what becomes of the rest.
TABLE = [
    ("owner", COMMAND, ALL, Verdict.FORBIDDEN),
    ("admin", COMMAND, ALL - {Action.ADMINS, Action.DELETE, Action.AGENT}, Verdict.FORBIDDEN),
    ("grantee", COMMAND, RUN_ONLY, Verdict.FORBIDDEN),
    ("stranger", COMMAND, NONE, Verdict.UNKNOWN),
    ("operator", COMMAND, {Action.DELETE, Action.KILL}, Verdict.UNKNOWN),
    ("operator who administers", COMMAND, ALL - {Action.ADMINS, Action.AGENT}, Verdict.FORBIDDEN),
    ("token granted", COMMAND, RUN_ONLY, Verdict.FORBIDDEN),
    ("token not granted", COMMAND, NONE, Verdict.UNKNOWN),
    ("the owner's token not granted", COMMAND, NONE, Verdict.UNKNOWN),
    ("an operator's token", COMMAND, NONE, Verdict.UNKNOWN),
    ("expired token", COMMAND, NONE, Verdict.UNKNOWN),
    ("anonymous", COMMAND, NONE, Verdict.UNKNOWN),
    ("owner", OPEN, ALL, Verdict.FORBIDDEN),
    ("admin", OPEN, RUN_ONLY, Verdict.FORBIDDEN),
    ("grantee", OPEN, RUN_ONLY, Verdict.FORBIDDEN),
    ("stranger", OPEN, RUN_ONLY, Verdict.FORBIDDEN),
    ("operator", OPEN, {Action.RUN, Action.DELETE, Action.KILL}, Verdict.FORBIDDEN),
    ("operator who administers", OPEN, {Action.RUN, Action.DELETE, Action.KILL}, Verdict.FORBIDDEN),
    ("token granted", OPEN, RUN_ONLY, Verdict.FORBIDDEN),
    ("token not granted", OPEN, RUN_ONLY, Verdict.FORBIDDEN),
    ("the owner's token not granted", OPEN, RUN_ONLY, Verdict.FORBIDDEN),
    ("an operator's token", OPEN, RUN_ONLY, Verdict.FORBIDDEN),
    ("expired token", OPEN, NONE, Verdict.UNKNOWN),
    ("anonymous", OPEN, NONE, Verdict.UNKNOWN),
    ("owner", READY, {Action.RUN, Action.READ}, Verdict.FORBIDDEN),
    ("admin", READY, {Action.RUN, Action.READ}, Verdict.FORBIDDEN),
    ("grantee", READY, {Action.RUN, Action.READ}, Verdict.FORBIDDEN),
    ("stranger", READY, {Action.RUN, Action.READ}, Verdict.FORBIDDEN),
    ("operator", READY, {Action.RUN, Action.READ, Action.DELETE, Action.KILL}, Verdict.FORBIDDEN),
    (
        "operator who administers",
        READY,
        {Action.RUN, Action.READ, Action.DELETE, Action.KILL},
        Verdict.FORBIDDEN,
    ),
    ("token granted", READY, RUN_ONLY, Verdict.FORBIDDEN),
    ("token not granted", READY, RUN_ONLY, Verdict.FORBIDDEN),
    ("the owner's token not granted", READY, RUN_ONLY, Verdict.FORBIDDEN),
    ("an operator's token", READY, RUN_ONLY, Verdict.FORBIDDEN),
    ("expired token", READY, NONE, Verdict.UNKNOWN),
    ("anonymous", READY, NONE, Verdict.UNKNOWN),
]


@pytest.mark.parametrize("action", ON_COMMANDS)
@pytest.mark.parametrize(("who", "command", "allowed", "otherwise"), TABLE)
def test_on_a_command(
    who: str, command: Command, allowed: set[Action], otherwise: Verdict, action: Action
):
    expected = Verdict.ALLOWED if action in allowed else otherwise
    assert may(WHO[who], action, command) is expected


@pytest.mark.parametrize("action", ON_COMMANDS)
@pytest.mark.parametrize("who", WHO)
def test_what_is_not_there_is_unknown(who: str, action: Action):
    assert may(WHO[who], action) is Verdict.UNKNOWN


@pytest.mark.parametrize("who", WHO)
def test_without_a_command(who: str):
    user = WHO[who] is not None and "token" not in who
    operator = user and "operator" in who
    assert may(WHO[who], Action.CREATE) is (Verdict.ALLOWED if user else Verdict.FORBIDDEN)
    assert may(WHO[who], Action.OPERATE) is (Verdict.ALLOWED if operator else Verdict.FORBIDDEN)


@pytest.mark.parametrize("command", [COMMAND, OPEN, READY], ids=lambda command: command.full_name)
def test_the_table_is_complete(command: Command):
    assert sorted(row[0] for row in TABLE if row[1] is command) == sorted(WHO)
