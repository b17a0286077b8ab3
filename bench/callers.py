"""Callers that cost little themselves: asyncssh's client, in the bench's own process.

An OpenSSH client is a process per connection and one per run: with 32 of them at once it is they that
are measured.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import asyncssh

from bench.measure import PATIENCE, BenchError, Client

AT_ONCE = 8
"""Connections that are made at the same time: a server bounds those before the login's end."""


@asynccontextmanager
async def connections(
    client: Client, number: int
) -> AsyncIterator[list[asyncssh.SSHClientConnection]]:
    """So many, logged in, ended at the end."""
    room = asyncio.Semaphore(AT_ONCE)
    # What does not differ from one to the next is read and worked out once.
    options = asyncssh.SSHClientConnectionOptions(
        username=client.user, client_keys=[str(client.key)], known_hosts=None, config=None
    )

    async def one() -> asyncssh.SSHClientConnection:
        async with room, asyncio.timeout(PATIENCE):
            return await stack.enter_async_context(
                asyncssh.connect("127.0.0.1", client.port, options=options)
            )

    async with AsyncExitStack() as stack:
        yield list(await asyncio.gather(*(one() for _ in range(number))))


async def hello(connection: asyncssh.SSHClientConnection) -> float:
    """Seconds from asking for it to its exit status. BenchError where it is not as it should be."""
    begun = time.perf_counter()
    async with asyncio.timeout(PATIENCE):
        done = await connection.run("hello", encoding=None)
    if done.exit_status != 0 or done.stdout != b"hello\n":
        raise BenchError(f"hello: status {done.exit_status}, {done.stderr!r:.300}")
    return time.perf_counter() - begun


def middle(seconds: Sequence[float]) -> tuple[float, float]:
    """p50 and p95."""
    return statistics.median(seconds), statistics.quantiles(seconds, n=20, method="inclusive")[18]
