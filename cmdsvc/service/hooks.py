"""Hooks: how others have a command run. Made, changed, and what comes to them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import ParamSpec, TypeVar

from cmdsvc.access import Action
from cmdsvc.errors import BusyError, DataError, InternalError, NotFoundError, UsageError, printable
from cmdsvc.model import Delivery, Hook, Identity, check_name, valid_name
from cmdsvc.sealing import Sealer
from cmdsvc.service.commands import Commands
from cmdsvc.service.invocation import run_id
from cmdsvc.service.schemes import (
    ALGORITHMS,
    ENCODINGS,
    KEY_PREFIX,
    SCHEMES,
    check_secret,
    verify,
)
from cmdsvc.service.signatures import Post, Verified, without_credentials
from cmdsvc.store import Arrival, Store, Taken

log = logging.getLogger("cmdsvc.hook")

HOOKS_MAX = 100
"""Of one command."""
RETRIES_MAX = 100
SECRET_MAX = 4096
"""Bytes."""
OVERLAP = timedelta(days=1)
"""How long the secret before the last rotation holds."""
WINDOW = 300.0
"""Seconds for which what has no id of its sender's, and equals another, is a repetition of it."""
LARGE = 64 << 10
"""Bytes of a body from which on it is read behind the event loop's back."""
ENV_MAX = 64 << 10
"""Bytes of a request's variables."""
_HEADER = re.compile(r"[A-Za-z0-9-]{1,64}")

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a hook is made with, besides its secret. UsageError (64) for what cannot be."""

    scheme: str
    header: str | None = None
    encoding: str | None = None
    algorithm: str | None = None
    """These three are of the scheme `hmac`."""
    retries: int = 5
    retry_any: bool = False
    ordered: bool = False

    def options(self) -> dict[str, str]:
        """Of the scheme, as they are kept."""
        if self.scheme not in SCHEMES:
            raise UsageError(
                f"no scheme {printable(self.scheme)[:80]}", f"there are {', '.join(SCHEMES)}"
            )
        if not 0 <= self.retries <= RETRIES_MAX:
            raise UsageError("--retries is out of range", f"use 0 to {RETRIES_MAX}")
        if self.scheme != "hmac":
            if self.header or self.encoding or self.algorithm:
                raise UsageError(
                    f"the scheme {self.scheme} has no options", "they are for --scheme hmac"
                )
            return {}
        if self.header is None or not _HEADER.fullmatch(self.header):
            raise UsageError("which header has the signature?", "--header X-Signature")
        options = {
            "header": self.header,
            "encoding": self.encoding or ENCODINGS[0],
            "algorithm": self.algorithm or ALGORITHMS[0],
        }
        if options["encoding"] not in ENCODINGS or options["algorithm"] not in ALGORITHMS:
            raise UsageError(
                "that is no way to write a signature",
                f"--encoding {'|'.join(ENCODINGS)} --algorithm {'|'.join(ALGORITHMS)}",
            )
        return options


@dataclass(frozen=True, slots=True)
class Received:
    """What became of a request to a hook."""

    delivery: str = ""
    """The id under which it is kept; "" where it only asked whether somebody is here."""
    repeated: bool = False
    """Whether it was here before."""
    reply: str | None = None
    """What the sender is answered with at once (200), where there is nothing to run."""


class Hooks:
    """`wake` is called when something was stored that is due; `most` deliveries wait a command."""

    def __init__(
        self,
        store: Store,
        commands: Commands,
        sealer: Sealer,
        wake: Callable[[], None],
        *,
        most: int,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._commands = commands
        self._sealer = sealer
        self._wake = wake
        self._most = most
        self._now = now

    async def hooks(self, identity: Identity, name: str) -> list[Hook]:
        command = await self._commands.find(identity, name, Action.HOOKS)
        return await self._store.hooks(command.owner, command.name)

    async def new(
        self,
        identity: Identity,
        name: str,
        hook: str,
        settings: Settings,
        secret: bytes | None = None,
    ) -> tuple[Hook, str]:
        """A hook and its secret, made where None is given; it is not shown again.

        UsageError (64), DataError (65) for a secret that the scheme cannot have, ExistsError (73),
        BusyError (75) where there are too many.
        """
        options = settings.options()
        check_name(hook)
        command = await self._commands.find(identity, name, Action.HOOKS)
        if len(await self._store.hooks(command.owner, command.name)) >= HOOKS_MAX:
            raise BusyError(
                f"{command.full_name} has {HOOKS_MAX} hooks", f"remove some with :hooks {name} rm"
            )
        value = _checked(settings.scheme, secret)
        made = Hook(
            id=0,
            command=command.full_name,
            name=hook,
            scheme=settings.scheme,
            options=options,
            secret=self._sealer.seal(value, *place(command.owner, command.name, hook)),
            created_at=self._now(),
            retries=settings.retries,
            retry_any=settings.retry_any,
            ordered=settings.ordered,
        )
        return await self._store.add_hook(made, by=identity.user), value.decode()

    async def rotate(
        self, identity: Identity, name: str, hook: str, secret: bytes | None = None
    ) -> tuple[Hook, str]:
        """Another secret, as for `new`; the one before holds for a day."""
        found = await self._find(identity, name, hook)
        value = _checked(found.scheme, secret)
        sealed = self._sealer.seal(value, *_place_of(found))
        rotated = await self._store.rotate_hook(found, sealed, self._now(), by=identity.user)
        return rotated, value.decode()

    async def remove(self, identity: Identity, name: str, hook: str) -> None:
        """With its deliveries. NotFoundError (127) where it is not there."""
        found = await self._find(identity, name, hook)
        owner, _, command = found.command.partition("/")
        await self._store.remove_hook(owner, command, hook, by=identity.user)

    async def deliveries(
        self, identity: Identity, name: str, hook: str | None, limit: int
    ) -> list[Delivery]:
        """Newest first; of a hook, or of all and of the command's schedule."""
        if hook is not None:
            await self._find(identity, name, hook)
        command = await self._commands.find(identity, name, Action.HOOKS)
        return await self._store.deliveries(command.owner, command.name, hook=hook, limit=limit)

    async def replay(self, identity: Identity, name: str, delivery: str | None) -> int:
        """Has an ended delivery, or all that failed, run again; how many.

        NotFoundError (127) where there is no such delivery that has ended.
        """
        command = await self._commands.find(identity, name, Action.HOOKS)
        count = await self._store.replay(
            command.owner, command.name, delivery=delivery, now=self._now(), by=identity.user
        )
        if delivery is not None and not count:
            raise NotFoundError(
                f"no delivery {printable(delivery)[:80]} that has ended", f"see :hooks {name} log"
            )
        self._wake()
        return count

    async def receive(
        self,
        owner: str,
        name: str,
        hook: str,
        post: Post,
        env: Mapping[bytes, bytes],
    ) -> Received:
        """Takes a request to a hook; what is returned with an id survives a power failure.

        `env` are the CGI variables. Errors, after which nothing is kept: NotFoundError (404),
        RefusedError (403, or 401 with a challenge), BusyError (503: too many wait, or it cannot be
        stored now), DataError (422: too large variables).
        """
        found = None
        if all(map(valid_name, (owner, name, hook))):
            found = await self._store.hook(owner, name, hook)
        if found is None:
            raise NotFoundError("no such hook")
        now = self._now()
        said = await self._verified(found, post, now)
        if said.reply is not None:
            return Received(reply=said.reply)
        variables = without_credentials(env)
        if sum(len(k) + len(v) + 2 for k, v in variables.items()) > ENV_MAX:
            raise DataError(f"more than {ENV_MAX} bytes of headers and query", "put less into them")
        delivery = Delivery(
            id=run_id(),
            command=found.command,
            hook=hook,
            event=said.event,
            received_at=now,
            due_at=now,
            env=variables,
            body=post.body,
            size=len(post.body),
            retries=found.retries,
            retry_any=found.retry_any,
        )
        if said.same is not None:
            return await self._accept(Arrival(delivery, found.id, f"id:{said.same}", None))
        digest = await _offloaded(len(post.body), _digest, delivery)
        return await self._accept(Arrival(delivery, found.id, digest, WINDOW))

    async def _accept(self, arrival: Arrival) -> Received:
        try:
            taken, id_ = await self._store.accept(arrival, most=self._most)
        except InternalError as error:
            log.exception("a delivery could not be stored")
            raise BusyError("it cannot be stored now", "send it again later") from error
        if taken is Taken.FULL:
            raise BusyError(f"{self._most} deliveries wait for this command", "send it again later")
        self._wake()
        return Received(id_, repeated=taken is Taken.REPEATED)

    async def _verified(self, hook: Hook, post: Post, now: datetime) -> Verified:
        sealed = [hook.secret]
        if hook.previous and hook.rotated_at and now - hook.rotated_at < OVERLAP:
            sealed.append(hook.previous)
        keys = [self._sealer.open(secret, *_place_of(hook)) for secret in sealed]
        return await _offloaded(len(post.body), verify, hook.scheme, hook.options, keys, post, now)

    async def _find(self, identity: Identity, name: str, hook: str) -> Hook:
        command = await self._commands.find(identity, name, Action.HOOKS)
        found = None
        if valid_name(hook):
            found = await self._store.hook(command.owner, command.name, hook)
        if found is None:
            raise NotFoundError(
                f"{command.full_name} has no hook {printable(hook)[:80]}", f"see :hooks {name}"
            )
        return found


