"""What goes on in sandboxes, and the sandboxes that wait for runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from cmdsvc.engine import AGENT_PATH, Agent, EngineSettings, Invocation, Usage
from cmdsvc.engine.bubblewrap import making
from cmdsvc.engine.bubblewrap.job import BubblewrapJob
from cmdsvc.engine.bubblewrap.machine import Machine
from cmdsvc.engine.bubblewrap.prepared import Kind, Prepared
from cmdsvc.engine.bubblewrap.sandbox import hand_over
from cmdsvc.engine.bubblewrap.store import Store
from cmdsvc.engine.launch import Task
from cmdsvc.engine.warm import Warm
from cmdsvc.errors import EngineError
from cmdsvc.model import Limits, Network
from cmdsvc.recipe import Recipe


class Runs:
    """See `engine.Engine` for what has the same name there.

    `left` is called with the name of a layer that a run has let go of at its end.
    """

    def __init__(
        self,
        settings: EngineSettings,
        store: Store,
        machine: Machine,
        left: Callable[[str], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._store = store
        self._machine = machine
        self._left = left
        self._jobs: dict[BubblewrapJob, str] = {}
        """With the ids of their runs, "" of a build's."""
        self._warm: Warm[Kind, Prepared] = Warm(self._prepare_ahead, settings.warm)

    @property
    def warm(self) -> int:
        return len(self._warm)

    async def aclose(self) -> None:
        """Ends all that goes on, a build's steps too."""
        await self._warm.aclose()
        await asyncio.gather(*(job.aclose() for job in list(self._jobs)))

    async def drop(self, layer: str | None = None) -> None:
        """Ends the sandboxes that wait, those on the layer of that name or all."""
        await self._warm.drop(lambda kind: layer is None or kind.layer == layer)

    async def start(self, invocation: Invocation) -> BubblewrapJob:
        limits = _at_most(invocation.limits, self._settings.limits)
        kind = self._kind(invocation.recipe, limits, invocation.network)
        env = invocation.env
        if invocation.agent is not None:
            env = {**env, b"SSH_AUTH_SOCK": AGENT_PATH}
        task = Task(
            program=invocation.argv,
            env=env,
            script=invocation.script,
            terminal=invocation.terminal,
        )
        run_id = invocation.run_id
        job = (
            await self._warm_start(kind, task, limits, run_id) if invocation.agent is None else None
        )
        if job is None:
            agent = invocation.agent is not None
            prepared = await making.for_run(self._machine, self._store, kind, agent=agent)
            job = await self.begin(prepared, task, limits, run_id, invocation.agent)
        return job

    async def expect(self, recipe: Recipe, limits: Limits, network: Network) -> None:
        self._warm.want(self._kind(recipe, _at_most(limits, self._settings.limits), network))

    async def usage(self) -> Mapping[str, Usage]:
        groups = self._machine.cgroups
        if groups is None:
            return {}
        running = {run_id: job.group for job, run_id in self._jobs.items() if run_id}
        return await asyncio.to_thread(
            lambda: {run_id: groups.usage(group) for run_id, group in running.items()}
        )

    async def begin(
        self,
        prepared: Prepared,
        task: Task,
        limits: Limits,
        run_id: str = "",
        agent: Agent | None = None,
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
                await self._left(prepared.kind.layer)

        try:
            handed = hand_over(prepared.stub, prepared.stubs, task, limits)
        except BaseException as error:
            await prepared.aclose()
            if isinstance(error, OSError):
                raise EngineError(f"the sandbox could not be started: {error}") from error
            raise
        job = BubblewrapJob(
            prepared,
            handed,
            terminal=task.terminal is not None,
            program=task.program[0] if task.program else b"",
            release=end,
            agent=agent,
        )
        self._jobs[job] = run_id
        return job

    def _kind(self, recipe: Recipe, limits: Limits, network: Network) -> Kind:
        return Kind(
            self._store.current(recipe.digest),
            network,
            disk=limits.disk,
            memory=0 if self._machine.memory_counted else limits.memory,
        )

    async def _warm_start(
        self, kind: Kind, task: Task, limits: Limits, run_id: str
    ) -> BubblewrapJob | None:
        """A run in a sandbox that was ready for it, None where there is none."""
        while (prepared := self._warm.take(kind)) is not None:
            try:
                job = await self.begin(prepared, task, limits, run_id)
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
        prepared = await making.for_run(self._machine, self._store, kind)
        try:
            await prepared.ready()
        except BaseException:
            await prepared.aclose()
            raise
        return prepared


def _at_most(asked: Limits, most: Limits) -> Limits:
    return Limits(
        timeout=min(asked.timeout, most.timeout),
        memory=min(asked.memory, most.memory),
        cpus=min(asked.cpus, most.cpus),
        pids=min(asked.pids, most.pids),
        disk=min(asked.disk, most.disk),
    )
