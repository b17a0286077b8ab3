"""Agent forwarding: a run of one's own command reaches one's own agent, and nobody else does."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from cmdsvc.ssh.agent import CHANNELS_MAX
from tests.e2e.raw_client import AT_HAND, connected, descriptors, say, talk, until
from tests.e2e.service_lab import PATIENCE, Said, Service

SOURCE = '#!cmd alpine openssh-client\n#!/bin/sh\neval "$1"\n'
VARIABLE = 'echo "${SSH_AUTH_SOCK-unset}"'
SOCKETS = (
    f"{VARIABLE}; find / -xdev -type s ! -path /sbin/docker-init.socket;"
    " find /run /tmp /cmd -type s | sort -u"
)
"""Nobody listens at that one (tests/engine/test_docker_warm.py)."""
SIGN = """
ssh-add -L >key.pub
printf %s "$1" >data
printf 'to be signed' | ssh-keygen -q -Y sign -f key.pub -n file
"""


class Agent:
    """A real ssh-agent with a key of its own."""

    def __init__(self, folder: Path, name: str) -> None:
        self.socket = folder / f"{name}.agent"
        self.key = folder / f"{name}.key"
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", self.key], check=True
        )
        told = subprocess.check_output(["ssh-agent", "-s", "-a", self.socket], text=True)
        self.pid = int(told.split("SSH_AGENT_PID=")[1].split(";")[0])
        env = {**os.environ, "SSH_AUTH_SOCK": str(self.socket)}
        subprocess.run(["ssh-add", "-q", self.key], env=env, check=True)

    def line(
        self, service: Service, *words: str, user: str = "alice", options: tuple[str, ...] = ()
    ) -> list[str]:
        """A client's that forwards it."""
        none, ours = "IdentityAgent=none", f"IdentityAgent={self.socket}"
        line = service.command_line("-A", *options, user=user)
        return [*(ours if word == none else word for word in line), shlex.join(words)]

    def ssh(
        self, service: Service, *words: str, user: str = "alice", options: tuple[str, ...] = ()
    ) -> Said:
        """As `service.ssh`, with the agent forwarded."""
        line = self.line(service, *words, user=user, options=options)
        done = subprocess.run(line, input=b"", capture_output=True, timeout=PATIENCE, check=False)
        return Said(done.stdout, done.stderr, done.returncode)

    def fingerprint(self) -> str:
        told = subprocess.check_output(["ssh-keygen", "-lf", f"{self.key}.pub"], text=True)
        return told.split()[1]

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)


@contextmanager
def made(folder: Path, name: str) -> Iterator[Agent]:
    agent = Agent(folder, name)
    try:
        yield agent
    finally:
        agent.close()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with made(tmp_path, "mine") as agent:
        yield agent


@pytest.fixture(scope="module")
def sh(service: Service) -> Iterator[str]:
    """A command of alice's that runs its first argument as shell text; bob may run it too."""
    name = "sh-with-ssh-add"
    service.create(name, SOURCE).ok()
    service.ssh(":access", name, "grant", "bob").ok()
    yield name
    service.ssh(":delete", name)


