"""Network namespaces that reach the Internet and nothing else, made ahead of the runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from cmdsvc.engine import Finding
from cmdsvc.engine.bubblewrap.netns import Plumbing
from cmdsvc.engine.firewall import Destination
from cmdsvc.engine.resolvers import host_resolvers
from cmdsvc.errors import EngineError

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")

REFILL_DELAY = 0.05
"""Seconds; see stubs.REFILL_DELAY."""
LOW = 2
"""Namespaces below which there is no waiting."""
CARE_INTERVAL = 5.0
"""Seconds between two looks at whether the rules are in force and fit the host's network."""


class Namespace:
    """One network namespace, for one run. Made by `NetworkPool.take`."""

    def __init__(self, plumbing: Plumbing, slot: int, fd: int, resolv_conf: bytes) -> None:
        self._plumbing: Plumbing | None = plumbing
        self._slot = slot
        self.fd = fd
        """An open descriptor of it, close-on-exec, for setns(2); not to be closed but by `aclose`."""
        self.resolv_conf = resolv_conf
        """What /etc/resolv.conf is to say inside."""

    async def aclose(self) -> None:
        """Lets it go: the kernel removes it once no process is in it. Repeatable."""
        plumbing, self._plumbing, self.fd = self._plumbing, None, -1
        if plumbing is not None:
            plumbing.release(self._slot)


class NetworkPool:
    """Keeps `size` namespaces ready; to take one costs nothing while there are any.

    What is in `allowed` is reached from them besides the Internet.

    Root only. Made closed: `open` comes first, `aclose` last. One for an instance at a time.
    """

    def __init__(self, instance: str, size: int = 4, allowed: Sequence[Destination] = ()) -> None:
        self._plumbing = Plumbing(instance, allowed)
        self._size = size
        self._ready: deque[Namespace] = deque()
        self._waiting: deque[asyncio.Future[Namespace]] = deque()
        self._wanted = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._fault: EngineError | None = EngineError("the network pool is not open")
        self._worker: ThreadPoolExecutor | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Removes what a dead server of the instance left, puts the rules in force, fills up.

        EngineError says why it cannot be had and what to do; then nothing is left behind.
        """
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="network-pool")
        try:
            await self._call(self._plumbing.install)
            for _ in range(self._size):
                self._ready.append(await self._make())
        except BaseException:
            await self.aclose()
            raise
        self._fault = None
        self._keeper = asyncio.create_task(self._keep(), name="network pool")

    async def take(self) -> Namespace:
        """A namespace that nobody had before. EngineError if one can be neither had nor made."""
        if self._fault is not None:
            raise self._fault
        if self._ready:
            namespace = self._ready.popleft()
            self._want(REFILL_DELAY if len(self._ready) >= LOW else 0.0)
            return namespace
        self._want(0.0)
        waiter: asyncio.Future[Namespace] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._ready.append(waiter.result())
            raise

    def _want(self, delay: float) -> None:
        """Has another one made after `delay` seconds: the run that took one goes first."""
        if self._timer is not None and delay:
            return
        self._cancel_timer()
        if delay:
            self._timer = asyncio.get_running_loop().call_later(delay, self._want, 0.0)
        else:
            self._wanted.set()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def aclose(self) -> None:
        """Removes every namespace, taken ones too, and the rules. Repeatable."""
        self._cancel_timer()
        self._fault = EngineError("the network pool is closed")
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait([keeper])
        self._refuse(self._fault)
        self._ready.clear()
        worker, self._worker = self._worker, None
        if worker is not None:
            removal = worker.submit(self._plumbing.remove)
            worker.shutdown(wait=False)
            await asyncio.shield(asyncio.wrap_future(removal))

    async def _keep(self) -> None:
        now = asyncio.get_running_loop().time
        care_at = now() + CARE_INTERVAL
        while True:
            self._wanted.clear()
            if now() >= care_at:
                await self._care()
                care_at = now() + CARE_INTERVAL
            if self._fault is None and (self._waiting or len(self._ready) < self._size):
                try:
                    self._hand_out(await self._make())
                except EngineError as error:
                    _LOG.warning("no network namespace could be made: %s", error)
                    self._refuse(error)
                else:
                    continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(care_at):
                    await self._wanted.wait()

    async def _care(self) -> None:
        """Nothing is handed out while the rules are not known to be in force."""
        try:
            await self._call(self._plumbing.mend)
        except EngineError as error:
            if self._fault is None:
                _LOG.warning("runs have no network: %s", error)
            self._fault = error
            self._refuse(error)
        else:
            self._fault = None

    async def _make(self) -> Namespace:
        slot, fd = await self._call(self._plumbing.make)
        return Namespace(self._plumbing, slot, fd, self._plumbing.resolvers.conf)

    async def _call(self, function: Callable[[], _T]) -> _T:
        """In the one thread that may change its namespace."""
        if self._worker is None:
            raise EngineError("the network pool is closed")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._worker, function)
        except OSError as error:
            raise EngineError(f"the network pool failed: {error}") from error

    def _hand_out(self, namespace: Namespace) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(namespace)
                return
        self._ready.append(namespace)

    def _refuse(self, error: EngineError) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(error)


def finding(instance: str) -> Finding:
    """For `cmdsvc check`: whether runs can have the Internet here, and why not. Changes nothing."""
    try:
        Plumbing(instance).preflight()
    except EngineError as error:
        return Finding("warning", f"runs have no network: {error.what}", error.hint)
    if not host_resolvers().from_host:
        return Finding(
            "warning",
            "runs reach the Internet, but ask public resolvers for names: the host's are on loopback",
            "name an IPv4 server that is not on loopback in /etc/resolv.conf",
        )
    return Finding("ok", "runs reach the Internet and nothing else, in pooled network namespaces")
