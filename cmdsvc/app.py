"""The composition root: from the settings to a running service, and down again."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import resource
import secrets
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

from cmdsvc.config import Settings, split_address
from cmdsvc.engine import Engine, EngineSettings, Sources
from cmdsvc.errors import CmdError, EngineError
from cmdsvc.service import readymade
from cmdsvc.service.builds import Builds
from cmdsvc.service.commands import Commands, Policy
from cmdsvc.service.editor import Editor
from cmdsvc.service.runs import Runs
from cmdsvc.ssh.keys import KeyRing, host_key
from cmdsvc.ssh.server import SshServer, SshSettings
from cmdsvc.ssh.verbs import Services
from cmdsvc.store import open_store

log = logging.getLogger("cmdsvc")


def engine_settings(settings: Settings) -> EngineSettings:
    return EngineSettings(
        data_dir=settings.data_dir.absolute() / "engine",
        instance=_instance(settings.data_dir),
        sources=Sources(
            bases=settings.bases,
            alpine_mirrors=settings.alpine_mirrors,
            apk_keys=settings.apk_keys.absolute() if settings.apk_keys else None,
        ),
        limits=settings.limits,
        build_timeout=settings.build_timeout,
        docker_runtime=settings.docker_runtime,
        network_allow=settings.network_allow,
    )


def make_engine(name: str, settings: EngineSettings) -> Engine:
    """The engine of that name, closed. Its package is imported only when it is used."""
    if name == "docker":
        from cmdsvc.engine.docker import DockerEngine  # noqa: PLC0415

        return DockerEngine(settings)
    from cmdsvc.engine.bubblewrap import BubblewrapEngine  # noqa: PLC0415

    return BubblewrapEngine(settings)


@contextlib.asynccontextmanager
async def open_engine(settings: Settings) -> AsyncIterator[Engine]:
    """The engine that the settings name; `auto`: docker where it answers, else bubblewrap."""
    made = engine_settings(settings)
    names = ("docker", "bubblewrap") if settings.engine == "auto" else (settings.engine,)
    for name in names:
        engine = make_engine(name, made)
        try:
            await engine.open()
        except EngineError as error:
            await engine.aclose()
            if name == names[-1]:
                raise
            log.info("no %s engine: %s", name, error.what)
            continue
        try:
            yield engine
        finally:
            await engine.aclose()
        return


@contextlib.contextmanager
def lock(data_dir: Path) -> Iterator[None]:
    """Holds the data folder; CmdError where another server has it."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (data_dir / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CmdError(
                f"another server runs on {data_dir}", "stop it, or set CMDSVC_DATA_DIR"
            ) from None
        yield


async def serve(settings: Settings) -> int:
    """Runs the service until SIGTERM or SIGINT; 0 when it went down in order."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)  # a run holds half a dozen
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    async with AsyncExitStack() as stack:
        stack.enter_context(lock(settings.data_dir))
        store = await open_store(settings.url, server=_instance(settings.data_dir))
        stack.push_async_callback(store.aclose)
        engine = await stack.enter_async_context(open_engine(settings))
        lost = await store.mark_lost(datetime.now(UTC))
        if lost:
            log.warning("%d runs of a server that died are marked lost", lost)
        builds = Builds(engine, settings.limits)
        commands = Commands(
            store,
            builds,
            readymade.load(settings.bases),
            Policy(settings.limits, settings.max_source, settings.bases, engine.networks),
        )
        runs = Runs(
            store,
            engine,
            builds,
            commands,
            limits=settings.limits,
            max_runs=settings.max_runs,
            max_runs_per_user=settings.max_runs_per_user,
        )
        stack.push_async_callback(runs.aclose)
        host, port = split_address(settings.ssh_listen)
        ring = KeyRing(settings.keys_dir)
        ssh = SshServer(
            SshSettings(
                host=host,
                port=port,
                max_connections=settings.max_connections,
                login_timeout=settings.login_timeout,
                operators=frozenset(settings.operators),
            ),
            host_key(settings.keys_dir),
            ring,
            Services(
                commands,
                runs,
                Editor(engine, builds, settings.limits, settings.bases, settings.max_source),
                settings.max_source,
            ),
        )
        await ssh.open()
        stack.push_async_callback(ssh.aclose)
        _announce(settings, engine, ssh, host)
        for finding in await engine.check():
            if finding.level != "ok":
                log.warning("%s; %s", finding.what, finding.hint)
        await stop.wait()
        log.info("draining: no new runs, those going on have %g s", settings.drain)
        runs.draining = True
        if not await ssh.drain(settings.drain):
            log.warning("what did not end in time is stopped")
    log.info("stopped")
    return 0


def _announce(settings: Settings, engine: Engine, ssh: SshServer, host: str) -> None:
    where = "127.0.0.1" if host == "0.0.0.0" else "::1" if host == "::" else host  # noqa: S104
    log.info(
        "ready",
        extra={
            "fields": {
                "engine": engine.name,
                "networks": ",".join(sorted(engine.networks)),
                "data": str(settings.data_dir.absolute()),
                "host_key": ssh.fingerprint,
            }
        },
    )
    if not any((settings.keys_dir / "users").glob("*.pub")):
        log.warning("nobody can log in yet: cmdsvc user add NAME PUBLIC_KEY_FILE")
    print(f"ssh -p {ssh.port} {where}", flush=True)  # noqa: T201 - the one line for the operator


def _instance(data_dir: Path) -> str:
    """Names this service's sandboxes over restarts; made once, kept in the data folder."""
    path = data_dir / "instance"
    with contextlib.suppress(FileNotFoundError):
        return path.read_text().strip()
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = secrets.token_hex(4)
    fresh = path.with_name(f"instance.{os.getpid()}")
    fresh.write_text(name)
    fresh.rename(path)
    return name
