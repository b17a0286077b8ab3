"""The embedded engine: sandboxes by bubblewrap, layers by overlayfs, no daemon."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cmdsvc.engine import (
    AGENT_PATH,
    Agent,
    EngineSettings,
    Finding,
    Invocation,
    Layer,
    Progress,
    Usage,
)
from cmdsvc.engine.bubblewrap import arguments, cgroups
from cmdsvc.engine.bubblewrap.build import RESOLV_CONF, Builder
from cmdsvc.engine.bubblewrap.findings import findings
from cmdsvc.engine.bubblewrap.job import BubblewrapJob
from cmdsvc.engine.bubblewrap.network import Namespace, NetworkPool
from cmdsvc.engine.bubblewrap.place import FIRST_USER, place_for
from cmdsvc.engine.bubblewrap.prepared import Kind, Prepared
from cmdsvc.engine.bubblewrap.sandbox import Sandbox, Task, hand_over, make
from cmdsvc.engine.bubblewrap.store import Store, remove
from cmdsvc.engine.bubblewrap.stubs import Stub, Stubs
from cmdsvc.engine.firewall import Destination
from cmdsvc.engine.warm import Warm
from cmdsvc.errors import BusyError, DataError, EngineError
from cmdsvc.model import Limits, Network, Outcome
from cmdsvc.recipe import Recipe

log = logging.getLogger(__name__)

BUILD_FLOOR = Limits(timeout=0, memory=1 << 30, cpus=1.0, pids=512, disk=1 << 30)
"""What a build may use where runs may use less."""

SETTLING = (0.05, 0.2)
"""Seconds between looks whether a layer is in use: a run that ended lets go of it a moment later."""

_Release = Callable[[], Awaitable[None]]


class BubblewrapEngine:
    """See `engine.Engine`. As root, sandboxes run as `uid` and the users after it."""

    name = "bubblewrap"

    def __init__(self, settings: EngineSettings, *, uid: int = FIRST_USER) -> None:
        self._settings = settings
        self._uid = uid if os.geteuid() == 0 else None
        self._store = Store(settings.data_dir.absolute(), self._uid)
        self._cgroups: cgroups.Cgroups | None = None
        self._stubs: Stubs | None = None
        self._pool: NetworkPool | None = None
        self._no_network = ""
        self._run_users: int | None = None
        self._build_users: int | None = None
        self._builder: Builder | None = None
        self._jobs: dict[BubblewrapJob, str] = {}
        """With the ids of their runs, "" of a build's."""
        self._mending = asyncio.Lock()
        self._warm: Warm[Kind, Prepared] = Warm(self._prepare_ahead, settings.warm)

    @property
    def networks(self) -> frozenset[Network]:
        both = {Network.NONE} | ({Network.INTERNET} if self._pool is not None else set())
        return frozenset(both)

    @property
    def warm(self) -> int:
        return len(self._warm)

    async def open(self, *, beside: bool = False) -> None:
        try:
            await self._open(beside=beside)
        except OSError as error:
            await self.aclose()
            raise EngineError(
                f"the engine cannot use {self._settings.data_dir}: {error}",
                "check the folder and its rights",
            ) from error
        except BaseException:
            await self.aclose()
            raise

    async def _open(self, *, beside: bool) -> None:
        place = place_for(self._store)
        await asyncio.to_thread(self._store.open, beside=beside)
        if not beside:  # what has the instance's name is the server's
            await self._open_cgroups()
        self._stubs = Stubs(place, self._cgroups, self._settings.limits)
        await self._stubs.open()
        if self._uid is not None:
            self._build_users = await self._stubs.users()
            if self._cgroups is not None and "pids" in self._cgroups.folders:
                # Else each run is counted in a namespace of its own, with one user.
                self._run_users = await self._stubs.users()
        self._builder = Builder(self._settings, self._store, self._step, self._build_users)
        self._memory_counted = self._cgroups is not None and "memory" in self._cgroups.folders
        if not beside:
            self._pool, self._no_network = await _network(self._settings)

    async def aclose(self) -> None:
        await self._warm.aclose()
        await asyncio.gather(*(job.aclose() for job in list(self._jobs)))
        stubs, self._stubs = self._stubs, None
        if stubs is not None:
            await stubs.aclose()
        groups, self._cgroups = self._cgroups, None
        if groups is not None:
            await groups.clear()
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.aclose()
        for users in (self._run_users, self._build_users):
            if users is not None:
                os.close(users)
        self._run_users = self._build_users = None
        self._builder = None

    async def check(self) -> list[Finding]:
        """Of itself where it is open; else it tries it all on the side, in a folder of its own."""
        if self._stubs is not None:
            return self._findings()
        folder = await asyncio.to_thread(tempfile.mkdtemp, prefix="cmdsvc-check-")
        settings = replace(
            self._settings, data_dir=Path(folder), instance=f"check-{Path(folder).name}"
        )
        probe = BubblewrapEngine(settings, uid=self._uid or FIRST_USER)
        try:
            await probe.open()
            await probe._probe()
            return probe._findings()
        except EngineError as error:
            return [Finding("error", f"bubblewrap: {error.what}", error.hint)]
        finally:
            await probe.aclose()
            await asyncio.to_thread(remove, Path(folder))

    def _findings(self) -> list[Finding]:
        return findings(
            self._uid,
            self._cgroups,
            network=self._pool is not None,
            why_not=self._no_network,
        )

    async def pull(self, base: str, tag: str, progress: Progress) -> None:
        source = self._settings.sources.bases.get(base)
        if source is None:
            raise DataError(
                f"no base is called {base!r}",
                f"use one of {', '.join(sorted(self._settings.sources.bases))}",
            )
        await self._opened_builder().pull(base, tag, source, progress)

    async def layers(self) -> list[Layer]:
        sources = set(self._settings.sources.bases.values())
        try:
            return await asyncio.to_thread(self._store.layers, sources)
        except OSError as error:
            raise EngineError(f"the layers cannot be counted: {error}") from error

    async def remove(self, layer: Layer) -> bool:
        if layer.base and self._opened_builder().busy:
            return False
        try:
            if not layer.base:
                made = self._store.made(layer)
                await self._warm.drop(lambda kind: kind.layer == made)
            gone = self._store.detach(layer)
            for pause in SETTLING:
                if gone is not None:
                    break
                await asyncio.sleep(pause)
                gone = self._store.detach(layer)
            if gone is None:
                return False
            await asyncio.to_thread(remove, gone)
        except OSError as error:
            raise EngineError(f"the layer cannot be removed: {error}") from error
        return True

    async def purge(self) -> None:
        await self._warm.drop()
        if self._stubs is not None:
            await self._stubs.settled()  # what has ended lets go of its layer behind its back
        try:
            await asyncio.to_thread(self._store.purge)
        except BlockingIOError:
            raise BusyError("a layer is in use", "wait until nothing runs") from None
        except OSError as error:
            raise EngineError(f"the layers cannot be removed: {error}") from error

    async def resolve(self, image: str, progress: Progress) -> str:
        del progress
        raise _no_images(image)

    async def has(self, recipe: Recipe) -> bool:
        return self._store.has(recipe)

    async def stale(self, recipe: Recipe) -> bool:
        return self._store.stale(recipe)

    async def build(self, recipe: Recipe, progress: Progress, *, again: bool = False) -> None:
        if recipe.imported:
            raise _no_images(recipe.base)
        await self._opened_builder().build(recipe, progress, again=again)
        await self._retire(self._store.replaced)

    async def _retire(self, names: Iterable[str]) -> None:
        """Removes layers that were made again, as far as nothing runs on them."""
        for name in list(names):
            try:
                await self.remove(Layer(name, base=False, size=0))
            except EngineError as error:
                log.warning("%s", error)

    async def start(self, invocation: Invocation) -> BubblewrapJob:
        limits = _at_most(invocation.limits, self._settings.limits)
        kind = self._kind(invocation.recipe, limits, invocation.network)
        env = invocation.env
        if invocation.agent is not None:
            env = {**env, b"SSH_AUTH_SOCK": AGENT_PATH}
        task = Task(
            program=invocation.argv,
            env=env,
            limits=limits,
            script=invocation.script,
            terminal=invocation.terminal,
        )
        run_id = invocation.run_id
        job = await self._warm_start(kind, task, run_id) if invocation.agent is None else None
        if job is None:
            prepared = await self._prepare(kind, agent=invocation.agent is not None)
            job = await self._begin(prepared, task, run_id, invocation.agent)
        return job

    async def expect(self, recipe: Recipe, limits: Limits, network: Network) -> None:
        self._warm.want(self._kind(recipe, _at_most(limits, self._settings.limits), network))

    def _kind(self, recipe: Recipe, limits: Limits, network: Network) -> Kind:
        return Kind(
            self._store.current(recipe.digest),
            network,
            disk=limits.disk,
            memory=0 if self._memory_counted else limits.memory,
        )

    async def _warm_start(self, kind: Kind, task: Task, run_id: str) -> BubblewrapJob | None:
        """A run in a sandbox that was ready for it, None where there is none."""
        while (prepared := self._warm.take(kind)) is not None:
            try:
                job = await self._begin(prepared, task, run_id)
            except EngineError:
                continue
            try:
                if await job.began():
                    return job
            except BaseException:
                await job.aclose()
                raise
            await job.aclose()
        return None

    async def _prepare_ahead(self, kind: Kind) -> Prepared:
        prepared = await self._prepare(kind)
        try:
            await prepared.ready()
        except BaseException:
            await prepared.aclose()
            raise
        return prepared

    async def _prepare(self, kind: Kind, *, agent: bool = False) -> Prepared:
        """A sandbox of that kind. LookupError where its layer is not here."""
        layer = self._store.hold(kind.layer)
        namespace: Namespace | None = None
        try:
            if kind.network is Network.INTERNET:
                namespace = await self._namespace()
            stubs = await self._alive()
            stub = await stubs.take()
        except BaseException:
            layer.close()
            if namespace is not None:
                await namespace.aclose()
            raise
        files = {} if namespace is None else {RESOLV_CONF: namespace.resolv_conf}
        options = arguments.run_options(
            [f"{stubs.place.store}/{path}" for path in layer.paths],
            stubs.place.upper,
            network=namespace is not None,
            users=self._run_users is not None,
            files=files,
            agent=agent,
        )
        sandbox = Sandbox(
            options=options,
            filter="run",
            limits=replace(stub.limits, disk=kind.disk, memory=kind.memory or stub.limits.memory),
            namespace=namespace,
            users=self._run_users,
            files=files,
            agent=agent,
        )

        async def release() -> None:
            layer.close()
            if namespace is not None:
                await namespace.aclose()

        return await _made(kind, stub, stubs, sandbox, release)

    async def usage(self) -> Mapping[str, Usage]:
        groups = self._cgroups
        if groups is None:
            return {}
        running = {run_id: job.group for job, run_id in self._jobs.items() if run_id}
        return await asyncio.to_thread(
            lambda: {run_id: groups.usage(group) for run_id, group in running.items()}
        )

    async def _namespace(self) -> Namespace:
        if self._pool is None:
            raise EngineError("runs have no network here", self._no_network)
        return await self._pool.take()

    async def _step(
        self,
        layer: str,
        folder: Path,
        program: Sequence[str],
        env: Mapping[str, str],
        files: Mapping[str, bytes],
    ) -> BubblewrapJob:
        """A step of a build (build.Step)."""
        stubs = await self._alive()
        given = self._settings.limits
        limits = Limits(
            timeout=given.timeout,
            memory=max(given.memory, BUILD_FLOOR.memory),
            cpus=max(given.cpus, BUILD_FLOOR.cpus),
            pids=max(given.pids, BUILD_FLOOR.pids),
            disk=max(given.disk, BUILD_FLOOR.disk),
        )
        stub = await stubs.make(limits)
        options = arguments.build_options(
            f"{stubs.place.store}/{layer}",
            f"{stubs.place.store}/{folder.relative_to(self._store.root)}",
            stubs.place.upper,
            f"{stubs.place.store}/packages",
            users=self._build_users is not None,
            files=files,
        )
        sandbox = Sandbox(
            options=options,
            filter="build",
            limits=limits,
            users=self._build_users,
            files=files,
        )
        task = Task(
            program=[word.encode() for word in program],
            env={name.encode(): value.encode() for name, value in env.items()},
            limits=limits,
            together=True,
        )
        prepared = await _made(None, stub, stubs, sandbox, _nothing)
        return await self._begin(prepared, task)

    async def _begin(
        self, prepared: Prepared, task: Task, run_id: str = "", agent: Agent | None = None
    ) -> BubblewrapJob:
        """Gives a sandbox its task. What fails leaves nothing; the job takes over all the rest."""

        async def end(dead: bool) -> None:
            """With all processes dead, what remains is the kernel's work, some milliseconds."""
            self._jobs.pop(job, None)
            if dead:
                prepared.stubs.background(tear_down())
            else:
                await tear_down()

        async def tear_down() -> None:
            await prepared.put_away()
            if prepared.kind is not None:
                await self._retire({prepared.kind.layer} & self._store.replaced)

        try:
            inputs, sources = hand_over(prepared.stub, prepared.stubs, task)
        except BaseException as error:
            await prepared.aclose()
            if isinstance(error, OSError):
                raise EngineError(f"the sandbox could not be started: {error}") from error
            raise
        job = BubblewrapJob(
            prepared.stub,
            prepared.said,
            inputs,
            sources,
            terminal=task.terminal is not None,
            program=task.program[0] if task.program else b"",
            out_of_memory=prepared.out_of_memory,
            release=end,
            agent=agent,
        )
        self._jobs[job] = run_id
        return job

    async def _alive(self) -> Stubs:
        """The stubs, with a new spawner where the old one has died."""
        if self._stubs is None:
            raise EngineError("the engine is closed")
        if not self._stubs.alive:
            async with self._mending:
                if self._stubs is not None and not self._stubs.alive:
                    old, self._stubs = (
                        self._stubs,
                        Stubs(self._stubs.place, self._cgroups, self._settings.limits),
                    )
                    await old.aclose()
                    await self._stubs.open()
        if self._stubs is None:
            raise EngineError("the engine is closed")
        return self._stubs

    def _opened_builder(self) -> Builder:
        if self._builder is None:
            raise EngineError("the engine is closed")
        return self._builder

    async def _open_cgroups(self) -> None:
        """Finds the control groups, and removes those of a dead server, wherever it had them."""
        record = self._store.data_dir / "cgroups"
        if record.exists():
            for line in record.read_text().splitlines():
                await cgroups.clear(Path(line))
        try:
            self._cgroups = cgroups.find(self._settings.instance)
        except cgroups.NoCgroupsError as error:
            log.warning("no control groups: %s", error)
        else:
            record.write_text("".join(f"{parent}\n" for parent in self._cgroups.parents))

    async def _probe(self) -> None:
        """Runs the launcher, on a root file system of nothing: it ends by itself with 126."""
        recipe = Recipe("none", "", (), "")
        with self._store.temporary() as folder:
            for root in (self._store.root / "bases/none/root", folder / "root"):
                root.mkdir(parents=True, mode=0o755)
                self._store.own(root)
            (folder / "base").write_text("none")
            self._store.keep_layer(folder, recipe.digest)
        program = (arguments.LAUNCH_PATH,)
        limits = self._settings.limits
        job = await self.start(Invocation("check", recipe, program, None, {}, limits, Network.NONE))
        try:
            async for _fd, _data in job.output():
                pass
            outcome = await job.wait()
        finally:
            await job.aclose()
        if outcome != Outcome(126):
            raise EngineError(f"a sandbox ended with {outcome}", "see the server's log")


