"""Every builtin asks the gate: each is tried on what is somebody else's, by everyone who may come."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cmdsvc.engine import Layer
from cmdsvc.errors import CmdError
from cmdsvc.model import Door, Identity, Limits, Network, Outcome, Output, Run, Token, Via
from cmdsvc.service.admission import Admission
from cmdsvc.service.builds import Builds
from cmdsvc.service.commands import Commands, Policy
from cmdsvc.service.editor import Editor
from cmdsvc.service.environment import Environment
from cmdsvc.service.figures import Figures
from cmdsvc.service.hooks import Hooks
from cmdsvc.service.hooks import Settings as HookSettings
from cmdsvc.service.invocation import Invocations, Request
from cmdsvc.service.keeping import Keeping
from cmdsvc.service.notices import Notices
from cmdsvc.service.readymade import ReadyMade
from cmdsvc.service.retention import Retention
from cmdsvc.service.runs import Runs
from cmdsvc.service.schedules import Schedules
from cmdsvc.service.secretkey import open_sealer
from cmdsvc.service.sharing import Sharing
from cmdsvc.service.top import Top
from cmdsvc.service.versions import Versions
from cmdsvc.ssh.builtins import BUILTINS, dispatch
from cmdsvc.ssh.certificates import Authorities
from cmdsvc.ssh.identities import Identities
from cmdsvc.ssh.keys import KeyRing, add_user
from cmdsvc.ssh.ownkeys import OwnKeys
from cmdsvc.ssh.published import Published
from cmdsvc.ssh.revocation import Revocations
from cmdsvc.ssh.verbs import Services
from cmdsvc.store import Store, open_store
from tests.fakes import AnsweringEngine, EndedJob, FakeCaller
from tests.ssh.keygen import pair, public
from tests.store.lab import everything

LIMITS = Limits(timeout=600.0, memory=512 << 20, cpus=1.0, pids=256, disk=512 << 20)
THE_COMMANDS, HERS = "sEcReT-of-the-command", "sEcReT-of-ann"
"""What only owner and admins may see, and what only she may."""
SOURCE = f"#!cmd alpine\n#!/bin/sh\n# {THE_COMMANDS}\n".encode()
OTHER = b"#!cmd alpine\n#!/bin/sh\n# another\n"
RUN, TOKEN, GRANTED = "0" * 16, "cmd_00000000", "cmd_11111111"

ANN = Identity("ann", Via.KEY)
OTHERS = {
    "admin": Identity("adam", Via.KEY),
    "grantee": Identity("gail", Via.KEY),
    "operator": Identity("olga", Via.KEY, operator=True),
    "stranger": Identity("stan", Via.KEY),
}
TOKENS = {
    "token granted": Identity("tom", Via.TOKEN, token=GRANTED),
    "the owner's token": Identity("ann", Via.TOKEN, token=TOKEN),
    "an operator's token": Identity("olga", Via.TOKEN, token="cmd_22222222", operator=True),
}


@dataclass(frozen=True)
class Try:
    """Words behind the verb, and the exit status for each of OTHERS; what tokens get is 77."""

    words: str
    statuses: tuple[int, int, int, int]
    stdin: bytes = b""


EVERYONE = (0, 0, 0, 0)
NOBODY = (127, 127, 127, 127)
RUNNERS = (0, 0, 127, 127)
ADMINS = (0, 77, 127, 127)
OWNER = (77, 77, 127, 127)
OPERATORS = (77, 77, 0, 77)

TABLE: dict[str, list[Try]] = {
    ":help": [Try("", EVERYONE), Try("create", EVERYONE)],
    ":create": [Try("ann/job", (64, 64, 64, 64), OTHER), Try("ann/new", (64, 64, 64, 64), OTHER)],
    ":import": [Try("ann/job x", (64, 64, 64, 64)), Try("ann/new x", (64, 64, 64, 64))],
    ":edit": [Try("ann/job", ADMINS, OTHER)],
    ":apply": [Try("ann/job", ADMINS, OTHER), Try("ann/new", NOBODY, OTHER)],
    ":source": [Try("ann/job", ADMINS), Try("ann/job --version 1", ADMINS)],
    ":history": [Try("ann/job", ADMINS), Try("ann/job --diff 1 2", ADMINS)],
    ":rollback": [Try("ann/job", ADMINS), Try("ann/job 1", ADMINS)],
    ":ls": [Try("", EVERYONE), Try("-a", EVERYONE)],
    ":delete": [Try("ann/job", (77, 77, 0, 127))],
    ":env": [
        Try("ann/job", ADMINS),
        Try("ann/job --show", ADMINS),
        Try("ann/job set B=1", ADMINS),
        Try("ann/job set B=-", ADMINS, b"1"),
        Try("ann/job unset A", ADMINS),
    ],
    ":access": [
        Try("ann/job", ADMINS),
        Try("ann/job grant stan public", ADMINS),
        Try("ann/job revoke gail", ADMINS),
        Try("ann/job revoke gail --now", ADMINS),
    ],
    ":admins": [
        Try("ann/job", OWNER),
        Try("ann/job grant stan", OWNER),
        Try("ann/job revoke adam", OWNER),
    ],
    ":hooks": [
        Try("ann/job", ADMINS),
        Try("ann/job new other --scheme github", ADMINS),
        Try("ann/job rotate push", ADMINS),
        Try("ann/job log", ADMINS),
        Try("ann/job replay --failed", ADMINS),
        Try("ann/job rm push", ADMINS),
    ],
    ":schedule": [
        Try("ann/job", ADMINS),
        Try("ann/job set @daily", ADMINS),
        Try("ann/job rm", ADMINS),
    ],
    ":tokens": [
        Try("", EVERYONE),
        Try("new", EVERYONE),
        Try(f"rm {TOKEN}", NOBODY),
        Try(f"rm {TOKEN} --now", NOBODY),
    ],
    ":keys": [Try("", EVERYONE), Try("rm FINGERPRINT", NOBODY)],
    ":run": [
        Try("ann/job", RUNNERS),
        Try("--timeout 1s ann/job", RUNNERS),
        Try("--detach ann/job", RUNNERS),
    ],
    ":runs": [Try("", EVERYONE), Try("ann/job", RUNNERS)],
    ":logs": [Try(RUN, (0, 127, 127, 127)), Try(f"-f {RUN}", (0, 127, 127, 127))],
    ":kill": [Try(RUN, (0, 127, 0, 127))],
    ":top": [Try("-j", OPERATORS)],
    ":system": [
        Try(words, OPERATORS) for words in ("", "info", "df", "prune", "prune --dry-run", "log")
    ],
    ":whoami": [Try("", EVERYONE)],
}
ALL = [(verb, one) for verb, tries in TABLE.items() for one in tries]


class Engine(AnsweringEngine):
    def __init__(self) -> None:
        super().__init__(EndedJob(Outcome(0)))

    async def layers(self) -> Sequence[Layer]:
        return []


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path}/store.db"


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    opened = await open_store(url, server="one")
    for user in ("ann", "adam", "gail", "olga", "stan", "tom"):
        await opened.ensure_user(user)
    yield opened
    await opened.aclose()


@pytest.fixture
async def services(store: Store, tmp_path: Path) -> AsyncIterator[Services]:
    """Ann has `job`, of two versions, with a value in its environment, a run and its output, a
    token and a key; adam may change it, gail and a token of tom's may run it."""
    engine, sealer = Engine(), await open_sealer(tmp_path, store)
    builds = Builds(engine, LIMITS, Figures("fake"))
    policy = Policy(LIMITS, 1 << 20, {"alpine": "alpine"}, frozenset(Network), 10, 1 << 20)
    commands = Commands(store, builds, ReadyMade({}), policy)
    env = Environment(store, commands, sealer)
    runs = Runs(
        store,
        engine,
        builds,
        commands,
        Invocations(engine, commands, env, LIMITS),
        figures=Figures("fake"),
        admission=Admission(9, 9, 9.0),
        output_max=4096,
    )
    notices, retention = Notices(store, runs), Retention(store, 1e9, 1 << 30, 1e9)
    hooks = Hooks(store, commands, sealer, lambda: None, most=9)
    published = Published("", (), tmp_path / "published", 1.0)
    ring = KeyRing(tmp_path / "keys")
    identities = Identities(ring, published, Authorities(()), Revocations(None))

    await commands.create(ANN, "job", SOURCE, lambda _: None)
    await commands.edit(ANN, "job", SOURCE + b"\n", lambda _: None)
    await env.set(ANN, "job", {"A": THE_COMMANDS.encode()})
    await hooks.new(ANN, "job", "push", HookSettings("github"))
    now = datetime.now(UTC)
    for id_, owner in ((TOKEN, "ann"), (GRANTED, "tom")):
        await store.add_token(Token(id_, owner, HERS, now, None, None), id_.encode(), by=owner)
    await store.set_admins("ann", "job", grant=["adam"], by="ann")
    await store.set_access("ann", "job", grant=["gail", GRANTED], by="ann")
    await store.begin_run(Run(RUN, "ann/job", 1, "ann", Door.SSH, now))
    await store.keep_output(RUN, Output(((1, THE_COMMANDS.encode()),), ()))
    await store.end_run(RUN, now, Outcome(0))
    line = public(pair(tmp_path / "id")).read_text().split()
    add_user(tmp_path / "keys", "ann", f"{line[0]} {line[1]} {HERS}\n")

    yield Services(
        commands=commands,
        runs=runs,
        sharing=Sharing(store, commands, sealer.hash, ring.knows),
        env=env,
        hooks=hooks,
        schedules=Schedules(store, commands, lambda: None, catch_up=1.0, most=9),
        versions=Versions(store, commands, builds),
        top=Top(store, engine, builds, runs, data_dir=tmp_path, outputs_keep=1 << 30),
        keys=OwnKeys(identities, store),
        keeping=Keeping(
            store,
            engine,
            builds=builds,
            commands=commands,
            runs=runs,
            notices=notices,
            retention=retention,
            data_dir=tmp_path,
        ),
        notices=notices,
        editor=Editor(engine, builds, LIMITS, policy.bases, 1 << 20),
        max_source=1 << 20,
        address=lambda: ("127.0.0.1", 22),
    )
    await runs.aclose()
    await published.aclose()


