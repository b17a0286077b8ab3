"""A user's own keys: shown, added, removed by himself."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime

from cmdsvc.access import Action, Verdict, may
from cmdsvc.errors import ForbiddenError, InternalError
from cmdsvc.model import Entry, Identity, Via
from cmdsvc.ssh.blobs import fingerprint, line_of
from cmdsvc.ssh.identities import Identities
from cmdsvc.ssh.keys import add_user, read_lines, remove_key
from cmdsvc.ssh.restrictions import Line
from cmdsvc.store import Store


@dataclass(frozen=True, slots=True)
class OwnKey:
    fingerprint: str
    via: Via
    type: str = ""
    comment: str = ""
    options: str = ""


class OwnKeys:
    """Every method: ForbiddenError (77) for a token; InternalError (70) where files cannot be had."""

    def __init__(self, identities: Identities, store: Store) -> None:
        self._identities = identities
        self._folder = identities.ring.folder
        self._store = store

    async def listing(self, identity: Identity) -> list[OwnKey]:
        """Those in the keys folder, then the published ones, then what the caller came with."""
        _gate(identity)
        keys = [_own(line) for line in await self._lines(identity.user)]
        for key in sorted(await self._identities.published.keys(identity.user)):
            if self._identities.ring.lines(key)[0] is None:
                type_ = line_of(key).split()[0]
                keys.append(OwnKey(fingerprint(key), Via.PUBLISHED, type_))
        if identity.key and not any(
            (key.fingerprint, key.via) == (identity.key, identity.via) for key in keys
        ):
            keys.append(OwnKey(identity.key, identity.via))
        return keys

    async def add(self, identity: Identity, text: str) -> int:
        """How many are new. UsageError (64) for what is no key, ExistsError (73) for another's."""
        _gate(identity)
        before = {fingerprint(line.key.public_data) for line in await self._lines(identity.user)}
        taken = self._identities.published.owner
        try:
            added = await asyncio.to_thread(add_user, self._folder, identity.user, text, taken)
        except OSError as error:
            raise _out_of_reach(error) from None
        self._identities.ring.recheck()
        after = {fingerprint(line.key.public_data) for line in await self._lines(identity.user)}
        if added:
            await self._record(identity, "key-add", " ".join(sorted(after - before)))
        return added

    async def remove(self, identity: Identity, print_: str) -> str:
        """The fingerprint. NotFoundError (127), or ForbiddenError (77) for the last one."""
        _gate(identity)
        if not print_.startswith("SHA256:"):
            print_ = f"SHA256:{print_}"
        try:
            await asyncio.to_thread(
                remove_key, self._folder, identity.user, print_, self._identities.usable
            )
        except OSError as error:
            raise _out_of_reach(error) from None
        self._identities.ring.recheck()
        await self._record(identity, "key-rm", print_)
        return print_

    async def _lines(self, user: str) -> list[Line]:
        try:
            return await asyncio.to_thread(read_lines, self._folder / "users" / f"{user}.pub")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _out_of_reach(error) from None

    async def _record(self, identity: Identity, action: str, detail: str) -> None:
        await self._store.record(
            Entry(datetime.now(UTC), identity.user, action, identity.user, detail)
        )


def _gate(identity: Identity) -> None:
    if may(identity, Action.CREATE) is not Verdict.ALLOWED:
        raise ForbiddenError("a token has no keys", "log in with a key")


def _own(line: Line) -> OwnKey:
    key = line.key
    comment = (key.get_comment_bytes() or b"").decode(errors="replace")
    return OwnKey(
        fingerprint(key.public_data),
        Via.KEY,
        key.algorithm.decode(errors="replace"),
        comment,
        line.options,
    )


def _out_of_reach(error: OSError) -> InternalError:
    return InternalError(
        f"the keys folder cannot be used: {error.strerror or error}", "tell the operator"
    )
