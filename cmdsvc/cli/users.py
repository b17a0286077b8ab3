"""`cmdsvc user`: who may log in, on the machine itself, whether the server runs or not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from cmdsvc import config
from cmdsvc.config import Settings
from cmdsvc.errors import NotFoundError, UsageError
from cmdsvc.model import Entry, check_name, valid_user
from cmdsvc.store import Store, open_store

T = TypeVar("T")
Name = Annotated[str, typer.Argument(help="the user's name here")]

cli = typer.Typer(help="Who may log in.", no_args_is_help=True)


@cli.command("ls")
def list_users(
    as_json: Annotated[bool, typer.Option("--json", "-j", help="a list of objects")] = False,
) -> None:
    """List the users: how many keys in the keys folder, commands and tokens each has."""
    from cmdsvc.ssh.keys import count_keys  # noqa: PLC0415

    settings = config.load()

    async def found(store: Store | None) -> list[tuple[str, int, int, int, bool]]:
        keys = count_keys(settings.keys_dir)
        known = await store.users() if store else []
        return [
            (
                name,
                keys.get(name, 0),
                (await store.stored(name))[0] if store else 0,
                len(await store.tokens(name)) if store else 0,
                name in settings.operators,
            )
            for name in sorted({*keys, *known})
        ]

    columns = ("name", "keys", "commands", "tokens", "operator")
    rows = _with_store(settings, found)
    if as_json:
        print(json.dumps([dict(zip(columns, row, strict=True)) for row in rows], indent=2))  # noqa: T201
        return
    table = [[str(cell) for cell in row[:4]] + ["operator" if row[4] else ""] for row in rows]
    if sys.stdout.isatty():
        table = [[column.upper() for column in columns], *table]
        widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
        table = [
            ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()]
            for row in table
        ]
    for row in table:
        print("\t".join(row))  # noqa: T201


@cli.command("add")
def add(
    name: Name,
    file: Annotated[Path | None, typer.Argument(help="public keys; - or none is stdin")] = None,
    operator: Annotated[bool, typer.Option("--operator", help="runs the service too")] = False,
) -> None:
    """Let a user log in with the public keys in FILE (authorized_keys format)."""
    from cmdsvc.ssh.keys import add_user  # noqa: PLC0415

    settings = config.load()
    _check(name)
    try:
        text = sys.stdin.read() if file in {None, Path("-")} else file.read_text()
        added = add_user(settings.keys_dir, name, text)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot read {file or 'stdin'}: {error}", "give a public key file"
        ) from None

    said = f"{added} new key{'' if added == 1 else 's'}"

    async def known(store: Store | None) -> None:
        if store is None:
            return
        is_user = name in await store.users()
        if added or not is_user:
            await store.ensure_user(name)
            action = "key-add" if is_user else "user-add"
            await store.record(Entry(datetime.now(UTC), "", action, name, said))

    _with_store(settings, known)
    print(f"{name}: {said}")  # noqa: T201
    if operator:
        print(config.add_operator(settings, name))  # noqa: T201


@cli.command("rm")
def remove(
    name: Name,
    now: Annotated[bool, typer.Option("--now", help="end what runs for the user, too")] = False,
) -> None:
    """Remove a user with keys, commands and tokens; what ran stays in the record."""
    from cmdsvc.service.notices import OUST  # noqa: PLC0415
    from cmdsvc.ssh.keys import remove_user  # noqa: PLC0415

    settings = config.load()
    _check(name)

    async def gone(store: Store | None) -> bool:
        keys = await asyncio.to_thread(remove_user, settings.keys_dir, name)
        known = await store.remove_user(name, by="") if store else False
        if now and store:
            await store.record(Entry(datetime.now(UTC), "", OUST, name))
        return keys or known

    there = _with_store(settings, gone)
    if not there and not now:
        raise NotFoundError(f"no user {name}", "see cmdsvc user ls")
    ending = "; what runs ends in a few seconds" if now else ""
    print(f"{name} is {'removed' if there else 'gone already'}{ending}")  # noqa: T201
    _warn(settings, name)


@cli.command("rename")
def rename(old: Name, new: Annotated[str, typer.Argument(help="the name from now on")]) -> None:
    """Give a user another name: keys, commands, grants, tokens and runs go with it."""
    from cmdsvc.service.environment import resealing  # noqa: PLC0415
    from cmdsvc.service.secretkey import open_sealer  # noqa: PLC0415
    from cmdsvc.ssh.keys import renaming_user  # noqa: PLC0415

    settings = config.load()
    _check(old)
    _check(new)

    async def done(store: Store | None) -> bool:
        with renaming_user(settings.keys_dir, old, new) as keys:
            if store is None:
                return keys
            sealer = await open_sealer(settings.keys_dir, store)
            reseal = resealing(sealer, old, new)
            return await store.rename_user(old, new, by="", reseal=reseal) or keys

    if not _with_store(settings, done):
        raise NotFoundError(f"no user {old}", "see cmdsvc user ls")
    print(f"{old} is {new} now")  # noqa: T201
    _warn(settings, old)


def _check(name: str) -> None:
    check_name(name)
    if not valid_user(name):
        raise UsageError(f"{name!r} is nobody's name", "choose another")


def _warn(settings: Settings, name: str) -> None:
    """Where else the settings name somebody who is no more."""
    if name in settings.operators:
        print(f"take {name} out of CMDSVC_OPERATORS")  # noqa: T201
    if {name, "*"} & set(settings.keys_url_users):
        print(f"the keys published for {name} still let somebody in: CMDSVC_KEYS_URL_USERS")  # noqa: T201
    if settings.user_ca_keys:
        print(f"a certificate for {name} still lets somebody in: CMDSVC_REVOKED_KEYS")  # noqa: T201


def _with_store(settings: Settings, work: Callable[[Store | None], Awaitable[T]]) -> T:
    """What `work` makes of the store, or of None where there is none yet."""

    async def do() -> T:
        async with _opened(settings) as store:
            return await work(store)

    return asyncio.run(do())


@contextlib.asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[Store | None]:
    if settings.database_url is None and not (settings.data_dir / config.STORE).exists():
        yield None
        return
    store = await open_store(settings.url)
    try:
        yield store
    finally:
        await store.aclose()
