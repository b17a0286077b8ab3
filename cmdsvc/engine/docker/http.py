"""A small client of the Docker Engine's HTTP API on the event loop, for the road of a run.

Every request is bounded in time and in the size of its answer; what goes wrong is an EngineError.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import h11

from cmdsvc.engine.docker.hosts import check_host, ssh_command
from cmdsvc.errors import EngineError

REQUEST_TIMEOUT: Final = 30.0
"""Seconds for one control request, connecting included."""

OLDEST_API: Final = "1.41"
"""Engine 20.10's."""

_IDLE: Final = 16
"""Kept-alive connections at most; more are closed after their request."""

_ACTIVE: Final = 64
"""Control requests under way at most; more wait for one of them."""

_ANSWER: Final = 16 * 2**20
"""Bytes of an answer's body at most."""

_SSH_END: Final = 5.0
"""Seconds that an ssh client has to end when told so."""

_UPLOAD: Final = 2**20
"""Bytes of a file that are read at once."""

_BUFFER: Final = 2**17
"""Bytes: a stream's reader holds up to twice this before the engine has to wait."""


class ApiError(EngineError):
    """The engine's own refusal: `status` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"the Docker engine refused: {message}")
        self.status = status
        self.message = message


@dataclass(slots=True)
class Stream:
    """Bytes both ways: a connection, before or after an upgrade."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    process: asyncio.subprocess.Process | None = None
    """The ssh client that carries it."""
    ahead: bytes = b""
    """Read already."""

    @property
    def usable(self) -> bool:
        """False once it is known to have ended."""
        return not self.reader.at_eof() and not self.writer.is_closing()

    async def read(self, most: int) -> bytes:
        """At least one byte; b"" at the end, also where the connection broke."""
        if self.ahead:
            data, self.ahead = self.ahead[:most], self.ahead[most:]
            return data
        try:
            return await self.reader.read(most)
        except OSError:
            return b""

    async def exactly(self, size: int) -> bytes:
        """`size` bytes; fewer at the end."""
        data = await self.read(size)
        while data and len(data) < size:
            more = await self.read(size - len(data))
            if not more:
                break
            data += more
        return data

    async def write(self, data: bytes) -> None:
        """Waits for room; what cannot be sent any more is dropped."""
        with suppress(OSError):
            self.writer.write(data)
            await self.writer.drain()

    def write_eof(self) -> None:
        with suppress(OSError, RuntimeError):
            if not self.writer.is_closing():
                self.writer.write_eof()

    def close(self) -> None:
        if not self.writer.is_closing():
            self.writer.transport.abort()  # what it did not take yet is of no use
        if self.process is not None and self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.terminate()


@dataclass(slots=True)
class _Connection:
    stream: Stream
    http: h11.Connection = field(default_factory=lambda: h11.Connection(h11.CLIENT))

    async def send(self, request: h11.Request, body: bytes | Path) -> None:
        await self._write(self.http.send(request))
        if isinstance(body, bytes):
            await self._write(self.http.send(h11.Data(data=body)))
        else:
            with body.open("rb") as file:
                while data := await asyncio.to_thread(file.read, _UPLOAD):
                    await self._write(self.http.send(h11.Data(data=data)))
        await self._write(self.http.send(h11.EndOfMessage()))

    async def _write(self, data: bytes | None) -> None:
        if data:
            self.stream.writer.write(data)
            await self.stream.writer.drain()

    async def event(self) -> h11.Event:
        while True:
            event = self.http.next_event()
            if event is h11.NEED_DATA:
                self.http.receive_data(await self.stream.reader.read(_BUFFER))
            elif isinstance(event, h11.Event):
                return event
            else:
                raise h11.RemoteProtocolError("it paused in the middle of an answer")

    async def answer(self) -> h11.Response | h11.InformationalResponse:
        while True:
            match await self.event():
                case h11.Response() as response:
                    return response
                case h11.InformationalResponse(status_code=101) as response:
                    return response
                case h11.ConnectionClosed():
                    raise ConnectionResetError("it closed the connection")
                case _:
                    continue

    async def body(self) -> bytes:
        body = bytearray()
        while True:
            match await self.event():
                case h11.Data(data=data):
                    body += data
                    if len(body) > _ANSWER:
                        raise h11.RemoteProtocolError("its answer is too long")
                case h11.EndOfMessage():
                    return bytes(body)
                case _:
                    raise ConnectionResetError("it closed the connection")

    def upgraded(self) -> Stream:
        self.stream.ahead = self.http.trailing_data[0]
        return self.stream


