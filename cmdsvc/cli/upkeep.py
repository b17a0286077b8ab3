"""What keeps a service in order, on the machine itself."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from cmdsvc import config
from cmdsvc.config import Settings
from cmdsvc.errors import UsageError, one_line
from cmdsvc.model import check_name
from cmdsvc.store import Notice, Store, open_store

T = TypeVar("T")

NOTICE_MAX = 500
"""Characters."""


class Shell(StrEnum):
    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def notice(
    text: Annotated[str, typer.Argument(help="one line; none shows what is in force")] = "",
    close: Annotated[bool, typer.Option("--close", help="no new runs meanwhile (75)")] = False,
    clear: Annotated[bool, typer.Option("--clear", help="take it away, and open again")] = False,
) -> None:
    """Say something to everyone at login; a server that runs knows it in a few seconds."""
    if (text or close) if clear else (close and not text):
        raise UsageError("a text, or --clear", 'cmdsvc notice "back at 18:00" [--close]')
    line = one_line(text)
    if len(line) > NOTICE_MAX:
        raise UsageError(f"a notice has {NOTICE_MAX} characters at most", "shorten it")

    async def put(store: Store) -> Notice | None:
        if text or clear:
            await store.set_notice(Notice(line, close) if line else None, by="")
        return await store.notice()

    shown = _with_store(config.load(), put)
    if shown is None:
        print("no notice, the doors are open")  # noqa: T201
    else:
        print(f"{shown.text} ({'no new runs' if shown.closed else 'the doors are open'})")  # noqa: T201


def backup(
    file: Annotated[Path, typer.Argument(help="is replaced, whole or not at all")],
    keys: Annotated[bool, typer.Option("--keys", help="the keys folder, too")] = False,
) -> None:
    """Put all that is kept into FILE (0600), while the server runs or not."""
    from cmdsvc.backup import write  # noqa: PLC0415

    settings = config.load()
    _with_store(
        settings, lambda store: write(file.absolute(), store, settings.keys_dir if keys else None)
    )
    print(f"{file}: {file.stat().st_size} bytes" + ("" if keys else "; keys are apart"))  # noqa: T201


def restore(
    file: Annotated[Path, typer.Argument(help="made by cmdsvc backup")],
    keys: Annotated[bool, typer.Option("--keys", help="the keys in it, too")] = False,
) -> None:
    """Bring back what FILE has, into a data folder without a store."""
    from cmdsvc import app  # noqa: PLC0415
    from cmdsvc.backup import read  # noqa: PLC0415

    settings = config.load()

    async def bring() -> None:
        with app.lock(settings.data_dir):
            await read(
                file,
                settings.url,
                settings.data_dir.absolute(),
                settings.keys_dir if keys else None,
            )

    _run(bring())
    print("restored; layers are made again when they are needed")  # noqa: T201
    if not (settings.keys_dir / "secret.key").exists():
        print(f"bring {settings.keys_dir}/secret.key back before you start the server")  # noqa: T201


def systemd(
    socket: Annotated[bool, typer.Option("--socket", help="the socket's unit instead")] = False,
) -> None:
    """Print a hardened unit for systemd, by the settings in force."""
    from cmdsvc.units import service_unit, socket_unit  # noqa: PLC0415

    settings = config.load()
    print(socket_unit(settings) if socket else service_unit(settings), end="")  # noqa: T201


def completion(
    shell: Annotated[Shell, typer.Argument(help="bash, zsh or fish")],
    host: Annotated[str, typer.Option(help="what follows ssh, from ssh_config")] = "cmd",
) -> None:
    """Print what completes `ssh HOST NAME` in a shell, from the commands that one has."""
    from cmdsvc.ssh.builtins import BUILTINS  # noqa: PLC0415

    check_name(host)
    text = resources.files("cmdsvc.completions").joinpath(f"cmdsvc.{shell}").read_text()
    print(text.replace("@HOST@", host).replace("@BUILTINS@", " ".join(BUILTINS)), end="")  # noqa: T201


COMMANDS: tuple[Callable[..., Any], ...] = (notice, backup, restore, systemd, completion)


def _with_store(settings: Settings, work: Callable[[Store], Awaitable[T]]) -> T:
    async def do() -> T:
        store = await open_store(settings.url)
        try:
            return await work(store)
        finally:
            await store.aclose()

    return _run(do())


def _run(work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns. SIGTERM cancels it as ^C does: a timer that runs out leaves nothing."""

    async def until_terminated() -> T:
        task = asyncio.create_task(work)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await task

    try:
        return asyncio.run(until_terminated())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