def place(owner: str, command: str, hook: str) -> tuple[str, ...]:
    """Where a hook's secrets belong, as their seals have it."""
    return ("hook", owner, command, hook)


def _place_of(hook: Hook) -> tuple[str, ...]:
    owner, _, command = hook.command.partition("/")
    return place(owner, command, hook.name)


def _checked(scheme: str, given: bytes | None) -> bytes:
    """The secret that was given, or a new one."""
    if given is None:
        return _new_secret(scheme)
    if len(given) > SECRET_MAX:
        raise DataError(f"the secret is larger than {SECRET_MAX} bytes", "use a shorter one")
    try:
        given.decode()
    except UnicodeDecodeError:
        raise DataError("the secret is not UTF-8", "use text") from None
    check_secret(scheme, given)
    return given


def _new_secret(scheme: str) -> bytes:
    """256 random bits, as text that a provider's form takes."""
    match scheme:
        case "standard" | "gitlab":
            return KEY_PREFIX + base64.b64encode(secrets.token_bytes(32))
        case "basic":
            return b"hook:" + secrets.token_urlsafe(32).encode()
    return secrets.token_urlsafe(32).encode()


def _digest(delivery: Delivery) -> str:
    """Two have it in common only where their script would be told the same."""
    made = hashlib.sha256()
    for part in (delivery.event.encode(), delivery.env.get(b"QUERY_STRING", b""), delivery.body):
        made.update(len(part).to_bytes(8, "big"))
        made.update(part)
    return f"sha256:{made.hexdigest()}"


async def _offloaded(size: int, work: Callable[P, T], *args: P.args, **more: P.kwargs) -> T:
    """What `work` makes of a body of `size` bytes; in a thread where that takes its time."""
    if size < LARGE:
        return work(*args, **more)
    return await asyncio.to_thread(work, *args, **more)
