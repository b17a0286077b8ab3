"""The operator's command line."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from cmdsvc import config
from cmdsvc.errors import CmdError, UsageError
from cmdsvc.model import READY_MADE, check_name

cli = typer.Typer(
    name="cmdsvc",
    help="Shell scripts as a service over SSH.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
user = typer.Typer(help="Who may log in.", no_args_is_help=True)
cli.add_typer(user, name="user")


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
    from cmdsvc import app, log  # noqa: PLC0415 - the other commands do not need it

    settings = config.load()
    log.set_up(settings.log)
    sys.exit(asyncio.run(app.serve(settings)))


@cli.command()
def check() -> None:
    """Say what is in force and what is wrong; exit 1 where something is."""
    from cmdsvc.check import check as run_check  # noqa: PLC0415

    sys.exit(asyncio.run(run_check()))


@cli.command()
def pull(
    bases: Annotated[
        list[str] | None, typer.Argument(help="BASE[:TAG] ..., by default alpine")
    ] = None,
) -> None:
    """Fetch bases, again where they are here already."""
    from cmdsvc import app  # noqa: PLC0415

    settings = config.load()

    async def fetch() -> None:
        async with app.open_engine(settings) as engine:
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


@cli.command()
def demo() -> None:
    """Show the whole thing at work: a server of its own, the real ssh client, nothing left behind."""
    from cmdsvc.demo import demo as run_demo  # noqa: PLC0415

    sys.exit(run_demo())


@user.command("add")
def user_add(
    name: Annotated[str, typer.Argument(help="the user's name here")],
    file: Annotated[Path | None, typer.Argument(help="public keys; - or none is stdin")] = None,
    operator: Annotated[bool, typer.Option("--operator", help="runs the service too")] = False,
) -> None:
    """Let a user log in with the public keys in FILE (authorized_keys format)."""
    from cmdsvc.ssh.keys import add_user  # noqa: PLC0415

    settings = config.load()
    check_name(name)
    if name in {READY_MADE, "public"} or name.startswith("cmd_"):
        raise UsageError(f"{name!r} is nobody's name", "choose another")
    try:
        text = sys.stdin.read() if file in {None, Path("-")} else file.read_text()
        added = add_user(settings.keys_dir, name, text)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot read {file or 'stdin'}: {error}", "give a public key file"
        ) from None
    print(f"{name}: {added} new key{'' if added == 1 else 's'}")  # noqa: T201
    if operator:
        print(config.add_operator(settings, name))  # noqa: T201
