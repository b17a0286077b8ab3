"""A caller over HTTP: httpx where it is polite, a bare socket where it is not."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from tests.e2e.service_lab import PATIENCE, Service

SH = '#!cmd alpine\n#!/bin/sh\n{metadata}eval "$1"\n'


@dataclass
class Web:
    """With a token of a user's that may run what `create` makes."""

    service: Service
    user: str = "alice"
    token: str = field(init=False)
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.token = self.new_token()
        self.client = httpx.Client(
            base_url=self.service.url, headers=self.bearer(), timeout=PATIENCE
        )

    def new_token(self, *options: str) -> str:
        return self.service.ssh(":tokens", "new", *options, user=self.user).ok().text.strip()

    def bearer(self, token: str | None = None) -> dict[str, str]:
        return {"authorization": f"Bearer {token or self.token}"}

    def create(self, name: str, *http: str, metadata: tuple[str, ...] = ()) -> str:
        """A command that runs its first argument, with these lines in [http]; its path."""
        lines = [*metadata, *(["[http]", *http] if http else [])]
        block = "".join(f"# {line}\n" for line in ["/// cmd", *lines, "///"])
        self.service.create(name, SH.format(metadata=block), user=self.user).ok()
        self.service.ssh(":access", name, "grant", self.token, user=self.user).ok()
        return f"/run/{self.user}/{name}"

    def run(
        self,
        script: str,
        command: str = "sh",
        *,
        method: str = "GET",
        query: str = "",
        **more: Any,
    ) -> httpx.Response:
        return self.client.request(method, self.url(script, command, query), **more)

    def url(self, script: str, command: str = "sh", query: str = "") -> str:
        path = f"/run/{self.user}/{command}/{quote(script, safe='')}"
        return f"{path}?{query}" if query else path

    @contextlib.contextmanager
    def socket(self) -> Iterator[socket.socket]:
        where = urlsplit(self.service.url)
        with socket.create_connection((where.hostname, where.port), PATIENCE) as sock:
            yield sock

    def raw(self, data: bytes) -> bytes:
        """All that comes back, to the connection's end."""
        with self.socket() as sock:
            sock.sendall(data)
            return rest(sock)

    def head(self, script: str, *lines: str, method: str = "GET", query: str = "") -> bytes:
        """The head of a request with the token."""
        first = f"{method} {self.url(script, query=query)} HTTP/1.1"
        host = f"Host: {urlsplit(self.service.url).netloc}"
        own = f"Authorization: Bearer {self.token}"
        return "\r\n".join([first, host, own, *lines, "", ""]).encode("latin-1")

    def events(self, response: httpx.Response) -> list[tuple[str, str, str]]:
        """(event, id, data) of each."""
        found = []
        for block in response.text.split("\n\n"):
            fields: dict[str, list[str]] = {}
            for line in block.split("\n"):
                name, _, value = line.partition(": ")
                fields.setdefault(name, []).append(value)
            if "event" in fields:
                found.append((fields["event"][0], fields["id"][0], "\n".join(fields["data"])))
        return found


def rest(sock: socket.socket) -> bytes:
    """What comes until the other side closes; a reset is an end too."""
    data = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while piece := sock.recv(1 << 16):
            data += piece
    return bytes(data)


def status(reply: bytes) -> int:
    return int(reply.split(b" ", 2)[1]) if reply else 0


def problem(response: httpx.Response) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = json.loads(response.content)
    assert document["status"] == response.status_code
    return document
