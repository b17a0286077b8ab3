"""Access tokens."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from cmdsvc.errors import ExistsError, ForbiddenError
from cmdsvc.model import Token
from cmdsvc.store.database import DanglingError, TakenError
from cmdsvc.store.schema import tokens
from cmdsvc.store.sql.part import Part, entry, moment, note, number

_COLUMNS = select(
    tokens.c.id,
    tokens.c.owner,
    tokens.c.description,
    tokens.c.created_at,
    tokens.c.expires_at,
    tokens.c.last_used_at,
    tokens.c.digest,
)
TOKEN = _COLUMNS.where(tokens.c.id == bindparam("of_token"))
TOKENS = _COLUMNS.where(tokens.c.owner == bindparam("of_owner"))
USED = update(tokens).where(tokens.c.id == bindparam("of_token"))
_REMOVE = delete(tokens).where(tokens.c.id == bindparam("of_token"))


class Tokens(Part):
    async def add_token(self, token: Token, digest: bytes, *, by: str) -> None:
        row = {
            "id": token.id,
            "owner": token.owner,
            "description": token.description,
            "created_at": number(token.created_at),
            "expires_at": _number(token.expires_at),
            "last_used_at": _number(token.last_used_at),
            "digest": digest,
        }

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(insert(tokens), row)
            await note(connection, entry(by, "token", token.id, token.description))

        try:
            await self._database.transact(work)
        except TakenError as error:
            raise ExistsError(f"there is a token {token.id} already", "try again") from error
        except DanglingError as error:
            self._known.discard(token.owner)
            raise ForbiddenError(f"{token.owner} is not a user any more", "log in again") from error

    async def token(self, id_: str) -> tuple[Token, bytes] | None:
        rows = await self._database.find(TOKEN, {"of_token": id_})
        return (_token(rows[0]), rows[0][-1]) if rows else None

    async def tokens(self, owner: str) -> list[Token]:
        found = [_token(row) for row in await self._database.read(TOKENS, {"of_owner": owner})]
        return sorted(found, key=lambda token: (token.created_at, token.id))

    async def used(self, id_: str, at: datetime) -> None:
        await self._database.record(USED, {"of_token": id_, "last_used_at": number(at)})

    async def remove_token(self, id_: str, *, by: str) -> bool:
        async def work(connection: AsyncConnection) -> bool:
            if not (await connection.execute(_REMOVE, {"of_token": id_})).rowcount:
                return False
            await note(connection, entry(by, "token-rm", id_))
            return True

        return await self._database.transact(work)


def _token(row: Any) -> Token:
    id_, owner, description, created_at, expires_at, last_used_at, _ = row
    return Token(
        id_,
        owner,
        description,
        moment(created_at),
        _moment(expires_at),
        _moment(last_used_at),
    )


def _number(at: datetime | None) -> int | None:
    return None if at is None else number(at.astimezone(UTC))


def _moment(stored: int | None) -> datetime | None:
    return None if stored is None else moment(stored)
