"""Hooks: made, rotated, removed, and what they take in."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cmdsvc.errors import (
    BusyError,
    CmdError,
    DataError,
    ExistsError,
    ForbiddenError,
    InternalError,
    NotFoundError,
    UsageError,
)
from cmdsvc.model import Identity, Outcome, State, Via
from cmdsvc.service.hooks import ENV_MAX, HOOKS_MAX, Received, Settings
from cmdsvc.service.retention import Retention
from cmdsvc.service.schemes import SCHEMES
from cmdsvc.service.signatures import Post, RefusedError
from tests.fakes import soon
from tests.service.queue_lab import ANN, BOB, EVE, MOST, SECRET, Lab, a_lab

GITHUB = Settings("github")


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with a_lab(f"sqlite+aiosqlite:///{tmp_path}/store.db", tmp_path) as lab:
        yield lab


async def refusal(what: Any) -> CmdError:
    with pytest.raises(CmdError) as caught:
        await soon(what)
    return caught.value


class TestMaking:
    async def test_a_secret_is_made_and_kept_sealed(self, lab: Lab):
        hook, secret = await lab.hooks.new(ANN, "job", "push", GITHUB)
        assert (hook.command, hook.name, hook.scheme) == ("ann/job", "push", "github")
        assert len(secret) >= 43
        assert secret.encode() not in hook.secret
        assert await lab.hooks.hooks(ANN, "job") == [hook]
        assert (await lab.post(secret=secret.encode())).delivery
        _, other = await lab.hooks.new(ANN, "job", "other", GITHUB)
        assert other != secret

    @pytest.mark.parametrize("scheme", SCHEMES)
    async def test_of_every_scheme(self, lab: Lab, scheme: str):
        settings = Settings(scheme, header="X-Sig" if scheme == "hmac" else None)
        _, secret = await lab.hooks.new(ANN, "job", "push", settings)
        assert secret.isprintable()
        if scheme in {"standard", "gitlab"}:
            assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 32
        await lab.hooks.new(ANN, "other", "push", settings, secret.encode())

    async def test_one_that_is_given(self, lab: Lab):
        given = "p\u00e4ss wort".encode()
        _, secret = await lab.hooks.new(ANN, "job", "push", GITHUB, given)
        assert secret.encode() == given
        assert (await lab.post(secret=given)).delivery

    @pytest.mark.parametrize("secret", [b"", b"a\0", b"\xff", b"x" * 5000])
    async def test_one_that_cannot_be(self, lab: Lab, secret: bytes):
        error = await refusal(lab.hooks.new(ANN, "job", "push", GITHUB, secret))
        assert isinstance(error, DataError)
        assert await lab.hooks.hooks(ANN, "job") == []

    @pytest.mark.parametrize(
        "settings",
        [
            Settings("md5"),
            Settings("github", header="X"),
            Settings("token", encoding="hex"),
            Settings("slack", algorithm="sha1"),
            Settings("hmac"),
            Settings("hmac", header="a b"),
            Settings("hmac", header="X\n"),
            Settings("hmac", header="X", encoding="base32"),
            Settings("hmac", header="X", algorithm="md5"),
            Settings("github", retries=-1),
            Settings("github", retries=101),
        ],
    )
    async def test_words_that_are_wrong(self, lab: Lab, settings: Settings):
        assert isinstance(await refusal(lab.hooks.new(ANN, "job", "x", settings)), UsageError)

    @pytest.mark.parametrize("name", ["", "A", "a/b", "-a", "a\n", "x" * 65, "../x"])
    async def test_names_that_are_none(self, lab: Lab, name: str):
        assert isinstance(await refusal(lab.hooks.new(ANN, "job", name, GITHUB)), UsageError)

    async def test_a_name_that_is_taken(self, lab: Lab):
        await lab.hooks.new(ANN, "job", "push", GITHUB)
        assert isinstance(await refusal(lab.hooks.new(ANN, "job", "push", GITHUB)), ExistsError)
        await lab.hooks.new(ANN, "other", "push", GITHUB)

    async def test_so_many_and_no_more(self, lab: Lab):
        for number in range(HOOKS_MAX):
            await lab.hooks.new(ANN, "job", f"h{number}", GITHUB, SECRET)
        assert isinstance(await refusal(lab.hooks.new(ANN, "job", "more", GITHUB)), BusyError)
        await lab.hooks.new(ANN, "other", "more", GITHUB)

    async def test_whose(self, lab: Lab):
        """The owner's and his admins'; others learn what they may know anyway."""
        token = Identity("ann", Via.TOKEN, token="cmd_00000000")
        await lab.hooks.new(BOB, "ann/job", "push", GITHUB)
        assert len(await lab.hooks.hooks(BOB, "ann/job")) == 1
        for ask in (
            lambda who, name: lab.hooks.new(who, name, "x", GITHUB),
            lab.hooks.hooks,
            lambda who, name: lab.hooks.rotate(who, name, "push"),
            lambda who, name: lab.hooks.remove(who, name, "push"),
            lambda who, name: lab.hooks.deliveries(who, name, None, 10),
            lambda who, name: lab.hooks.replay(who, name, None),
        ):
            assert isinstance(await refusal(ask(EVE, "ann/job")), ForbiddenError)
            assert isinstance(await refusal(ask(EVE, "ann/other")), NotFoundError)
            assert isinstance(await refusal(ask(token, "ann/other")), NotFoundError)

    async def test_the_record(self, lab: Lab):
        await lab.hooks.new(ANN, "job", "push", GITHUB)
        await lab.hooks.rotate(BOB, "ann/job", "push")
        await lab.hooks.remove(ANN, "job", "push")
        lines = [(e.user, e.subject) for e in await lab.store.entries(limit=3)]
        assert lines == [("ann", "ann/job"), ("bob", "ann/job"), ("ann", "ann/job")]


class TestRotating:
    async def test_the_old_one_holds_for_a_day(self, lab: Lab):
        await lab.hook()
        _, secret = await lab.hooks.rotate(ANN, "job", "push")
        for key in (secret.encode(), SECRET):
            assert (await lab.post(secret=key)).delivery
        lab.clock.forward(86399)
        assert (await lab.post(secret=SECRET)).delivery
        lab.clock.forward(2)
        assert isinstance(await refusal(lab.post(secret=SECRET)), RefusedError)
        assert (await lab.post(secret=secret.encode())).delivery

    async def test_twice(self, lab: Lab):
        await lab.hook()
        _, second = await lab.hooks.rotate(ANN, "job", "push", b"second")
        _, third = await lab.hooks.rotate(ANN, "job", "push", b"third")
        assert (second, third) == ("second", "third")
        assert isinstance(await refusal(lab.post(secret=SECRET)), RefusedError)
        for key in (b"second", b"third"):
            assert (await lab.post(secret=key)).delivery

    async def test_what_is_not_there(self, lab: Lab):
        for name in ("push", "No/Name", "\x1b"):
            assert isinstance(await refusal(lab.hooks.rotate(ANN, "job", name)), NotFoundError)
            assert isinstance(await refusal(lab.hooks.remove(ANN, "job", name)), NotFoundError)


class TestReceiving:
    async def test_it_is_stored(self, lab: Lab):
        await lab.hook(retries=3, retry_any=True)
        env = {b"HTTP_X_A": b"1", b"HTTP_X_GITLAB_TOKEN": b"x", b"QUERY_STRING": b"token=x"}
        received = await lab.post(b"{}", "d-1", env=env)
        now = lab.clock()
        (kept,) = await lab.store.claim(now, now + timedelta(seconds=9), 10)
        assert (kept.id, kept.command, kept.hook) == (received.delivery, "ann/job", "push")
        assert (kept.event, kept.body, kept.size) == ("push", b"{}", 2)
        assert (kept.retries, kept.retry_any) == (3, True)
        assert kept.env == {b"HTTP_X_A": b"1", b"QUERY_STRING": b""}

    @pytest.mark.parametrize(
        "where",
        [
            ("ann", "job", "none"),
            ("ann", "none", "push"),
            ("none", "job", "push"),
            ("ann", "job", "PUSH"),
            ("ann", "job\0", "push"),
            ("..", "job", "push"),
            ("ann", "job", ""),
            ("a" * 1000, "job", "push"),
        ],
    )
    async def test_what_is_not_there_is_told_in_the_same_words(
        self, lab: Lab, where: tuple[str, str, str]
    ):
        await lab.hook()
        error = await refusal(lab.hooks.receive(*where, Post([], b"", b""), {}))
        assert isinstance(error, NotFoundError)
        assert str(error) == "no such hook"

    async def test_what_is_not_genuine_leaves_nothing(self, lab: Lab):
        await lab.hook()
        assert isinstance(await refusal(lab.post(secret=b"wrong")), RefusedError)
        assert await lab.listed() == []

    async def test_its_ping(self, lab: Lab):
        await lab.hook()
        assert await lab.post(event="ping") == Received(reply="pong\n")
        assert isinstance(await refusal(lab.post(event="ping", secret=b"wrong")), RefusedError)
        assert await lab.listed() == []

    async def test_a_repetition_by_its_id(self, lab: Lab):
        await lab.hook()
        await lab.hook("other")
        first = await lab.post(b"1", "d-1")
        lab.clock.forward(3 * 86400)
        assert await lab.post(b"1", "d-1") == replace(first, repeated=True)
        assert await lab.post(b"2", "d-1") == replace(first, repeated=True)
        for more in (lab.post(b"1", "d-2"), lab.post(b"1", "d-1", hook="other")):
            assert not (await more).repeated
        assert len(await lab.listed()) == 3

    async def test_a_repetition_without_one(self, lab: Lab):
        """By its digest, for five minutes: later the same is meant anew."""
        await lab.hook()
        first = await lab.post(b"1")
        lab.clock.forward(299)
        assert await lab.post(b"1") == replace(first, repeated=True)
        for body, event, query in ((b"2", "push", b""), (b"1", "pull", b""), (b"1", "push", b"a")):
            env = {b"QUERY_STRING": query}
            assert not (await lab.post(body, event=event, env=env)).repeated
        lab.clock.forward(2)
        assert not (await lab.post(b"1")).repeated

    async def test_an_id_is_no_digest(self, lab: Lab):
        await lab.hook()
        first = await lab.post(b"1")
        assert not (await lab.post(b"2", first.delivery)).repeated

    async def test_it_runs_once_however_often_it_is_sent(self, lab: Lab):
        await lab.hook()
        await lab.deliveries.start()
        sent = [lab.post(b"1", "d-1") for _ in range(20)]
        received = await soon(asyncio.gather(*sent))
        assert len({one.delivery for one in received}) == 1
        assert [one.repeated for one in received].count(False) == 1
        await lab.end()
        assert (await lab.post(b"1", "d-1")).repeated
        assert len(lab.engine.runs) == 1

    async def test_so_many_wait_and_no_more(self, lab: Lab):
        await lab.hook()
        await lab.hook(command="other")
        for number in range(MOST):
            await lab.post(b"%d" % number)
        error = await refusal(lab.post(b"more"))
        assert isinstance(error, BusyError)
        assert error.http_status == 503
        assert (await lab.post(b"0")).repeated
        assert len(await lab.listed()) == MOST
        assert (await lab.post(b"more", command="other")).delivery
        await lab.deliveries.start()
        await lab.end()
        assert (await lab.post(b"more")).delivery

    async def test_a_store_that_is_full(self, lab: Lab, monkeypatch: pytest.MonkeyPatch):
        async def full(*_: object, **__: object) -> None:
            raise InternalError("the disk is full")

        await lab.hook()
        monkeypatch.setattr(lab.store, "accept", full)
        error = await refusal(lab.post())
        assert isinstance(error, BusyError)
        assert error.http_status == 503

    async def test_variables_beyond_measure(self, lab: Lab):
        await lab.hook()
        env = {b"HTTP_A": b"x" * (ENV_MAX - 8)}
        assert (await lab.post(env=env)).delivery
        env[b"HTTP_B"] = b""
        assert isinstance(await refusal(lab.post(b"2", env=env)), DataError)

    async def test_a_large_body_is_read_behind_the_loop(self, lab: Lab):
        await lab.hook()
        body = json.dumps(["x" * 100] * 50_000).encode()
        assert (await lab.post(body)).delivery
        assert (await lab.post(body)).repeated

    async def test_of_slack(self, lab: Lab):
        await lab.hooks.new(ANN, "job", "slack", Settings("token"), SECRET)
        token = Post([(b"x-hook-token", SECRET)], b"", b"{}")
        assert (await lab.hooks.receive("ann", "job", "slack", token, {})).delivery


class TestReplaying:
    async def test_one(self, lab: Lab):
        await lab.hook()
        await lab.deliveries.start()
        received = await lab.post(b"x")
        await lab.end()
        assert await lab.hooks.replay(ANN, "job", received.delivery) == 1
        await lab.end()
        again = await lab.newest()
        assert (again.state, again.attempt) == (State.DONE, 1)
        assert [bytes((await lab.scripted.job()).stdin) for _ in range(2)] == [b"x", b"x"]

    async def test_all_that_failed(self, lab: Lab):
        await lab.hook()
        await lab.deliveries.start()
        assert await lab.hooks.replay(ANN, "job", None) == 0
        for number, status in enumerate((1, 0, 2)):
            lab.scripted.plan = [Outcome(status)]
            await lab.post(b"%d" % number)
            await lab.end()
        assert await lab.hooks.replay(BOB, "ann/job", None) == 2
        for _ in range(2):
            await lab.end()
        assert {d.state for d in await lab.listed()} == {State.DONE}

    async def test_what_is_not_there(self, lab: Lab):
        await lab.hook()
        await lab.hook(command="other")
        waiting = await lab.post()
        for name, delivery in (
            ("job", "none"),
            ("job", waiting.delivery),
            ("other", waiting.delivery),
            ("job", "\x1b"),
        ):
            error = await refusal(lab.hooks.replay(ANN, name, delivery))
            assert isinstance(error, NotFoundError)
            assert str(error).isprintable()


async def test_what_has_ended_is_kept_for_a_while(lab: Lab):
    lab.clock.time = datetime.now(UTC)
    await lab.hook()
    await lab.deliveries.start()
    await lab.post(b"1")
    await lab.end()
    await Retention(lab.store, 3600, 1 << 20, 3600).retire(dry_run=True)
    await Retention(lab.store, 3600, 1 << 20, 3600).retire()
    assert len(await lab.listed()) == 1
    await lab.deliveries.drain(60)
    lab.clock.forward(1)
    await lab.post(b"2")
    await Retention(lab.store, 3600, 1 << 20, 0).retire()
    (left,) = await lab.listed()
    assert left.state is State.WAITING


async def test_removed_with_its_deliveries(lab: Lab):
    await lab.hook()
    await lab.post()
    await lab.hooks.remove(ANN, "job", "push")
    assert isinstance(await refusal(lab.post()), NotFoundError)
    assert await lab.listed() == []
    await lab.hook()
    assert not (await lab.post()).repeated
