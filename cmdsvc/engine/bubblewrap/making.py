"""Making sandboxes that are complete but for their task: what they see, hold and may use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

from cmdsvc.engine.bubblewrap import arguments
from cmdsvc.engine.bubblewrap.build import RESOLV_CONF
from cmdsvc.engine.bubblewrap.machine import Machine
from cmdsvc.engine.bubblewrap.network import Namespace
from cmdsvc.engine.bubblewrap.prepared import Kind, Prepared
from cmdsvc.engine.bubblewrap.sandbox import Sandbox, make
from cmdsvc.engine.bubblewrap.store import Store
from cmdsvc.engine.bubblewrap.stub import Stub
from cmdsvc.engine.bubblewrap.stubs import Stubs
from cmdsvc.errors import EngineError
from cmdsvc.model import Limits, Network


async def for_run(machine: Machine, store: Store, kind: Kind, *, agent: bool = False) -> Prepared:
    """A sandbox of that kind. LookupError where its layer is not here."""
    layer = store.hold(kind.layer)
    namespace: Namespace | None = None
    try:
        if kind.network is Network.INTERNET:
            namespace = await machine.namespace()
        stubs = await machine.stubs()
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
        users=machine.run_users is not None,
        files=files,
        agent=agent,
    )
    sandbox = Sandbox(
        options=options,
        filter="run",
        limits=replace(stub.limits, disk=kind.disk, memory=kind.memory or stub.limits.memory),
        namespace=namespace,
        users=machine.run_users,
        files=files,
        agent=agent,
    )

    async def release() -> None:
        layer.close()
        if namespace is not None:
            await namespace.aclose()

    return await _made(kind, stub, stubs, sandbox, release)


async def for_step(
    machine: Machine, base: str, folder: str, limits: Limits, files: Mapping[str, bytes]
) -> Prepared:
    """One for a step of a build: the base's root and the layer's folder, both below the store.

    `files` it sees besides, but the layer does not keep (path to content).
    """
    stubs = await machine.stubs()
    stub = await stubs.make(limits)
    options = arguments.build_options(
        f"{stubs.place.store}/{base}",
        f"{stubs.place.store}/{folder}",
        stubs.place.upper,
        f"{stubs.place.store}/packages",
        users=machine.build_users is not None,
        files=files,
    )
    sandbox = Sandbox(
        options=options,
        filter="build",
        limits=limits,
        users=machine.build_users,
        files=files,
    )
    return await _made(None, stub, stubs, sandbox, _nothing)


async def _made(
    kind: Kind | None,
    stub: Stub,
    stubs: Stubs,
    sandbox: Sandbox,
    release: Callable[[], Awaitable[None]],
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
