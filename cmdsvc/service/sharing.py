"""Who may run and who may change a command, and the tokens that stand for a caller."""

from __future__ import annotations

import base64
import hmac
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta

from cmdsvc.access import Action, Verdict, may
from cmdsvc.errors import ForbiddenError, NotFoundError, UsageError, printable
from cmdsvc.model import PUBLIC, TOKEN_PREFIX, Command, Identity, Token, Via, valid_user
from cmdsvc.service.commands import Commands
from cmdsvc.store import Store

TOKEN = re.compile(rf"({TOKEN_PREFIX}[0-9a-v]{{8}})_([0-9a-v]{{32}})")
"""A token: its id, and 160 random bits. The prefix is for those who scan for leaked secrets."""
TOKEN_ID = re.compile(rf"{TOKEN_PREFIX}[0-9a-v]{{8}}")
USE_NOTED = timedelta(minutes=1)
"""A token's last use is kept no finer than this: not every run is a write."""
TOKENS_MAX = 1000
"""Of one user."""

Hash = Callable[[bytes], bytes]
"""A keyed hash; the key is the service's secret."""


class Sharing:
    """`knows` tells whether somebody may log in under a name, though he never has."""

    def __init__(
        self, store: Store, commands: Commands, hash_: Hash, knows: Callable[[str], bool]
    ) -> None:
        self._store = store
        self._knows = knows
        self._commands = commands
        self._hash = hash_

    async def access(self, identity: Identity, name: str) -> list[str]:
        """Who may run it beside owner and admins, sorted."""
        return sorted((await self._commands.find(identity, name, Action.ACCESS)).access)

    async def grant(self, identity: Identity, name: str, subjects: Sequence[str]) -> Command:
        """Users, tokens (by id or by the token itself), `public`. All or nothing; twice is once."""
        command = await self._commands.find(identity, name, Action.ACCESS)
        named = {self._subject(text) for text in subjects} - {command.owner}
        await self._meet(named)
        await self._store.set_access(command.owner, command.name, grant=named, by=identity.user)
        return command

    async def revoke(
        self, identity: Identity, name: str, subjects: Sequence[str]
    ) -> tuple[Command, set[str]]:
        """The command, and who may not run it by a grant any more: a token by its id."""
        command = await self._commands.find(identity, name, Action.ACCESS)
        named = {self._subject(text) for text in subjects}
        _not_owner(command, named)
        await self._store.set_access(command.owner, command.name, revoke=named, by=identity.user)
        return command, named

    async def admins(self, identity: Identity, name: str) -> list[str]:
        return sorted((await self._commands.find(identity, name, Action.ADMINS)).admins)

    async def grant_admins(self, identity: Identity, name: str, users: Sequence[str]) -> Command:
        command = await self._commands.find(identity, name, Action.ADMINS)
        named = {_user(text) for text in users} - {command.owner}
        await self._meet(named)
        await self._store.set_admins(command.owner, command.name, grant=named, by=identity.user)
        return command

    async def revoke_admins(self, identity: Identity, name: str, users: Sequence[str]) -> Command:
        command = await self._commands.find(identity, name, Action.ADMINS)
        named = {_user(text) for text in users}
        _not_owner(command, named)
        await self._store.set_admins(command.owner, command.name, revoke=named, by=identity.user)
        return command

    async def new_token(
        self, identity: Identity, description: str, ttl: float | None
    ) -> tuple[Token, str]:
        """A token and its text, which is not kept and cannot be shown again."""
        _check(identity)
        if len(await self._store.tokens(identity.user)) >= TOKENS_MAX:
            raise ForbiddenError(f"you have {TOKENS_MAX} tokens", "remove some with :tokens rm")
        now = datetime.now(UTC)
        token = Token(
            id=TOKEN_PREFIX + _random(5),
            owner=identity.user,
            description=description,
            created_at=now,
            expires_at=None if ttl is None else now + timedelta(seconds=ttl),
            last_used_at=None,
        )
        text = f"{token.id}_{_random(20)}"
        await self._store.ensure_user(identity.user)
        await self._store.add_token(token, self._hash(text.encode()), by=identity.user)
        return token, text

    async def tokens(self, identity: Identity) -> list[Token]:
        _check(identity)
        return await self._store.tokens(identity.user)

    async def remove_token(self, identity: Identity, text: str) -> str:
        """Removes one's own token, by its id or by itself; returns the id."""
        _check(identity)
        id_ = self._subject(text) if text.startswith(TOKEN_PREFIX) else text
        found = await self._store.token(id_)
        if found is None or found[0].owner != identity.user:
            raise NotFoundError(f"no token {printable(id_)[:80]}", "see :tokens")
        await self._store.remove_token(id_, by=identity.user)
        return id_

    async def identify(self, text: str) -> Identity | None:
        """Who comes with this token, if it is one that holds now."""
        parts = TOKEN.fullmatch(text)
        if parts is None:
            return None
        found = await self._store.token(parts[1])
        digest = self._hash(text.encode())
        if found is None or not hmac.compare_digest(found[1], digest):
            return None
        token, now = found[0], datetime.now(UTC)
        if token.expires_at is not None and token.expires_at <= now:
            return None
        if token.last_used_at is None or now - token.last_used_at > USE_NOTED:
            await self._store.used(token.id, now)
        return Identity(token.owner, Via.TOKEN, token=token.id)

    async def welcome(self, identity: Identity) -> None:
        """Makes a caller known; asked before whatever he asks for, and free of cost but once.

        ForbiddenError where his token was removed or has expired since he came.
        """
        if identity.token is None:
            await self._store.ensure_user(identity.user)
            return
        found = await self._store.token(identity.token)
        expires = found[0].expires_at if found else None
        if found is None or (expires is not None and expires <= datetime.now(UTC)):
            raise ForbiddenError("the token does not hold any more", "get a new one")

    async def _meet(self, subjects: Iterable[str]) -> None:
        for subject in subjects:
            if valid_user(subject) and self._knows(subject):
                await self._store.ensure_user(subject)

    def _subject(self, text: str) -> str:
        """A user, `public`, or a token's id; what is given by the token itself is not kept."""
        if text == PUBLIC or TOKEN_ID.fullmatch(text):
            return text
        if parts := TOKEN.fullmatch(text):
            return parts[1]
        return _user(text)


def _user(text: str) -> str:
    if not valid_user(text):
        shown = repr(printable(text)[:80]) if not text.startswith(TOKEN_PREFIX) else "that"
        raise UsageError(f"{shown} is neither a user nor a token", "see :help access")
    return text


def _not_owner(command: Command, named: set[str]) -> None:
    if command.owner in named:
        raise UsageError(
            f"{command.owner} owns {command.name} and keeps every right", "leave the owner out"
        )


def _check(identity: Identity) -> None:
    if may(identity, Action.CREATE) is not Verdict.ALLOWED:
        raise ForbiddenError("a token only runs commands", "log in with a key")


def _random(octets: int) -> str:
    return base64.b32hexencode(secrets.token_bytes(octets)).decode().lower()
