"""The composition root: from the settings to a running service, and down again."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import logging
import os
import resource
import secrets
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from cmdsvc import systemd
from cmdsvc.config import Settings, split_address
from cmdsvc.engine import Engine, EngineSettings, Sources
from cmdsvc.errors import CmdError, EngineError, UsageError
from cmdsvc.service import readymade
from cmdsvc.service.admission import Admission
from cmdsvc.service.answers import Answers
from cmdsvc.service.builds import Builds
from cmdsvc.service.commands import Commands, Policy
from cmdsvc.service.deliveries import MOST, Deliveries
from cmdsvc.service.editor import Editor
from cmdsvc.service.environment import Environment
from cmdsvc.service.figures import Figures
from cmdsvc.service.health import Health
from cmdsvc.service.hooks import Hooks
from cmdsvc.service.invocation import Invocations
from cmdsvc.service.keeping import Keeping
from cmdsvc.service.notices import Notices
from cmdsvc.service.prewarm import Prewarm
from cmdsvc.service.retention import Retention
from cmdsvc.service.runs import Runs
from cmdsvc.service.schedules import Schedules
from cmdsvc.service.secretkey import open_sealer
from cmdsvc.service.sharing import Sharing
from cmdsvc.service.top import Top
from cmdsvc.service.versions import Versions
from cmdsvc.ssh.certificates import Authorities
from cmdsvc.ssh.identities import Identities
from cmdsvc.ssh.keys import KeyRing, host_key
from cmdsvc.ssh.ownkeys import OwnKeys
from cmdsvc.ssh.published import Published
from cmdsvc.ssh.revocation import Revocations
from cmdsvc.ssh.server import SshServer, SshSettings
from cmdsvc.ssh.verbs import Services
from cmdsvc.store import open_store
from cmdsvc.web.server import WebServer, WebServices, WebSettings

log = logging.getLogger("cmdsvc")

FAREWELL = 2.0
"""Seconds in which whoever is cut off at the end is told so."""


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
        warm=settings.warm,
        network_allow=settings.network_allow,
    )


def web_settings(settings: Settings) -> WebSettings:
    """UsageError (64) where they cannot be."""
    host, port = split_address(settings.http_listen)
    certificate = None
    if settings.tls_cert is not None and settings.tls_key is not None:
        certificate = (settings.tls_cert, settings.tls_key)
    elif settings.tls_cert != settings.tls_key:
        raise UsageError("CMDSVC_TLS_CERT and CMDSVC_TLS_KEY belong together", "set both, or none")
    return WebSettings(
        host=host,
        port=port,
        max_connections=settings.max_connections,
        max_body=settings.max_body,
        folder=settings.data_dir.absolute(),
        certificate=certificate,
        proxies=settings.trusted_proxies,
        metrics_token=settings.metrics_token.get_secret_value(),
    )


def open_identities(settings: Settings) -> Identities:
    """Who may log in. CmdError where a file that says so cannot be used."""
    authorities = Authorities(settings.user_ca_keys)
    authorities.load()
    revoked = Revocations(settings.revoked_keys)
    revoked.load()
    published = Published(
        settings.keys_url,
        settings.keys_url_users,
        settings.data_dir / "published",
        settings.keys_url_stale,
    )
    return Identities(KeyRing(settings.keys_dir), published, authorities, revoked)


def make_engine(name: str, settings: EngineSettings) -> Engine:
    """The engine of that name, closed. Its package is imported only when it is used."""
    if name == "docker":
        from cmdsvc.engine.docker import DockerEngine  # noqa: PLC0415

        return DockerEngine(settings)
    from cmdsvc.engine.bubblewrap import BubblewrapEngine  # noqa: PLC0415

    return BubblewrapEngine(settings)


@contextlib.asynccontextmanager
async def open_engine(settings: Settings, *, beside: bool = False) -> AsyncIterator[Engine]:
    """The engine that the settings name; `auto`: docker where it answers, else bubblewrap.

    `beside`: see Engine.open.
    """
    made = engine_settings(settings)
    names = ("docker", "bubblewrap") if settings.engine == "auto" else (settings.engine,)
    for name in names:
        engine = make_engine(name, made)
        try:
            await engine.open(beside=beside)
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


class HeldError(CmdError):
    """Another server has the data folder."""


@contextlib.contextmanager
def lock(data_dir: Path) -> Iterator[None]:
    """Holds the data folder; HeldError where it is taken, CmdError where it cannot be used."""
    with _lock_file(data_dir) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HeldError(
                f"another server runs on {data_dir}", "stop it, or set CMDSVC_DATA_DIR"
            ) from None
        yield


def _lock_file(data_dir: Path) -> TextIO:
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        return (data_dir / "lock").open("a")
    except OSError as error:
        raise CmdError(
            f"{data_dir} cannot be used: {error.strerror}",
            "set CMDSVC_DATA_DIR to a folder that can be written to",
        ) from None


async def serve(settings: Settings) -> int:
    """Runs the service until SIGTERM or SIGINT; 0 when it went down in order."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)  # a run holds half a dozen
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    given = systemd.listening_sockets()  # before there are children
    async with AsyncExitStack() as stack:
        for sock in given:
            stack.callback(sock.close)
        stack.enter_context(lock(settings.data_dir))
        store = await open_store(settings.url, server=_instance(settings.data_dir))
        stack.push_async_callback(store.aclose)
        sealer = await open_sealer(settings.keys_dir, store)
        engine = await stack.enter_async_context(open_engine(settings))
        lost = await store.mark_lost(datetime.now(UTC))
        if lost:
            log.warning("%d runs of a server that died are marked lost", lost)
        figures = Figures(engine.name)
        builds = Builds(engine, settings.limits, figures)
        commands = Commands(
            store,
            builds,
            readymade.load(settings.bases),
            Policy(
                settings.limits,
                settings.max_source,
                settings.bases,
                engine.networks,
                settings.max_commands,
                settings.max_stored,
                settings.imports,
            ),
        )
        env = Environment(store, commands, sealer)
        identities = open_identities(settings)
        stack.push_async_callback(identities.published.aclose)
        sharing = Sharing(store, commands, sealer.hash, identities.ring.knows)
        invocations = Invocations(engine, commands, env, settings.limits)
        runs = Runs(
            store,
            engine,
            builds,
            commands,
            invocations,
            figures=figures,
            admission=Admission(settings.max_runs, settings.max_runs_per_user, settings.queue_wait),
            output_max=settings.output_max,
        )
        deliveries = Deliveries(
            store,
            runs,
            most=min(MOST, max(1, min(settings.max_runs, settings.max_runs_per_user) // 2)),
            attempted=figures.attempted,
            failed=figures.failed,
        )
        stack.push_async_callback(deliveries.aclose)
        stack.push_async_callback(runs.aclose)
        hooks = Hooks(store, commands, sealer, deliveries.wake, most=settings.max_waiting)
        schedules = Schedules(
            store,
            commands,
            deliveries.wake,
            catch_up=settings.catch_up,
            most=settings.max_waiting,
        )
        retention = Retention(
            store, settings.runs_keep, settings.outputs_keep, settings.deliveries_keep
        )
        await stack.enter_async_context(retention.regularly())
        notices = Notices(store, runs)
        await stack.enter_async_context(notices.watched())
        top = Top(
            store,
            engine,
            builds,
            runs,
            data_dir=settings.data_dir,
            outputs_keep=settings.outputs_keep,
        )
        ssh_socket, http_socket = [*given, None, None][:2]
        host, port = (
            ssh_socket.getsockname()[:2] if ssh_socket else split_address(settings.ssh_listen)
        )
        ssh = SshServer(
            SshSettings(
                host=host,
                port=port,
                max_connections=settings.max_connections,
                login_timeout=settings.login_timeout,
                operators=frozenset(settings.operators),
                socket=ssh_socket,
            ),
            host_key(settings.keys_dir),
            identities,
            Services(
                commands=commands,
                runs=runs,
                sharing=sharing,
                env=env,
                hooks=hooks,
                schedules=schedules,
                versions=Versions(store, commands, builds),
                top=top,
                keys=OwnKeys(identities, store),
                keeping=Keeping(
                    store,
                    engine,
                    builds=builds,
                    commands=commands,
                    runs=runs,
                    notices=notices,
                    retention=retention,
                    data_dir=settings.data_dir,
                ),
                notices=notices,
                editor=Editor(engine, builds, settings.limits, settings.bases, settings.max_source),
                max_source=settings.max_source,
                address=lambda: (host, ssh.port),
            ),
        )
        notices.ousting.append(ssh.oust)
        web = WebServer(
            replace(web_settings(settings), socket=http_socket),
            WebServices(
                runs=runs,
                sharing=sharing,
                hooks=hooks,
                answers=Answers(store),
                health=Health(store, engine, runs),
                figures=lambda: figures.exposition(store, runs.admission, engine),
                failed=figures.failed,
            ),
        )
        top.doors += [ssh.load, web.load]
        await ssh.open()
        stack.push_async_callback(ssh.aclose)
        await web.open()
        stack.push_async_callback(web.aclose)
        await deliveries.start()
        await stack.enter_async_context(schedules.working())
        prewarm = Prewarm(engine, builds, commands, invocations)
        await stack.enter_async_context(
            prewarm.working(settings.warm_commands if settings.warm else ())
        )
        gc.freeze()  # what is there now stays: no run waits while it is looked through
        gc.enable()
        _announce(settings, engine, ssh, host, web.url)
        systemd.notify("READY=1")
        for finding in await engine.check():
            if finding.level != "ok":
                log.warning("%s; %s", finding.what, finding.hint)
        await stop.wait()
        systemd.notify("STOPPING=1")
        log.info("draining: no new runs, those going on have %g s", settings.drain)
        ended = await asyncio.gather(
            *(part.drain(settings.drain) for part in (deliveries, runs, ssh, web))
        )
        if not all(ended):
            log.warning("what did not end in time is stopped")
            runs.cut_off()
            await asyncio.gather(ssh.drain(FAREWELL), web.drain(FAREWELL))
    log.info("stopped")
    return 0


def _announce(settings: Settings, engine: Engine, ssh: SshServer, host: str, url: str) -> None:
    where = "127.0.0.1" if host == "0.0.0.0" else "::1" if host == "::" else host  # noqa: S104
    log.info(
        "ready",
        extra={
            "fields": {
                "engine": engine.name,
                "networks": ",".join(sorted(engine.networks)),
                "data": str(settings.data_dir.absolute()),
                "host_key": ssh.fingerprint,
                "http": url,
            }
        },
    )
    others = settings.keys_url_users or settings.user_ca_keys
    if not others and not any((settings.keys_dir / "users").glob("*.pub")):
        log.warning("nobody can log in yet: cmdsvc user add NAME PUBLIC_KEY_FILE")
    print(f"ssh -p {ssh.port} {where}\n{url}", flush=True)  # noqa: T201 - for the operator


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