class Api:
    """The engine at `host`. Closed connections come back by themselves after its restart."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.version = ""
        """Of the API, once it was negotiated."""
        self._idle: list[_Connection] = []
        self._ssh: set[asyncio.Task[int]] = set()
        self._active = asyncio.Semaphore(_ACTIVE)

    async def negotiate(self) -> Mapping[str, Any]:
        """Settles which version of the API is spoken; gives what the engine says of itself.

        The oldest that has all that is needed, or the oldest that the engine still speaks: Engine
        29 refuses what is older than 1.44, and an old one what is newer than itself.
        """
        self.version = ""
        version: Mapping[str, Any] = await self.call("GET", "/version")
        newest, oldest = version["ApiVersion"], version.get("MinAPIVersion", OLDEST_API)
        if _number(newest) < _number(OLDEST_API):
            raise EngineError(
                f"the Docker engine {version['Version']} is too old: its API is {newest}",
                f"use one with API {OLDEST_API}, Docker 20.10, or newer",
            )
        self.version = max(OLDEST_API, oldest, key=_number)
        return version

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | bytes] | None = None,
        body: object = None,
        tar: bytes | Path | None = None,
        timeout: float = REQUEST_TIMEOUT,  # noqa: ASYNC109 - in the error's words
    ) -> Any:
        """One request, with a JSON `body` or a `tar`.

        Gives the answer's JSON (a list where it is one value a line), None where it is empty.
        Raises ApiError for a status of 400 or more, else EngineError.
        """
        return _decoded(
            await self.fetch(method, path, query=query, body=body, tar=tar, timeout=timeout)
        )

    async def fetch(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | bytes] | None = None,
        body: object = None,
        tar: bytes | Path | None = None,
        timeout: float = REQUEST_TIMEOUT,  # noqa: ASYNC109 - in the error's words
    ) -> bytes:
        """As `call`, the answer as it came."""
        data = tar if tar is not None else b"" if body is None else json.dumps(body).encode()
        request = self._request(method, path, query, data, tar is not None)
        status, answer = 0, b""
        async with self.bounded(timeout), self._active:
            connection = await self._connection()
            kept = False
            try:
                await connection.send(request, data)
                response = await connection.answer()
                status, answer = response.status_code, await connection.body()
                kept = self._keep(connection)
            finally:
                if not kept:
                    connection.stream.close()
        if status >= 400:
            raise ApiError(status, _message(answer))
        return answer

    async def upgrade(
        self,
        path: str,
        *,
        query: Mapping[str, str | bytes] | None = None,
        body: object = None,
        timeout: float = REQUEST_TIMEOUT,  # noqa: ASYNC109 - in the error's words
    ) -> Stream:
        """POSTs and turns the connection into a stream, which the caller closes."""
        data = b"" if body is None else json.dumps(body).encode()
        request = self._request("POST", path, query, data, False)
        request = h11.Request(
            method=request.method,
            target=request.target,
            headers=[*request.headers, ("Connection", "Upgrade"), ("Upgrade", "tcp")],
        )
        async with self.bounded(timeout):
            connection = _Connection(await self._connect())
            switched = False
            try:
                await connection.send(request, data)
                response = await connection.answer()
                switched = response.status_code == 101
                if not switched:
                    raise ApiError(response.status_code, _message(await connection.body()))
            finally:
                if not switched:
                    connection.stream.close()
        return connection.upgraded()

    def bounded(self, seconds: float) -> AbstractAsyncContextManager[None]:
        """A limit of time, and what goes wrong with a connection told as an EngineError."""
        return _bounded(self.host, seconds)

    async def aclose(self) -> None:
        while self._idle:
            connection = self._idle.pop()
            connection.stream.close()
            with suppress(OSError):
                await connection.stream.writer.wait_closed()
        if self._ssh:
            await asyncio.wait(self._ssh, timeout=_SSH_END)

    async def _connect(self) -> Stream:
        stream = await _connect(self.host)
        if stream.process is not None:
            ended = asyncio.ensure_future(stream.process.wait())
            self._ssh.add(ended)
            ended.add_done_callback(self._ssh.discard)
        return stream

    async def _connection(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.stream.usable:
                return connection
            connection.stream.close()
        return _Connection(await self._connect())

    def _keep(self, connection: _Connection) -> bool:
        http = connection.http
        if len(self._idle) >= _IDLE or http.our_state is not h11.DONE:
            return False
        if http.their_state is not h11.DONE or http.trailing_data[0]:
            return False
        http.start_next_cycle()
        self._idle.append(connection)
        return True

    def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | bytes] | None,
        data: bytes | Path,
        tar: bool,
    ) -> h11.Request:
        size = len(data) if isinstance(data, bytes) else data.stat().st_size
        prefix = f"/v{self.version}" if self.version else ""
        target = f"{prefix}{path}" + (f"?{urlencode(query)}" if query else "")
        headers = [("Host", "docker"), ("Content-Length", str(size))]
        if size:
            headers.append(("Content-Type", "application/x-tar" if tar else "application/json"))
        return h11.Request(method=method, target=target, headers=headers)


@asynccontextmanager
async def _bounded(host: str, seconds: float) -> AsyncIterator[None]:
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            yield
    except (OSError, h11.ProtocolError) as error:
        if limit.expired():
            raise EngineError(
                f"the Docker engine at {host} did not answer within {seconds:g} s",
                "look at its log, or try again later",
            ) from error
        raise unreachable(host, error) from error


def unreachable(host: str, error: BaseException) -> EngineError:
    """The engine does not answer, or not as one."""
    if isinstance(error, PermissionError):
        return EngineError(
            f"no permission to use the Docker engine at {host}",
            "let the service's user into the group that owns its socket",
        )
    reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    if isinstance(error, FileNotFoundError):
        reason = "nothing is there"
    return EngineError(
        f"the Docker engine at {host} cannot be reached: {reason}",
        "start it, or set DOCKER_HOST to where it is",
    )


async def _connect(host: str) -> Stream:
    kind, _, rest = host.partition("://")
    if kind == "unix":
        return Stream(*await asyncio.open_unix_connection(rest, limit=_BUFFER))
    if kind == "tcp":
        check_host(host)
        address = urlsplit(host)
        return Stream(
            *await asyncio.open_connection(address.hostname, address.port or 2375, limit=_BUFFER)
        )
    check_host(host)
    process = await asyncio.create_subprocess_exec(
        *ssh_command(host),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        limit=_BUFFER,
        start_new_session=True,
    )
    if process.stdin is None or process.stdout is None:
        raise ConnectionError("ssh has no pipes")
    return Stream(process.stdout, process.stdin, process)


def where(**filters: str) -> dict[str, str]:
    """A query for those of which each of the filters is true."""
    return {"filters": json.dumps({name: [value] for name, value in filters.items()})}


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _decoded(answer: bytes) -> Any:
    """JSON, or, where the answer is a stream of JSON lines, a list of them."""
    try:
        return json.loads(answer) if answer.strip() else None
    except ValueError:
        pass
    try:
        return [json.loads(line) for line in answer.splitlines() if line.strip()]
    except ValueError:
        return answer.decode(errors="replace")


def _message(answer: bytes) -> str:
    decoded = _decoded(answer)
    text = decoded.get("message", "") if isinstance(decoded, dict) else decoded
    return " ".join(str(text or "it does not say why").split())[:500]
