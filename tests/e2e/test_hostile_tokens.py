"""Who guesses tokens: by the thousand, over many connections and over one."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Iterator
from typing import Any

import asyncssh
import pytest
from asyncssh.constants import MSG_USERAUTH_REQUEST
from asyncssh.packet import SSHPacket, String

from cmdsvc.service.failures import MOST
from tests.e2e.raw_client import connected, options, say, serving, whoami
from tests.e2e.service_lab import Service, elsewhere
from tests.kit import Kit, Server

pytestmark = pytest.mark.any_engine

AT_ONCE = 10


@pytest.fixture
def door(
    request: pytest.FixtureRequest,
    kit: Kit,
    mirror: Server,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    yield from serving(request, kit, mirror, tmp_path_factory.mktemp("door"))


def guess(token: str) -> str:
    """A wrong one, of an id that there is."""
    return f"{token.rpartition('_')[0]}_{secrets.token_hex(16)}"


async def test_a_thousand_wrong_ones(door: Service):
    token = door.ssh(":tokens", "new").ok().text.strip()
    here, there = (elsewhere(), 0), (elsewhere(), 0)
    said = Counter[str]()
    room = asyncio.Semaphore(AT_ONCE)

    async def tries() -> None:
        async with room:
            with pytest.raises((asyncssh.Error, OSError)) as caught:
                await asyncssh.connect(
                    **options(door, guess(token), client_keys=None, local_addr=here)
                )
            said[caught.type.__name__] += 1

    async with connected(door, local_addr=here) as before:
        await asyncio.gather(*(tries() for _ in range(1000)))
        assert said["PermissionDenied"] <= MOST + AT_ONCE
        assert said.total() == 1000
        with pytest.raises((asyncssh.Error, OSError)):  # nor is the right one listened to
            await asyncssh.connect(**options(door, token, client_keys=None, local_addr=here))
        async with connected(door, token, client_keys=None, local_addr=there) as other:
            assert (await say(other, "cmd/echo x")).out == b"x\n"
        assert await whoami(before) == "alice"
    assert token not in door.log


class Renaming(asyncssh.SSHClient):
    """Claims another name each time that it is refused."""

    def __init__(self, names: Iterator[str]) -> None:
        self.names = names
        self.tried = 0

    def connection_made(self, conn: Any) -> None:
        send = conn.send_packet

        def renaming(kind: int, *args: bytes, handler: Any = None) -> None:
            if kind == MSG_USERAUTH_REQUEST:
                self.tried += 1
                whole = SSHPacket(b"".join(args))
                whole.get_string()  # the name as it was
                args = (String(next(self.names)), whole.get_remaining_payload())
            send(kind, *args, handler=handler)

        conn.send_packet = renaming

    def public_key_auth_requested(self) -> Any:
        [pair] = asyncssh.load_keypairs([asyncssh.generate_private_key("ssh-ed25519")])
        return pair


async def test_each_name_of_a_connection_is_a_login(door: Service):
    """Else one connection would be good for as many guesses as it may offer keys."""
    token = door.ssh(":tokens", "new").ok().text.strip()
    here = (elsewhere(), 0)
    client = Renaming(guess(token) for _ in range(1000))
    with pytest.raises((asyncssh.Error, OSError)):
        await asyncssh.create_connection(
            lambda: client, **options(door, client_keys=None, local_addr=here)
        )
    assert 20 <= client.tried <= MOST + 1
    with pytest.raises((asyncssh.Error, OSError)):
        await asyncssh.connect(**options(door, local_addr=here))
    async with connected(door, local_addr=(elsewhere(), 0)) as other:
        assert await whoami(other) == "alice"
