"""The operator's command line."""

from __future__ import annotations

import asyncio
import gc
import sys
from typing import Annotated, NoReturn

import typer

from cmdsvc import config
from cmdsvc.cli import upkeep, users
from cmdsvc.errors import CmdError, UsageError

cli = typer.Typer(
    name="cmdsvc",
    help="Shell scripts as a service over SSH.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
cli.add_typer(users.cli, name="user")
for command in upkeep.COMMANDS:
    cli.command()(command)


def run() -> NoReturn:
    """Runs the command line; what fails is one line on stderr and the error's exit status."""
    try:
        cli()
    except CmdError as error:
        sys.stderr.write(f"cmdsvc: {error}\n")
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


@cli.command()
def serve() -> None:
    """Start the service; it prints the ssh line to use and drains on SIGTERM."""
    gc.disable()  # until it listens: of what is made until then hardly anything is garbage
    from cmdsvc import app, log  # noqa: PLC0415 - the other commands do not need it

    settings = config.load()
    log.set_up(settings.log)
    sys.exit(asyncio.run(app.serve(settings)))


@cli.command()
def check(
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="print warnings and errors alone")
    ] = False,
    running: Annotated[
        bool, typer.Option("--running", help="it is an error that no server runs here")
    ] = False,
) -> None:
    """Say what is in force and what is wrong; exit 1 where something is."""
    from cmdsvc.check import check as run_check  # noqa: PLC0415

    sys.exit(asyncio.run(run_check(quiet=quiet, running=running)))


@cli.command()
def pull(
    bases: Annotated[
        list[str] | None, typer.Argument(help="BASE[:TAG] ..., by default alpine")
    ] = None,
) -> None:
    """Fetch bases, again where they are here already; while the server runs or not."""
    from cmdsvc import app  # noqa: PLC0415

    settings = config.load()

    async def fetch() -> None:
        async with app.open_engine(settings, beside=True) as engine:
            for word in bases or ["alpine"]:
                base, _, tag = word.partition(":")
                if base not in settings.bases:
                    raise UsageError(f"no base {base!r}", f"one of {', '.join(settings.bases)}")
                await engine.pull(base, tag, lambda line: print(line, flush=True))  # noqa: T201

    asyncio.run(fetch())


@cli.command()
def firewall(
    remove: Annotated[bool, typer.Option("--remove", help="take it away again")] = False,
) -> None:
    """Put the block list for runs on the docker engine in force, as root; lasts until a reboot."""
    from cmdsvc import app  # noqa: PLC0415
    from cmdsvc.engine import firewall as rules  # noqa: PLC0415
    from cmdsvc.engine.docker import bridge_name  # noqa: PLC0415
    from cmdsvc.engine.resolvers import host_resolvers  # noqa: PLC0415

    settings = app.engine_settings(config.load())
    table = rules.bridge_table(settings.instance)
    if remove:
        rules.remove(table)
        print(f"removed the nftables table inet {table}")  # noqa: T201
        return
    bridge = bridge_name(settings.instance)
    allowed = [rules.Destination.parse(text) for text in settings.network_allow]
    rules.apply(
        rules.bridge_ruleset(settings.instance, bridge, host_resolvers().addresses, allowed)
    )
    print(f"the nftables table inet {table} holds runs on {bridge} to the Internet")  # noqa: T201


@cli.command("rotate-key")
def rotate_key(
    lost: Annotated[
        bool, typer.Option("--lost", help="the key is lost: remove what no key opens")
    ] = False,
) -> None:
    """Seal all secrets anew with a new key. Stop the server first; repeat it if it was killed."""
    from cmdsvc import app  # noqa: PLC0415
    from cmdsvc.service import secretkey  # noqa: PLC0415
    from cmdsvc.store import open_store  # noqa: PLC0415

    settings = config.load()

    async def rotate() -> tuple[int, list[str]]:
        with app.lock(settings.data_dir):
            store = await open_store(settings.url)
            try:
                return await secretkey.rotate(settings.keys_dir, store, lost=lost)
            finally:
                await store.aclose()

    count, removed = asyncio.run(rotate())
    for name in removed:
        print(f"removed {name}: no key opens it")  # noqa: T201
    print(  # noqa: T201
        f"{count} values are sealed with a new key; put a copy of"
        f" {settings.keys_dir / secretkey.FILE} where the others are"
    )


@cli.command()
def demo() -> None:
    """Show the whole thing at work: a server of its own, the real ssh client, nothing left behind."""
    from cmdsvc.demo import demo as run_demo  # noqa: PLC0415

    sys.exit(run_demo())