class TestOwner:
    def test_the_agents_keys_are_listed(self, service: Service, sh: str, agent: Agent):
        said = agent.ssh(service, sh, "ssh-add -l").ok()
        assert said.text.split()[1:] == [agent.fingerprint(), "mine", "(ED25519)"]

    def test_it_signs(self, service: Service, sh: str, agent: Agent, tmp_path: Path):
        said = agent.ssh(service, sh, SIGN).ok()
        (tmp_path / "signature").write_bytes(said.out)
        check = ["ssh-keygen", "-Y", "check-novalidate", "-n", "file", "-s", "signature"]
        done = subprocess.run(
            check, cwd=tmp_path, input=b"to be signed", capture_output=True, check=True
        )
        assert agent.fingerprint() in done.stdout.decode()

    def test_with_a_terminal(self, service: Service, sh: str, agent: Agent):
        said = agent.ssh(service, sh, "ssh-add -l", options=("-tt",)).ok()
        assert agent.fingerprint() in said.text

    def test_with_options_of_the_run(self, service: Service, sh: str, agent: Agent):
        said = agent.ssh(service, ":run", "--timeout", "1m", sh, "ssh-add -l").ok()
        assert agent.fingerprint() in said.text

    def test_many_times(self, service: Service, sh: str, agent: Agent):
        script = "for i in $(seq 50); do ssh-add -l; done"
        said = agent.ssh(service, sh, script).ok()
        assert said.text.count(agent.fingerprint()) == 50

    def test_by_several_at_once(self, service: Service, sh: str, agent: Agent):
        script = "for i in $(seq 8); do ssh-add -l & done; wait"
        said = agent.ssh(service, sh, script).ok()
        assert said.text.count(agent.fingerprint()) == 8

    def test_the_agent_is_all_that_there_is_of_the_host(
        self, service: Service, sh: str, agent: Agent
    ):
        said = agent.ssh(service, sh, SOCKETS).ok()
        assert set(said.lines) == {"/run/cmd/agent"}

    def test_an_agent_that_ends_meanwhile(self, service: Service, sh: str, agent: Agent):
        client = popen(agent.line(service, sh, "ssh-add -l; cat; ssh-add -l"))
        try:
            assert client.stdout is not None
            assert agent.fingerprint() in client.stdout.readline().decode()
            agent.close()
            out, _ = client.communicate(timeout=PATIENCE)
        finally:
            client.kill()
            client.communicate()
        assert client.returncode > 0  # or killed by SIGPIPE, as it happens
        assert out == b""


class TestNobodyElse:
    def test_without_asking_there_is_none(self, service: Service, sh: str):
        assert service.ssh(sh, SOCKETS).ok().out == b"unset\n"

    def test_a_grantee(self, service: Service, sh: str, agent: Agent):
        said = agent.ssh(service, f"alice/{sh}", SOCKETS, user="bob").ok()
        assert said.out == b"unset\n"

    def test_an_admin(self, service: Service, name: str, agent: Agent):
        service.create(name, SOURCE).ok()
        service.ssh(":admins", name, "grant", "bob").ok()
        said = agent.ssh(service, f"alice/{name}", SOCKETS, user="bob").ok()
        assert said.out == b"unset\n"

    def test_a_token_of_the_owners(self, service: Service, sh: str, agent: Agent):
        token = service.ssh(":tokens", "new").ok().text.strip()
        service.ssh(":access", sh, "grant", token).ok()
        said = agent.ssh(service, f"alice/{sh}", SOCKETS, user=token)
        assert said.ok().out == b"unset\n"

    def test_a_ready_made_command(self, service: Service, agent: Agent):
        assert "SSH_AUTH_SOCK" not in agent.ssh(service, "cmd/env").ok().text

    def test_a_run_that_goes_on_alone(self, service: Service, sh: str, agent: Agent):
        run = agent.ssh(service, ":run", "--detach", sh, SOCKETS).ok().text.strip()
        assert service.ssh(":logs", "-f", run).ok().out == b"unset\n"

    def test_a_key_that_may_not(self, own_service: Service, agent: Agent):
        path = own_service.home / "keys/users/alice.pub"
        path.write_text(f"no-agent-forwarding {path.read_text()}")
        own_service.start()
        own_service.create("sh", SOURCE).ok()
        assert agent.ssh(own_service, "sh", SOCKETS).ok().out == b"unset\n"


@contextmanager
def going_on(service: Service, sh: str, agent: Agent) -> Iterator[subprocess.Popen[bytes]]:
    """A run with the agent, until its stdin ends."""
    client = popen(agent.line(service, sh, "ssh-add -l; cat; ssh-add -l"))
    try:
        assert client.stdout is not None
        assert agent.fingerprint() in client.stdout.readline().decode()
        yield client
        out, _ = client.communicate(timeout=PATIENCE)
        assert agent.fingerprint() in out.decode()
    finally:
        client.kill()
        client.communicate()


def popen(line: list[str]) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    return subprocess.Popen(line, stdin=pipe, stdout=pipe, stderr=pipe)