async def ask(services: Services, who: Identity, words: list[str], stdin: bytes) -> tuple[int, str]:
    """The exit status, and all that was said."""
    caller = FakeCaller(stdin)

    def request(name: str, args: Sequence[str]) -> Request:
        return Request(who, Door.SSH, name, [arg.encode() for arg in args], {}, "192.0.2.1")

    error = ""
    try:
        outcome = await dispatch(words, services, who, caller, None, request=request)
        status = outcome.exit_status
    except CmdError as refusal:
        status, error = refusal.exit_status, str(refusal)
    return status, f"{caller.stream(1)!r} {caller.stream(2)!r} {error}"


def test_every_builtin_is_in_the_table():
    assert set(TABLE) == {builtin.verb for builtin in BUILTINS.values()}


@pytest.mark.parametrize(("verb", "one"), ALL, ids=[f"{verb} {one.words}" for verb, one in ALL])
async def test_on_what_is_anothers(verb: str, one: Try, services: Services, store: Store, url: str):
    words = [verb, *one.words.split()]
    if "FINGERPRINT" in words:
        (key,) = await services.keys.listing(ANN)
        words[words.index("FINGERPRINT")] = key.fingerprint
    expected = dict(zip(OTHERS, one.statuses, strict=True)) | dict.fromkeys(TOKENS, 77)
    # The refused come first: they change nothing.
    for refused in (True, False):
        before = await everything(url)
        for who, status in expected.items():
            if bool(status) != refused:
                continue
            found, said = await ask(services, (OTHERS | TOKENS)[who], words, one.stdin)
            assert (who, found) == (who, status), said
            assert who == "operator" or HERS not in said, who  # the record has descriptions
            assert who == "admin" or THE_COMMANDS not in said, who
        if refused:
            assert await everything(url) == before
    assert len(await services.keys.listing(ANN)) == 1
    assert await store.token(TOKEN) is not None


async def test_its_owner_may_do_all_of_it(services: Services):
    """So that what is refused above is refused for who asks, and not for its words."""
    for words in ("source job", "env job --show", f"logs {RUN}", "tokens", "keys"):
        status, said = await ask(services, ANN, f":{words}".split(), b"")
        assert status == 0
        assert THE_COMMANDS in said or HERS in said
