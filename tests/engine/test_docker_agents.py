"""The caller's agent in a container: what cannot be given is told, and nothing of it stays."""

from __future__ import annotations

import secrets
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from cmdsvc.engine import AGENT_PATH, Invocation
from cmdsvc.engine.docker.doors import ELSEWHERE, UNSEEN, Door, Doors
from cmdsvc.model import SCRIPT_PATH, SEARCH_PATH, Network
from cmdsvc.relay import Job
from tests.engine import dockerlab
from tests.engine.dockerlab import Lab, end

if TYPE_CHECKING:
    from tests.kit import Kit, Server

SCRIPT = b"#!/bin/sh\necho ${SSH_AUTH_SOCK-unset}; find /run -type s\n"


class Noting:
    """An agent that nothing is done with."""

    def __init__(self) -> None:
        self.sock: socket.socket | None = None
        self.why: list[str] = []

    def listen(self, sock: socket.socket) -> None:
        self.sock = sock

    def refuse(self, why: str) -> None:
        self.why.append(why)

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()


def made_in(folder: Path, host: str = "unix:///run/docker.sock") -> Doors:
    return Doors(folder, host, AGENT_PATH.decode(), socket.SOCK_STREAM)


class TestDoors:
    def test_where_the_way_is_long(self, tmp_path: Path):
        folder = tmp_path / ("x" * 100) / "agents"
        door = made_in(folder).make("r" * 16)
        assert folder.stat().st_mode & 0o777 == 0o700
        assert (folder / ("r" * 16)).is_socket()
        door.close()
        assert list(folder.iterdir()) == []

    def test_what_a_dead_server_left_is_removed(self, tmp_path: Path):
        doors = made_in(tmp_path / "agents")
        doors.clear()
        doors.make("a").listener.close()
        doors.clear()
        assert list((tmp_path / "agents").iterdir()) == []

    @pytest.mark.parametrize(
        ("host", "here"),
        [
            ("unix:///run/docker.sock", True),
            ("tcp://127.0.0.1:2375", False),
            ("ssh://user@host", False),
        ],
    )
    def test_where_the_engine_is(self, tmp_path: Path, host: str, here: bool):
        assert made_in(tmp_path, host).here is here


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(
    host: str, kit: Kit, mirror: Server, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Lab]:
    async with dockerlab.lab(host, tmp_path_factory.mktemp("docker"), kit, mirror) as made:
        yield made


@pytest.fixture
def agent() -> Iterator[Noting]:
    made = Noting()
    yield made
    made.close()


@pytest.mark.docker
@pytest.mark.asyncio(loop_scope="module")
class TestEngine:
    async def start(self, lab: Lab, agent: Noting) -> Job:
        return await lab.engine.start(
            Invocation(
                run_id=secrets.token_hex(8),
                recipe=lab.recipe,
                argv=(SCRIPT_PATH,),
                script=SCRIPT,
                env={b"PATH": SEARCH_PATH},
                limits=lab.settings.limits,
                network=Network.NONE,
                agent=agent,
            )
        )

    def left(self, lab: Lab) -> list[Path]:
        folder = lab.settings.data_dir / "agents"
        return list(folder.iterdir()) if folder.exists() else []

    async def test_its_socket_is_there_while_it_runs(self, lab: Lab, agent: Noting):
        job = await self.start(lab, agent)
        assert len(self.left(lab)) == 1
        out, _ = await end(job)
        await job.aclose()
        await job.aclose()  # the first one does not wait for what is cleared away behind it
        assert out.split() == [AGENT_PATH] * 2
        assert self.left(lab) == []
        assert agent.sock is not None
        assert agent.why == []

    async def test_an_engine_elsewhere(
        self, lab: Lab, agent: Noting, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(lab.engine._runs._doors, "here", False)
        await self.goes_without(lab, agent, ELSEWHERE)

    async def test_an_engine_that_sees_other_files(
        self, lab: Lab, agent: Noting, monkeypatch: pytest.MonkeyPatch
    ):
        make = Doors.make

        def unseen(doors: Doors, run_id: str) -> Door:
            door = make(doors, run_id)
            if doors is lab.engine._runs._doors:
                door.path.unlink()
            return door

        monkeypatch.setattr(Doors, "make", unseen)
        await self.goes_without(lab, agent, UNSEEN)

    async def goes_without(self, lab: Lab, agent: Noting, why: str) -> None:
        job = await self.start(lab, agent)
        out, _ = await end(job)
        await job.aclose()
        assert out == b"unset\n"
        assert agent.why == [why]
        assert agent.sock is None
        assert self.left(lab) == []

    async def test_a_layer_that_is_gone(self, lab: Lab, agent: Noting):
        recipe = lab.layer("not-built")
        with pytest.raises(LookupError):
            await lab.engine.start(
                Invocation(
                    "x", recipe, (SCRIPT_PATH,), SCRIPT, {}, lab.settings.limits, Network.NONE,
                    agent=agent,
                )
            )  # fmt: skip
        assert (agent.sock, agent.why, self.left(lab)) == (None, [], [])
