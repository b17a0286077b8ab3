"""A command's environment: its owner's secrets, sealed as soon as they come in."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from cmdsvc.access import Action
from cmdsvc.errors import DataError, UsageError
from cmdsvc.metadata import RESERVED, VARIABLE
from cmdsvc.model import Command, Identity
from cmdsvc.sealing import OVERHEAD, Sealer
from cmdsvc.service.commands import Commands
from cmdsvc.store import Place, Reseal, Store

VALUE_MAX = 64 << 10
"""Bytes. The kernel takes no more than 128 KB, name included (execve(2), MAX_ARG_STRLEN)."""
ENV_MAX = 256 << 10
"""Bytes of all names and values of a command: a caller's arguments and environment have to fit
beside it into what execve(2) takes, 2 MB as a rule."""
NAMES_MAX = 256


class Environment:
    def __init__(self, store: Store, commands: Commands, sealer: Sealer) -> None:
        self._store = store
        self._commands = commands
        self._sealer = sealer

    async def names(self, identity: Identity, name: str) -> list[str]:
        return sorted((await self._commands.find(identity, name, Action.ENV)).env)

    async def values(self, identity: Identity, name: str) -> dict[str, bytes]:
        """By name, sorted."""
        command = await self._commands.find(identity, name, Action.ENV)
        return dict(sorted(self._opened(command).items()))

    async def set(self, identity: Identity, name: str, values: Mapping[str, bytes]) -> None:
        """All of them or none.

        UsageError (64) for a name that cannot be set, DataError (65) for a value that no
        environment can hold. No error repeats a value.
        """
        for variable, value in values.items():
            _check_name(variable)
            if b"\0" in value:
                raise DataError(f"the value of {variable} has a NUL byte", "encode it, as base64")
            if len(value) > VALUE_MAX:
                raise DataError(
                    f"the value of {variable} is larger than {VALUE_MAX} bytes",
                    "put what is large into the script, or where it can fetch it",
                )
        command = await self._commands.find(identity, name, Action.ENV)
        sealed = {
            variable: self._sealer.seal(value, *place(command.owner, command.name, variable))
            for variable, value in values.items()
        }
        _check_room({**command.env, **sealed})
        await self._store.set_env(command.owner, command.name, put=sealed, by=identity.user)

    async def unset(self, identity: Identity, name: str, variables: Collection[str]) -> list[str]:
        """Those of them that were set, which they are no more."""
        command = await self._commands.find(identity, name, Action.ENV)
        known = [variable for variable in variables if variable in command.env]
        if known:
            await self._store.set_env(
                command.owner, command.name, put={}, remove=known, by=identity.user
            )
        return known

    def opened(self, command: Command) -> dict[bytes, bytes]:
        """For a run. BrokenSealError (70) where a value is not what its owner set."""
        return {name.encode(): value for name, value in self._opened(command).items()}

    def _opened(self, command: Command) -> dict[str, bytes]:
        return {
            name: self._sealer.open(sealed, *place(command.owner, command.name, name))
            for name, sealed in command.env.items()
        }


def place(owner: str, command: str, name: str) -> Place:
    """Where a value belongs, as its seal has it."""
    return ("env", owner, command, name)


def resealing(sealer: Sealer, old: str, new: str) -> Reseal:
    """For `Store.rename_user`: a value of the old owner's becomes the new one's."""

    def reseal(place: Place, sealed: bytes) -> bytes:
        kind, _, command, name = place
        value = sealer.open(sealed, kind, old, command, name)
        return sealer.seal(value, kind, new, command, name)

    return reseal


def _check_name(name: str) -> None:
    if not VARIABLE.fullmatch(name):  # and perhaps a part of a value, so that it is not repeated
        raise UsageError(
            "that cannot be the name of a variable",
            "use at most 128 letters, digits and _, the first no digit",
        )
    if RESERVED.fullmatch(name):
        raise UsageError(
            f"{name} is reserved",
            "the service sets it, or a shell or a loader obeys it; use another name",
        )


def _check_room(env: Mapping[str, bytes]) -> None:
    size = sum(len(name) + len(sealed) - OVERHEAD for name, sealed in env.items())
    if len(env) > NAMES_MAX or size > ENV_MAX:
        raise DataError(
            f"more than {NAMES_MAX} names or {ENV_MAX} bytes in all", "unset what is not needed"
        )
