"""What the tests of stores share: the backends, examples, and ways to interrupt."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine, event, inspect, text
from sqlalchemy.ext.asyncio import create_async_engine

from cmdsvc.model import Delivery, Door, Hook, Run, Token
from cmdsvc.store import Arrival, Store
from tests.e2e import forked

NOW = datetime(2026, 5, 4, 3, 2, 1, 123456, tzinfo=UTC)
LATER = NOW + timedelta(seconds=1)


def a_command(name: str = "hello", **changes: Any) -> dict[str, Any]:
    return {
        "owner": "ann",
        "name": name,
        "description": "says hello",
        "source": b"#!cmd alpine\n#!/bin/sh\necho hello\n",
        "author": "ann",
        "digest": "d" * 64,
        "created_at": NOW,
    } | changes


def a_run(run_id: str = "r1", **changes: Any) -> Run:
    values = {
        "id": run_id,
        "command": "ann/hello",
        "version": 1,
        "user": "ann",
        "door": Door.SSH,
        "started_at": NOW,
    }
    return Run(**(values | changes))


def a_token(id_: str, **changes: Any) -> Token:
    values = {
        "id": id_,
        "owner": "ann",
        "description": "",
        "created_at": NOW,
        "expires_at": None,
        "last_used_at": None,
    }
    return Token(**(values | changes))


def a_hook(name: str = "push", **changes: Any) -> Hook:
    values = {
        "id": 0,
        "command": "ann/hello",
        "name": name,
        "scheme": "github",
        "options": {},
        "secret": b"\0sealed",
        "created_at": NOW,
    }
    return Hook(**(values | changes))


def an_arrival(
    id_: str, hook: Hook | None, *, same: str = "", window: float | None = None, **changes: Any
) -> Arrival:
    """Of what no other is a repetition of, unless told. No hook: a schedule's."""
    values = {
        "id": id_,
        "command": hook.command if hook else "ann/hello",
        "hook": hook.name if hook else "",
        "event": "push",
        "received_at": NOW,
        "body": b"\0\xff" + id_.encode(),
        "env": {b"CONTENT_TYPE": b"application/json", b"HTTP_X": b"\xff\n"},
    }
    delivery = Delivery(**(values | changes))
    return Arrival(delivery, hook.id if hook else None, same or id_, window)


async def lines(store: Store) -> list[str]:
    """The record, oldest first."""
    return [
        f"{line.user} {line.action} {line.subject} {line.detail}".rstrip()
        for line in reversed(await store.entries(limit=1000))
    ]


async def query(url: str, *statements: str) -> list[Any]:
    """What the last one returns, past the store."""
    engine = create_async_engine(url)
    rows: list[Any] = []
    async with engine.begin() as connection:
        for statement in statements:
            result = await connection.execute(text(statement))
            rows = list(result) if result.returns_rows else []
    await engine.dispose()
    return rows


async def everything(url: str) -> dict[str, list[Any]]:
    """All rows of all tables, past the store."""
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        names = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
        rows = {
            name: list(await connection.execute(text(f'SELECT * FROM "{name}"'))) for name in names
        }
    await engine.dispose()
    return rows


@contextmanager
def at(start: str, act: Callable[[], object]) -> Iterator[None]:
    """Acts before the database has a statement that begins so; "BEGIN" and "COMMIT" are too."""

    def statement(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(start):
            act()

    def boundary(_connection: Any) -> None:
        act()

    kinds = {"BEGIN": ("begin", boundary), "COMMIT": ("commit", boundary)}
    kind, listener = kinds.get(start, ("before_cursor_execute", statement))
    event.listen(Engine, kind, listener)
    try:
        yield
    finally:
        event.remove(Engine, kind, listener)


def fail() -> None:
    raise RuntimeError


async def killed(url: str, program: str) -> str:
    """Runs `program`, which is to kill itself, against an open `store`; what it wrote."""
    status, out, err = await forked.child("tests.store.mortal", url, program)
    assert status == -signal.SIGKILL, err.decode()
    return out.decode()
