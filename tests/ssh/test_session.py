"""What a session has of its client before there is a command."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncssh

from cmdsvc.ssh.session import Session


class Watched(Session):
    """Notes in which order it is told what, and runs nothing."""

    def __init__(self) -> None:
        nothing: Any = None
        super().__init__(nothing, nothing, "", nothing, lambda _: None)
        self.told: list[str] = []

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        super().connection_made(chan)
        self.chan = chan

    def data_received(self, data: bytes, datatype: int | None) -> None:
        super().data_received(data, datatype)
        self.told.append(data.decode())

    def session_started(self) -> None:
        self.told.append("the command")
        self.chan.exit(0)


class Early(asyncssh.SSHClientSession[bytes]):
    """Sends what it has before it asks for a command."""

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        for piece in (b"one", b"two", b"three"):
            chan.write(piece)


async def test_what_comes_before_the_command_is_taken_as_it_comes() -> None:
    """asyncssh would keep each packet, and take the list apart in the square of its length."""
    session = Watched()

    class Open(asyncssh.SSHServer):
        def begin_auth(self, username: str) -> bool:
            del username
            return False

        def session_requested(self) -> Session:
            return session

    host_key = asyncssh.generate_private_key("ssh-ed25519")
    server = await asyncssh.listen(
        "127.0.0.1", 0, server_factory=Open, server_host_keys=[host_key], encoding=None
    )
    async with server:
        port = server.sockets[0].getsockname()[1]
        async with (
            asyncio.timeout(10),
            asyncssh.connect(
                "127.0.0.1", port, known_hosts=None, config=None, username="x"
            ) as conn,
        ):
            chan, _ = await conn.create_session(Early, "anything", encoding=None)
            await chan.wait_closed()
    assert session.told == ["one", "two", "three", "the command"]
