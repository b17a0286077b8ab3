"""Commands: made, changed, found, deleted."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from cmdsvc import image as images
from cmdsvc.access import LIMITED, Action, Verdict, may
from cmdsvc.engine import Progress
from cmdsvc.errors import (
    BusyError,
    DataError,
    ExistsError,
    ForbiddenError,
    NotFoundError,
    UsageError,
    printable,
)
from cmdsvc.metadata import MAX_DESCRIPTION, valid_description
from cmdsvc.model import READY_MADE, Command, Identity, Limits, Network, Via, check_name
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
    max_commands: int
    """Of one user."""
    max_stored: int
    """Bytes of source in all versions of one user's commands."""
    images: Sequence[str] = ("*",)
    """Patterns of what the images are called that can be imported."""


class Commands:
    def __init__(self, store: Store, builds: Builds, ready_made: ReadyMade, policy: Policy) -> None:
        self._store = store
        self._builds = builds
        self._ready_made = ready_made
        self._policy = policy

    async def create(
        self, identity: Identity, name: str, source: bytes, progress: Progress,
        *, description: str | None = None, again: bool = False,
    ) -> Command:  # fmt: skip
        """A new command of the caller's; ExistsError (73), and whatever the source or the build says.

        `again`: its layer is made again, as by `rebuild`.
        """
        owner = await self.check_new(identity, name)
        await self._check_room(owner, source)
        if description is not None and not valid_description(description):
            raise UsageError(
                f"a description is one line of at most {MAX_DESCRIPTION} characters", "shorten it"
            )
        async with self._prepared(source, progress, again=again) as (script, layer):
            await self._store.ensure_user(owner)
            return await self._store.create(
                owner=owner,
                name=name.rpartition("/")[2],
                description=script.metadata.description if description is None else description,
                source=source,
                author=identity.user,
                digest=layer.digest,
                created_at=datetime.now(UTC),
                schedule=script.metadata.schedule,
            )

    async def import_(
        self, identity: Identity, name: str, image: str, progress: Progress,
        *, description: str | None = None,
    ) -> Command:  # fmt: skip
        """A new command of the caller's that runs an existing image, as it is at this moment.

        Errors: as `create`, and whatever the engine says of the image.
        """
        await self.check_new(identity, name)
        self._check_image(image)
        pinned = await self._builds.resolve(image, progress)
        source = f"#!cmd {pinned}\n".encode()
        return await self.create(identity, name, source, progress, description=description)

    async def check_new(self, identity: Identity, name: str) -> str:
        """Refuses early what `create` would refuse for its name; returns the owner."""
        owner = self._own(identity, name)
        if await self._store.find(owner, name.rpartition("/")[2]):
            raise ExistsError(f"{name} exists already", f"change it with :edit {name}")
        commands, _ = await self._store.stored(owner)
        if commands >= self._policy.max_commands:
            raise BusyError(
                f"you have {commands} commands, and can have {self._policy.max_commands}",
                "remove some with :delete, or ask the operator",
            )
        return owner

    async def edit(
        self,
        identity: Identity,
        name: str,
        source: bytes,
        progress: Progress,
        *,
        again: bool = False,
    ) -> Command:
        """A new version; the old one stays what runs until this one is whole. `again`: as `create`."""
        command = await self.find(identity, name, Action.EDIT)
        await self._check_room(command.owner, source)
        async with self._prepared(source, progress, again=again) as (script, layer):
            return await self._store.add_version(
                owner=command.owner,
                name=command.name,
                source=source,
                description=script.metadata.description or command.description,
                author=identity.user,
                digest=layer.digest,
                created_at=datetime.now(UTC),
                schedule=script.metadata.schedule,
            )

    async def rebuild(self, command: Command, progress: Progress) -> None:
        """Makes the layer of its current version again, on its base fetched again."""
        script, layer = await asyncio.to_thread(self.parse, command.version.source)
        with self._builds.held(layer):
            await self._builds.ensure(layer, progress, again=True)
            await self._builds.check_programs(layer, script.programs)

    async def delete(self, identity: Identity, name: str) -> Command:
        command = await self.find(identity, name, Action.DELETE)
        if not await self._store.delete(command.owner, command.name, by=identity.user):
            raise await self._not_found(identity, name)
        return command

    async def find(self, identity: Identity, name: str, action: Action) -> Command:
        """The command that `name` (NAME or OWNER/NAME) means to this caller, who may do `action`.

        One's own come first, then the ready-made. NotFoundError (127) where there is none or none
        that the caller may know of, with a suggestion from what he may; ForbiddenError (77) where
        he may know of it but not do that.
        """
        owner, short = self._split(identity, name)
        command = None
        if owner != READY_MADE:
            command = await self._store.find(owner, short)
        if command is None and ("/" not in name or owner == READY_MADE):
            command = self._ready_made.find(short)
        if command is not None and identity.via is Via.ANONYMOUS:
            script, _ = await asyncio.to_thread(self.parse, command.version.source)
            command = replace(command, anonymous=script.metadata.http.public)
        verdict = may(identity, action, command)
        if command is None or verdict is Verdict.UNKNOWN:
            raise await self._not_found(identity, name)
        if verdict is Verdict.FORBIDDEN:
            raise ForbiddenError(
                f"that is not yours to do with {command.full_name}",
                f"ask {command.owner}" if command.owner != READY_MADE else "copy it with :source",
            )
        return command

    async def named(self, full_name: str) -> Command | None:
        """What OWNER/NAME is, whoever asks: for what a door tells everybody."""
        owner, _, name = full_name.partition("/")
        if owner == READY_MADE:
            return self._ready_made.find(name)
        return await self._store.find(owner, name)

    async def list(self, identity: Identity, *, all_: bool) -> list[Listing]:
        """The caller's own commands; `all_`: others' that he may run, and the ready-made, too."""
        own = await self._store.list_commands(identity.user)
        if not all_:
            return own
        ready = [
            Listing(
                owner=c.owner,
                name=c.name,
                description=c.description,
                version=c.version.number,
                updated_at=c.version.created_at,
            )
            for c in self._ready_made.commands.values()
        ]
        return [*own, *await self._store.runnable(identity.subject), *ready]

    def parse(self, source: bytes) -> tuple[Script, Recipe]:
        """What a stored source means; what the operator allows today is not asked."""
        script = parse(source, max_size=max(len(source), self._policy.max_source))
        return script, recipe(script, self._policy.bases)

    async def digests(self) -> set[str]:
        """Of the layers that all commands and the ready-made ones would run on now."""
        found = {command.version.digest for command in self._ready_made.commands.values()}
        for owner in await self._store.users():
            for name in await self._store.names(owner):
                command = await self._store.find(owner, name)
                if command is not None:
                    with contextlib.suppress(DataError):  # a base that is no more
                        _, layer = await asyncio.to_thread(self.parse, command.version.source)
                        found.add(layer.digest)
        return found

    @contextlib.asynccontextmanager
    async def _prepared(
        self, source: bytes, progress: Progress, *, again: bool
    ) -> AsyncIterator[tuple[Script, Recipe]]:
        """What `source` means, its layer made, and kept until a version needs it."""
        policy = self._policy
        script = await asyncio.to_thread(  # what is hostile may take a good part of a second
            parse, source, policy.limits, tuple(policy.bases), policy.max_source
        )
        if script.metadata.network == Network.INTERNET and Network.INTERNET not in policy.networks:
            raise DataError(
                'this instance cannot give a run network = "internet"',
                "leave it out, or ask the operator (cmdsvc check)",
            )
        if script.imported:
            self._check_image(script.base)
        layer = recipe(script, policy.bases)
        for warning in script.warnings:
            progress(f"warning: {warning}")
        with self._builds.held(layer):
            await self._builds.ensure(layer, progress, fresh=True, again=again)
            await self._builds.check_programs(layer, script.programs)
            yield script, layer

    async def _check_room(self, owner: str, source: bytes) -> None:
        most = self._policy.max_stored
        _, stored = await self._store.stored(owner)
        if stored + len(source) > most:
            raise BusyError(
                f"{owner} has {stored} bytes of source in all versions, of {most} at most",
                "remove commands with :delete, or ask the operator",
            )

    def _check_image(self, name: str) -> None:
        if not images.parse(name).matches(self._policy.images):
            raise DataError(
                f"image {name} cannot be imported here", "ask the operator (CMDSVC_IMPORTS)"
            )

    def _own(self, identity: Identity, name: str) -> str:
        if may(identity, Action.CREATE) is not Verdict.ALLOWED:
            raise ForbiddenError("a token only runs commands", "log in with a key")
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
        known = list(self._ready_made.commands)
        if identity.via not in LIMITED:  # a token is not told its maker's commands
            known += await self._store.names(identity.user)
        near = difflib.get_close_matches(name.rpartition("/")[2], known, n=1, cutoff=0.7)
        return NotFoundError(
            f"no command {name}",
            f"did you mean {near[0]}?" if near else "`:ls -a` lists what there is",
        )