def listening(service: Service) -> set[str]:
    """The server's UNIX sockets that somebody could connect to."""
    assert service.process is not None
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    there = {f"socket:[{words[6]}]" for words in lines if words[3] == "00010000"}
    held = set()
    for path in Path(f"/proc/{service.process.pid}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            held.add(str(path.readlink()))
    return there & held


class Asked:
    """Notes the channels that the server opens to the agent, and takes its time."""

    def __init__(self, conn: Any) -> None:
        self.count = 0
        self.quiet = Quiet()
        """What the channels lead to."""
        self._open: list[Callable[[], None]] = []
        self._conn = conn
        self._original = conn._process_auth_agent_at_openssh_dot_com_open
        conn._process_auth_agent_at_openssh_dot_com_open = self._note

    def _note(self, packet: Any) -> tuple[Any, Any]:
        self.count += 1
        chan, session = self._original(packet)
        process_open = chan.process_open

        def later(*arguments: Any) -> None:
            self._open.append(lambda: process_open(*arguments))

        session.close()  # the coroutine that would go to the agent
        chan.process_open = later
        return chan, self.quiet

    def answer(self) -> None:
        for go_on in self._open:
            go_on()


class Quiet(asyncssh.SSHUNIXSession[bytes]):
    """An agent that says nothing."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()


class TestHostile:
    async def test_a_client_that_never_answers(self, service: Service, sh: str):
        """It makes the server keep a few channels, and no more."""
        script = "for i in $(seq 40); do { ssh-add -l || echo refused; } 2>&1 & done; wait"
        held = descriptors(service)
        async with connected(service, agent_forwarding="/nowhere") as conn:
            asked = Asked(conn)
            session = await talk(conn, shlex.join([sh, script]))
            await until(lambda: session.out.count(b"refused") == 8)
            assert asked.count == CHANNELS_MAX
            again = await say(conn, shlex.join([sh, "ssh-add -l"]))
            assert await again.end() != 0
            assert asked.count == CHANNELS_MAX
        await until(lambda: descriptors(service) <= held + AT_HAND)
        assert "Traceback" not in service.log

    async def test_a_client_that_answers_late(self, service: Service, sh: str):
        """The run is over by then."""
        async with connected(service, agent_forwarding="/nowhere") as conn:
            asked = Asked(conn)
            session = await talk(conn, shlex.join([sh, "exec ssh-add -l"]))
            await until(lambda: asked.count == 1)
            session.chan.send_signal("TERM")
            assert await session.end() == 128 + signal.SIGTERM
            asked.answer()
            async with asyncio.timeout(PATIENCE):
                await asked.quiet.closed.wait()
            assert (await say(conn, shlex.join([sh, "echo fine"]))).out == b"fine\n"
        assert "Traceback" not in service.log


class TestMeanwhile:
    def test_other_runs_do_not_reach_it(
        self, service: Service, sh: str, agent: Agent, tmp_path: Path
    ):
        with going_on(service, sh, agent), made(tmp_path, "other") as other:
            assert service.ssh(sh, SOCKETS).ok().out == b"unset\n"
            said = other.ssh(service, f"alice/{sh}", SOCKETS, user="bob").ok()
            assert said.out == b"unset\n"
            said = other.ssh(service, sh, "ssh-add -l").ok()
            assert other.fingerprint() in said.text
            assert agent.fingerprint() not in said.text

    def test_it_is_gone_with_the_run(self, service: Service, sh: str, agent: Agent):
        before = listening(service)
        with going_on(service, sh, agent):
            assert len(listening(service) - before) == 1
        assert listening(service) - before == set()
        assert [path for path in service.home.rglob("*") if path.is_socket()] == []

    def test_a_client_that_goes_away(self, service: Service, sh: str, agent: Agent):
        client = popen(agent.line(service, sh, "ssh-add -l; exec sleep 1000"))
        assert client.stdout is not None
        assert agent.fingerprint() in client.stdout.readline().decode()
        client.kill()
        client.communicate()
        said = agent.ssh(service, sh, "ssh-add -l").ok()
        assert agent.fingerprint() in said.text
