"""Commands: made, changed, found, deleted."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from cmdsvc.access import Action, may
from cmdsvc.engine import Progress
from cmdsvc.errors import DataError, ExistsError, NotFoundError, UsageError, printable
from cmdsvc.metadata import MAX_DESCRIPTION, valid_description
from cmdsvc.model import READY_MADE, Command, Identity, Limits, Network, check_name
from cmdsvc.recipe import Recipe, recipe
from cmdsvc.script import Script, parse
from cmdsvc.service.builds import Builds
from cmdsvc.service.readymade import ReadyMade
from cmdsvc.store import Listing, Store


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator allows a script."""

    limits: Limits
    max_source: int
    bases: Mapping[str, str]
    networks: Collection[Network]


class Commands:
    def __init__(self, store: Store, builds: Builds, ready_made: ReadyMade, policy: Policy) -> None:
        self._store = store
        self._builds = builds
        self._ready_made = ready_made
        self._policy = policy

    async def create(
        self, identity: Identity, name: str, source: bytes, progress: Progress,
        *, description: str | None = None,
    ) -> Command:  # fmt: skip
        """A new command of the caller's; ExistsError (73), and whatever the source or the build says."""
        owner = await self.check_new(identity, name)
        if description is not None and not valid_description(description):
            raise UsageError(
                f"a description is one line of at most {MAX_DESCRIPTION} characters", "shorten it"
            )
        script, layer = await self._prepare(source, progress)
        await self._store.ensure_user(owner)
        return await self._store.create(
            owner=owner,
            name=name,
            description=script.metadata.description if description is None else description,
            source=source,
            author=identity.user,
            digest=layer.digest,
            created_at=datetime.now(UTC),
        )

    async def check_new(self, identity: Identity, name: str) -> str:
        """Refuses early what `create` would refuse for its name; returns the owner."""
        owner = self._own(identity, name)
        if await self._store.find(owner, name):
            raise ExistsError(f"{name} exists already", f"change it with :edit {name}")
        return owner

    async def edit(
        self, identity: Identity, name: str, source: bytes, progress: Progress
    ) -> Command:
        """A new version; the old one stays what runs until this one is whole."""
        command = await self.find(identity, name, Action.EDIT)
        script, layer = await self._prepare(source, progress)
        return await self._store.add_version(
            owner=command.owner,
            name=command.name,
            source=source,
            description=script.metadata.description or command.description,
            author=identity.user,
            digest=layer.digest,
            created_at=datetime.now(UTC),
        )

    async def delete(self, identity: Identity, name: str) -> Command:
        command = await self.find(identity, name, Action.DELETE)
        if not await self._store.delete(command.owner, command.name):
            raise await self._not_found(identity, name)
        return command

    async def find(self, identity: Identity, name: str, action: Action) -> Command:
        """The command that `name` (NAME or OWNER/NAME) means to this caller, if it may do `action`.

        One's own come first, then the ready-made. NotFoundError (127) else, with a suggestion from
        what the caller may see.
        """
        owner, short = self._split(identity, name)
        command = None
        if owner != READY_MADE and may(identity, action, owner):
            command = await self._store.find(owner, short)
        if command is None and ("/" not in name or owner == READY_MADE):
            command = self._ready_made.find(short)
            if command is not None and not may(identity, action, READY_MADE):
                command = None
        if command is None:
            raise await self._not_found(identity, name)
        return command

    async def list(self, identity: Identity, *, all_: bool) -> list[Listing]:
        """The caller's own commands; `all_`: the ready-made too."""
        own = await self._store.list_commands(identity.user)
        if not all_:
            return own
        return own + [
            Listing(
                owner=c.owner,
                name=c.name,
                description=c.description,
                version=c.version.number,
                updated_at=c.version.created_at,
            )
            for c in self._ready_made.commands.values()
        ]

    def parse(self, source: bytes) -> tuple[Script, Recipe]:
        """What a stored source means; what the operator allows today is not asked."""
        script = parse(source, max_size=max(len(source), self._policy.max_source))
        return script, recipe(script, self._policy.bases)

    async def _prepare(self, source: bytes, progress: Progress) -> tuple[Script, Recipe]:
        policy = self._policy
        script = await asyncio.to_thread(  # what is hostile may take a good part of a second
            parse, source, policy.limits, tuple(policy.bases), policy.max_source
        )
        if script.metadata.network == Network.INTERNET and Network.INTERNET not in policy.networks:
            raise DataError(
                'this instance cannot give a run network = "internet"',
                "leave it out, or ask the operator (cmdsvc check)",
            )
        layer = recipe(script, policy.bases)
        for warning in script.warnings:
            progress(f"warning: {warning}")
        await self._builds.ensure(layer, progress)
        await self._builds.check_programs(layer, script.programs)
        return script, layer

    def _own(self, identity: Identity, name: str) -> str:
        owner, slash, short = name.rpartition("/")
        check_name(short if slash else name)
        if slash and owner != identity.user:
            raise UsageError(f"{printable(name)[:80]!r} is not yours to create", "use a plain NAME")
        return identity.user

    def _split(self, identity: Identity, name: str) -> tuple[str, str]:
        owner, slash, short = name.rpartition("/")
        return (
            (check_name(owner), check_name(short)) if slash else (identity.user, check_name(name))
        )

    async def _not_found(self, identity: Identity, name: str) -> NotFoundError:
        known = [*await self._store.names(identity.user), *self._ready_made.commands]
        near = difflib.get_close_matches(name.rpartition("/")[2], known, n=1, cutoff=0.7)
        return NotFoundError(
            f"no command {name}",
            f"did you mean {near[0]}?" if near else "`:ls -a` lists what there is",
        )