def _at_most(asked: Limits, most: Limits) -> Limits:
    return Limits(
        timeout=min(asked.timeout, most.timeout),
        memory=min(asked.memory, most.memory),
        cpus=min(asked.cpus, most.cpus),
        pids=min(asked.pids, most.pids),
        disk=min(asked.disk, most.disk),
    )


def _no_images(name: str) -> DataError:
    return DataError(
        f"{name} is an image, which this instance cannot run: its engine is bubblewrap",
        "name a base and packages, as in '#!cmd alpine jq', or ask for the docker engine",
    )


async def _made(
    kind: Kind | None, stub: Stub, stubs: Stubs, sandbox: Sandbox, release: _Release
) -> Prepared:
    """Lets `stub` become the sandbox. What fails leaves nothing."""
    try:
        said = make(stub, stubs, sandbox)
    except BaseException as error:
        await stubs.put_away(stub)
        await release()
        if isinstance(error, OSError):
            raise EngineError(f"the sandbox could not be started: {error}") from error
        raise
    return Prepared(kind, stub, stubs, said, release)


async def _nothing() -> None:
    return


async def _network(settings: EngineSettings) -> tuple[NetworkPool | None, str]:
    """The pool of network namespaces, or why there is none."""
    if os.geteuid() != 0:
        return None, "run the server as root, or use the Docker engine"
    allowed = [Destination.parse(text) for text in settings.network_allow]
    pool = NetworkPool(settings.instance, allowed=allowed)
    try:
        await pool.open()
    except EngineError as error:
        return None, str(error)
    return pool, ""
