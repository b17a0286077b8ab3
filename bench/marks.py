"""`python -m bench.marks serve`: cmdsvc, which notes when a run gets from one of its parts to another.

Functions are wrapped from outside, nothing in the service is there for it. A mark costs about a
microsecond; at the end they are written to the file that BENCH_MARKS names.
"""

from __future__ import annotations

import inspect
import json
import os
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from asyncssh.constants import MSG_NEWKEYS

from cmdsvc import app, cli
from cmdsvc.relay import Caller, Job, relay
from cmdsvc.service import runs
from cmdsvc.service.commands import Commands
from cmdsvc.service.outputs import Watched
from cmdsvc.ssh.link import Link
from cmdsvc.ssh.server import Connection
from cmdsvc.ssh.session import Session
from cmdsvc.store import Store
from cmdsvc.web import connection as http

FILE = "BENCH_MARKS"
Mark = tuple[str, int, int]
"""What has happened, when (perf_counter), and the processor time of the event loop's thread till
then; both in nanoseconds."""

made: list[Mark] = []


def mark(name: str) -> None:
    made.append((name, time.perf_counter_ns(), time.thread_time_ns()))


def note(owner: Any, name: str, *, begun: str = "", ended: str = "") -> None:
    """Has calls of a function or method marked."""
    function = getattr(owner, name)
    setattr(owner, name, _noted(function, begun, ended))


def _noted(function: Callable[..., Any], begun: str, ended: str) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(function):

        @wraps(function)
        async def awaited(*args: Any, **more: Any) -> Any:
            if begun:
                mark(begun)
            result = await function(*args, **more)
            if ended:
                mark(ended)
            return result

        return awaited

    @wraps(function)
    def called(*args: Any, **more: Any) -> Any:
        if begun:
            mark(begun)
        result = function(*args, **more)
        if ended:
            mark(ended)
        return result

    return called


def _watch_ssh() -> None:
    note(Link, "connection_made", begun="accepted")
    note(Connection, "begin_auth", begun="named")
    note(Connection, "auth_completed", ended="logged in")
    note(Connection, "session_requested", begun="session")
    note(Session, "session_started", begun="asked")
    send_packet = Link.send_packet

    def noted(link: Link, kind: int, *args: Any, **more: Any) -> None:
        send_packet(link, kind, *args, **more)
        if kind == MSG_NEWKEYS:
            mark("keys")

    Link.send_packet = noted  # type: ignore[method-assign]


def _watch_http() -> None:
    note(http.Connection, "connection_made", begun="accepted")
    note(http.Connection, "data_received", begun="request")


def _watch_runs() -> None:
    note(runs.Runs, "run", begun="run", ended="answered")
    note(Commands, "find", ended="found")
    note(Watched, "write", begun="first byte")

    async def noted(caller: Caller, job: Job, **more: Any) -> Any:
        job.wait = _noted(job.wait, "", "ended")  # type: ignore[method-assign]
        outcome = await relay(caller, job, **more)
        mark("closed")
        return outcome

    runs.relay = noted  # type: ignore[assignment]
    make_engine = app.make_engine

    def made_engine(*args: Any) -> Any:
        engine = make_engine(*args)
        note(engine, "start", ended="started")
        return engine

    app.make_engine = made_engine
    open_store = app.open_store

    async def opened(*args: Any, **more: Any) -> Store:
        store = await open_store(*args, **more)
        note(store, "begin_run", ended="recorded")
        return store

    app.open_store = opened  # type: ignore[attr-defined]


def main() -> None:
    _watch_ssh()
    _watch_http()
    _watch_runs()
    try:
        cli.run()
    finally:
        Path(os.environ[FILE]).write_text(json.dumps(made))


if __name__ == "__main__":
    main()
