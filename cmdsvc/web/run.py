"""/run/OWNER/NAME[/ARG...]: a command is run, and its output is the reply."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

from cmdsvc.errors import CmdError, NotFoundError, UsageError
from cmdsvc.metadata import Http
from cmdsvc.model import Command, Door
from cmdsvc.script import Script
from cmdsvc.service.answers import Answers, Ticket
from cmdsvc.service.invocation import Request
from cmdsvc.service.runs import Runs
from cmdsvc.web import cgi, websocket
from cmdsvc.web.ahead import FILE_MAX, Ahead
from cmdsvc.web.asked import Asked
from cmdsvc.web.bodies import Held, Room, Sender, received
from cmdsvc.web.caller import HttpCaller
from cmdsvc.web.credentials import NOBODY, Doorkeeper, Who
from cmdsvc.web.events import Mode
from cmdsvc.web.out import Out
from cmdsvc.web.problems import (
    RequestError,
    not_allowed,
    not_found,
    too_large,
    unauthorized,
)
from cmdsvc.web.record import Record
from cmdsvc.web.replies import HELD, Body, Events, Reply

KEY_MAX = 255
"""Characters of an Idempotency-Key."""
EXPOSED = "X-Cmd-Run-Id, X-Cmd-Exit-Status, Location, Retry-After"
PREFLIGHT_AGE = "600"
"""Seconds that a browser may remember what a page may ask."""
_TOKENS = re.compile(r"[A-Za-z0-9-]+( *, *[A-Za-z0-9-]+)*")


class RunRoute:
    """`folder` is for bodies that are needed whole before they are run with, or come too early."""

    def __init__(
        self, runs: Runs, doorkeeper: Doorkeeper, answers: Answers, *, max_body: int, folder: Path
    ) -> None:
        self._runs = runs
        self._doorkeeper = doorkeeper
        self._answers = answers
        self._max_body = max_body
        self._folder = folder
        self._room = Room(16 * max_body)
        self._ahead = Room(16 * FILE_MAX)

    async def __call__(self, asked: Asked, out: Out) -> None:
        if asked.method == "OPTIONS" and asked.values(b"access-control-request-method"):
            await self._preflight(asked, out)
            return
        where = cgi.target(asked.path)
        who = await self._doorkeeper.who(asked.headers, asked.query, asked.origin.address)
        command, http = await self._find(who, where)
        out.more += _cors(http, asked)
        methods = http.methods
        if asked.method not in methods:
            raise not_allowed(asked.method, methods)
        assert where is not None  # noqa: S101 - else it was not found
        request = self._request(asked, who, where, command)
        if websocket.wanted(asked):
            await websocket.serve(
                asked, out, self._runs, request, http, ahead=partial(self._read_on, asked)
            )
            return
        if (asked.length or 0) > self._max_body:
            raise too_large(self._max_body)
        alone = detached(asked)
        if alone and not who.known:
            raise unauthorized()
        if _again(asked):
            await out.whole(204, [], b"")  # else an EventSource runs it anew at each end
        elif key := _key(asked):
            await self._once(asked, out, request, http, key)
        elif alone:
            await self._detach(out, request, await self._received(asked))
        else:
            reply = _reply(asked, out, http)
            body = asked.body(self._max_body)
            if not asked.held_up:
                await self._run(asked, out, request, reply, body)
                return
            async with self._read_on(asked, body) as ahead:
                await self._run(asked, out, request, reply, ahead.pieces())

    def _read_on(self, asked: Asked, body: AsyncIterator[bytes]) -> Ahead:
        return Ahead(body, self._ahead, asked.origin.address, self._folder)

    async def _find(self, who: Who, where: cgi.Target | None) -> tuple[Command, Http]:
        """What may be run. 401 for who has not said who he is, whether there is something or not."""
        what = "no such command"
        try:
            if where is not None:
                name = f"{where.owner}/{where.name}"
                what = f"no command {name}"
                command, script = await self._found(who, name)
                return command, script.metadata.http
        except (NotFoundError, UsageError):
            pass
        raise not_found(what) if who.known else unauthorized()

    async def _found(self, who: Who, name: str) -> tuple[Command, Script]:
        try:
            return await self._runs.find(who.identity, name)
        except NotFoundError:  # what nobody in particular may run, one with a token may too
            return await self._runs.find(NOBODY, name)

    def _request(self, asked: Asked, who: Who, where: cgi.Target, command: Command) -> Request:
        return Request(
            identity=who.identity,
            door=Door.HTTP,
            name=command.full_name,
            command=command,
            args=cgi.arguments(where, asked.query),
            env={},
            remote_addr=asked.origin.address,
            variables=cgi.variables(
                method=asked.method,
                protocol=asked.protocol,
                path=asked.path,
                query=asked.query,
                headers=asked.headers,
                where=where,
                origin=asked.origin,
                auth_type=who.auth_type,
                user=who.identity.user,
                token=who.identity.token or "",
            ),
        )

    async def _run(
        self, asked: Asked, out: Out, request: Request, reply: Reply, body: AsyncIterator[bytes]
    ) -> None:
        caller = HttpCaller(asked, body, reply, stays=out.stays)
        out.run = request.id
        try:
            outcome = await self._runs.run(request, caller)
            out.ran = caller.begun
            if caller.wrong is not None:
                await reply.failed(caller.wrong)
            else:
                await reply.end(outcome)
        except CmdError as error:
            out.ran = caller.begun
            await reply.failed(error)
        finally:
            await reply.stop()

    async def _detach(self, out: Out, request: Request, body: Held) -> None:
        run = await self._runs.detach(request, Sender(body), body.close)
        url = f"/runs/{run}"
        out.run = run
        out.ran = True
        headers = [("location", url), ("preference-applied", "respond-async")]
        await out.json(202, {"id": run, "url": url, "state": "running"}, headers)

    async def _received(self, asked: Asked) -> Held:
        return await received(asked, self._room, self._folder, self._max_body)

    async def _once(self, asked: Asked, out: Out, request: Request, http: Http, key: str) -> None:
        """The reply of the first request under that key."""
        body = await self._received(asked)
        ours = True
        try:
            who = request.identity
            ticket = Ticket(
                caller=who.token or "",
                key=key if who.token else f"{asked.origin.address} {key}",
                digest=_digest(asked, body),
                run=request.id,
            )
            answer = await self._answers.first(ticket)
            if answer is not None:
                if not answer.headers:  # its server died before it was answered
                    out.run = answer.run
                    raise RequestError(500, f"the first request, run {answer.run}, was lost")
                more = [("idempotent-replayed", "true")]
                await out.whole(answer.status or 500, [*answer.headers, *more], answer.body)
                return
            out.record, out.stays = Record(self._answers, ticket), True
            if detached(asked):
                ours = False
                await self._detach(out, request, body)
            else:
                await self._run(asked, out, request, _reply(asked, out, http), body.pieces())
        finally:
            if ours:
                body.close()
            await out.settle(whole=False)

    async def _preflight(self, asked: Asked, out: Out) -> None:
        """What a page of another origin may ask: only who is told so learns of the command."""
        where = cgi.target(asked.path)
        http = await self._runs.http(f"{where.owner}/{where.name}") if where else None
        allowed = _cors(http, asked) if http else []
        if http is None or not dict(allowed).get("access-control-allow-origin"):
            raise unauthorized()
        headers = [("access-control-allow-methods", ", ".join(http.methods))]
        headers.append(("access-control-max-age", PREFLIGHT_AGE))
        wanted = b", ".join(asked.values(b"access-control-request-headers")).decode("latin-1")
        if _TOKENS.fullmatch(wanted):
            headers.append(("access-control-allow-headers", wanted))
        await out.whole(204, [*allowed, *headers], b"")


def detached(asked: Asked) -> bool:
    """Whether the reply is not to be waited for (RFC 7240, 4.1)."""
    prefer = b",".join(asked.values(b"prefer")).decode("latin-1").lower().split(",")
    return asked.flag(b"detach") is not None or "respond-async" in (
        word.partition(";")[0].strip() for word in prefer
    )


def _reply(asked: Asked, out: Out, http: Http) -> Reply:
    stream = asked.flag(b"stream")
    if stream is None:
        return Body(out, http, HELD)
    if not asked.accepts("text/event-stream"):
        return Body(out, http, 0)
    return Events(out, mode_of(stream))


def _again(asked: Asked) -> bool:
    """Whether it has come to the end of a stream of events, or lost it, and tries by itself."""
    return asked.flag(b"stream") is not None and bool(asked.values(b"last-event-id"))


def mode_of(stream: str) -> Mode:
    return Mode.BASE64 if stream == "base64" else Mode.TEXT


def _key(asked: Asked) -> str:
    values = asked.values(b"idempotency-key")
    if not values:
        return ""
    if len(values) > 1 or not 0 < len(values[0]) <= KEY_MAX:
        raise RequestError(400, f"an Idempotency-Key has 1 to {KEY_MAX} characters", "send one")
    return values[0].decode("latin-1")


def _digest(asked: Asked, body: Held) -> bytes:
    made = hashlib.sha256()
    for part in (asked.method.encode(), asked.path, cgi.without_token(asked.query)):
        made.update(len(part).to_bytes(8, "big") + part)
    made.update(body.digest)
    return made.digest()


def _cors(http: Http, asked: Asked) -> list[tuple[str, str]]:
    """Of a reply to a page of that origin; nothing where it is none that may read it."""
    if not http.cors:
        return []
    origins = asked.values(b"origin")
    origin = origins[0].decode("latin-1") if len(origins) == 1 else ""
    if "*" in http.cors:
        return [("access-control-allow-origin", "*"), ("access-control-expose-headers", EXPOSED)]
    vary = [("vary", "Origin")]
    if origin not in http.cors:
        return vary
    return [
        ("access-control-allow-origin", origin),
        ("access-control-expose-headers", EXPOSED),
        *vary,
    ]
