"""`:top`: what goes on, for operators; live on a terminal."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime

from cmdsvc.errors import one_line
from cmdsvc.model import Terminal
from cmdsvc.relay import CallerGone, Resize, Signal
from cmdsvc.service.top import Picture, Resource, Sandbox
from cmdsvc.ssh.verbs import Builtin, Call, Parser, layout, spell_size

ENTER = "\x1b[?1049h\x1b[?25l"
LEAVE = "\x1b[?25h\x1b[?1049l"
"""The alternate screen without a cursor, and back (xterm's control sequences)."""
QUIT = b"qQ\x03\x04"
PERIOD = 1.0
"""Seconds between two pictures."""
SANDBOX = ("run", "command", "user", "seconds", "cpu", "memory", "output")
RESOURCE = ("resource", "use", "limit", "saturation", "of", "errors")
BYTES = frozenset({"memory", "outputs", "stored"})


def _arguments(parser: Parser) -> None:
    parser.add_argument("-j", "--json", action="store_true", help="a list of objects, once")


async def _run(call: Call) -> int:
    picture = await call.services.top.picture(call.identity)
    if call.options.json:
        await call.out(json.dumps(_objects(picture), indent=2) + "\n")
    elif call.terminal is None:
        rows = [(name, kind, *fields.values()) for name, kind, fields in _named(picture)]
        await call.table((), rows)
    else:
        await _live(call, call.terminal, picture)
    return 0


def _named(picture: Picture) -> Iterator[tuple[str, str, dict[str, object]]]:
    for sandbox in picture.sandboxes:
        fields = asdict(sandbox)
        yield fields.pop("run_id"), "run", fields
    for resource in picture.resources:
        fields = asdict(resource)
        yield fields.pop("name"), "resource", fields


def _objects(picture: Picture) -> list[dict[str, object]]:
    return [{"name": name, "kind": kind, **fields} for name, kind, fields in _named(picture)]


async def _live(call: Call, terminal: Terminal, picture: Picture) -> None:
    """Draws a picture a second, until a key ends it or the service goes down."""
    size = terminal
    before = picture

    async def resized() -> None:
        nonlocal size
        async for event in call.caller.events():
            match event:
                case Resize(columns, rows):
                    size = replace(size, columns=columns, rows=rows)
                case Signal():
                    return

    ends = {asyncio.ensure_future(call.typed(QUIT)), asyncio.ensure_future(resized())}
    gone = False
    try:
        await call.out(ENTER)
        while True:
            await call.out(_screen(picture, before, size))
            over, _ = await asyncio.wait(ends, timeout=PERIOD, return_when=asyncio.FIRST_COMPLETED)
            if over or call.services.runs.draining:
                for end in over:
                    end.result()
                return
            before, picture = picture, await call.services.top.picture(call.identity)
    except (CallerGone, asyncio.CancelledError):
        gone = True
        raise
    finally:
        for end in ends:
            end.cancel()
        await asyncio.gather(*ends, return_exceptions=True)
        if not gone:
            await call.out(LEAVE)


def _screen(picture: Picture, before: Picture, size: Terminal) -> str:
    """Every line of the screen, each cleared behind its end, and what is below them."""
    shown = sorted(
        ((sandbox, _cpu(sandbox, picture, before)) for sandbox in picture.sandboxes),
        key=lambda pair: -(pair[1] or 0.0),
    )
    room = max(0, size.rows - len(picture.resources) - 5)
    title = f"cmdsvc  {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC  {len(shown)} runs  q quits"
    lines = [
        title[: size.columns],
        "",
        *layout(RESOURCE, [_resource(r) for r in picture.resources], size.columns),
        "",
        *layout(SANDBOX, [_sandbox(s, cpu) for s, cpu in shown[:room]], size.columns),
    ]
    return "\x1b[H" + "\n".join(f"{line}\x1b[K" for line in lines[: size.rows]) + "\x1b[J"


def _cpu(sandbox: Sandbox, picture: Picture, before: Picture) -> float | None:
    """Processors that it kept busy since the picture before, or else since its start."""
    if sandbox.cpu_seconds is None:
        return None
    for old in before.sandboxes:
        if old.run_id == sandbox.run_id and old.cpu_seconds is not None and picture is not before:
            passed = max(picture.at - before.at, 0.001)
            return max(0.0, sandbox.cpu_seconds - old.cpu_seconds) / passed
    return sandbox.cpu_seconds / max(sandbox.seconds, 0.001)


def _sandbox(sandbox: Sandbox, cpu: float | None) -> Sequence[str]:
    return (
        sandbox.run_id,
        one_line(sandbox.command),
        one_line(sandbox.user),
        f"{sandbox.seconds:.0f}",
        "" if cpu is None else f"{cpu:.2f}",
        "" if sandbox.memory is None else spell_size(sandbox.memory),
        spell_size(sandbox.output),
    )


def _resource(resource: Resource) -> Sequence[str]:
    spell = spell_size if resource.name in BYTES else str
    full = str(resource.full) if resource.full else ""
    return (
        resource.name,
        spell(resource.use),
        spell(resource.limit),
        str(resource.saturation) if full else "",
        full,
        str(resource.errors),
    )


BUILTIN = Builtin(
    verb=":top",
    summary="Show what goes on, and what it uses (operators); live with ssh -t.",
    example="ssh -t HOST :top",
    run=_run,
    arguments=_arguments,
)
