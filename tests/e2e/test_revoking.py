"""What is taken away: from the next run on, over connections that are open too; with `--now` at once."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator

import pytest

from tests.e2e.service_lab import HELLO, PATIENCE, Service

pytestmark = pytest.mark.any_engine

SLEEPER = b"#!cmd alpine\n#!/bin/sh\necho begun\nexec sleep 600\n"
BY_TOKEN = ("-o", "PubkeyAuthentication=no")
REFUSED = 255


@pytest.fixture
def sleeper(service: Service, name: str) -> str:
    """A command of alice's that goes on until it is ended."""
    service.create(name, SLEEPER).ok()
    return name


@pytest.fixture
def token(service: Service) -> Iterator[str]:
    """Of alice's."""
    text = service.ssh(":tokens", "new").ok().text.strip()
    yield text
    service.ssh(":tokens", "rm", text)


@contextlib.contextmanager
def running(
    service: Service, command: str, user: str, *options: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A client whose run has begun."""
    client = service.popen(command, user=user, options=options)
    try:
        assert client.stdout is not None
        assert client.stdout.readline() == b"begun\n"
        yield client
    finally:
        client.kill()
        client.communicate()


def ended(client: subprocess.Popen[bytes], by: str) -> None:
    _, err = client.communicate(timeout=PATIENCE)
    assert client.returncode == 137, err
    assert err.endswith(f": killed by {by}\n".encode())


@contextlib.contextmanager
def connection(service: Service, user: str, *options: str) -> Iterator[tuple[str, str]]:
    """One that stays open: the options by which further clients share it."""
    with tempfile.TemporaryDirectory() as folder:  # a socket's path has to be short
        shared = ("-o", f"ControlPath={folder}/s")
        subprocess.run(
            service.command_line(*shared, *options, "-M", "-N", "-f", user=user),
            check=True,
            timeout=PATIENCE,
        )
        try:
            yield shared
        finally:
            subprocess.run(
                service.command_line(*shared, "-O", "exit", user=user),
                check=False,
                capture_output=True,
            )


class TestOverAnOpenConnection:
    def test_a_grant(self, service: Service, name: str):
        service.create(name, HELLO).ok()
        service.ssh(":access", name, "grant", "bob").ok()
        with connection(service, "bob") as shared:
            assert service.ssh(f"alice/{name}", user="bob", options=shared).ok().out == b"hello\n"
            service.ssh(":access", name, "revoke", "bob").ok()
            service.ssh(f"alice/{name}", user="bob", options=shared).failed(127)
            service.ssh(":admins", name, "grant", "bob").ok()
            service.ssh(f"alice/{name}", user="bob", options=shared).ok()
            service.ssh(":admins", name, "revoke", "bob").ok()
            service.ssh(":source", f"alice/{name}", user="bob", options=shared).failed(127)

    def test_a_token(self, service: Service, name: str, token: str):
        service.create(name, HELLO).ok()
        service.ssh(":access", name, "grant", token).ok()
        with connection(service, token, *BY_TOKEN) as shared:
            assert service.ssh(name, user=token, options=shared).ok().out == b"hello\n"
            service.ssh(":tokens", "rm", token).ok()
            service.ssh(name, user=token, options=shared).failed(77, "does not hold any more")
            service.ssh("echo", "x", user=token, options=shared).failed(77)

    def test_a_token_that_expires_meanwhile(self, service: Service, name: str, token: str):
        service.create(name, HELLO).ok()
        service.ssh(":access", name, "grant", token).ok()
        with connection(service, token, *BY_TOKEN) as shared:
            service.ssh(name, user=token, options=shared).ok()
            with contextlib.closing(sqlite3.connect(service.home / "var" / "cmdsvc.db")) as store:
                store.execute(
                    "update tokens set expires_at = created_at where id = ?",
                    (token.rpartition("_")[0],),
                )
                store.commit()
            service.ssh(name, user=token, options=shared).failed(77, "does not hold any more")

    def test_a_user(self, own_service: Service, name: str):
        own_service.add_user("bob")
        own_service.start()
        own_service.create(name, SLEEPER).ok()
        own_service.ssh(":access", name, "grant", "public").ok()
        text = own_service.ssh(":tokens", "new", user="bob").ok().text.strip()
        with (
            connection(own_service, "bob") as shared,
            connection(own_service, text, *BY_TOKEN) as shared_by_token,
            running(own_service, f"alice/{name}", "bob", *shared) as run,
        ):
            own_service.cli("user", "rm", "bob").ok()
            by_token = own_service.ssh("echo", "x", user=text, options=shared_by_token)
            by_token.failed(77, "does not hold any more")
            # The keys folder is looked at every second.
            deadline = time.monotonic() + PATIENCE
            while own_service.ssh(":whoami", user="bob", options=shared).status != REFUSED:
                assert time.monotonic() < deadline
            assert run.poll() is None, "what runs goes on"
            own_service.cli("user", "rm", "bob", "--now").ok()
            ended(run, "the operator")


class TestNow:
    def test_of_a_subject_of_a_command(self, service: Service, sleeper: str, token: str):
        full, other = f"alice/{sleeper}", f"{sleeper}-other"
        service.create(other, SLEEPER).ok()
        for command in (sleeper, other):
            service.ssh(":access", command, "grant", "bob", token).ok()
        with (
            running(service, full, "alice") as hers,
            running(service, full, "bob") as his,
            running(service, f"alice/{other}", "bob") as of_another,
            running(service, full, token, *BY_TOKEN) as by_token,
        ):
            service.ssh(":access", sleeper, "revoke", "bob", "--now").ok()
            ended(his, "alice")
            service.ssh(full, user="bob").failed(127)
            assert by_token.poll() is None
            service.ssh(":access", sleeper, "revoke", token, "--now").ok()
            ended(by_token, "alice")
            assert (hers.poll(), of_another.poll()) == (None, None)

    def test_without_it_what_runs_goes_on(self, service: Service, sleeper: str):
        service.ssh(":access", sleeper, "grant", "bob").ok()
        with running(service, f"alice/{sleeper}", "bob") as run:
            service.ssh(":access", sleeper, "revoke", "bob").ok()
            service.ssh(f"alice/{sleeper}", user="bob").failed(127)
            assert run.poll() is None
            service.ssh(":access", sleeper, "revoke", "bob", "--now").ok()  # on second thoughts
            ended(run, "alice")

    def test_of_everyone(self, service: Service, sleeper: str, token: str):
        """Who may run it without `public` goes on."""
        service.ssh(":access", sleeper, "grant", "public", token).ok()
        with (
            running(service, sleeper, "alice") as hers,
            running(service, f"alice/{sleeper}", "bob") as his,
            running(service, sleeper, token, *BY_TOKEN) as by_token,
        ):
            service.ssh(":access", sleeper, "revoke", "public", "--now").ok()
            ended(his, "alice")
            assert (hers.poll(), by_token.poll()) == (None, None)

    def test_of_a_token(self, service: Service, sleeper: str, token: str):
        service.ssh(":access", sleeper, "grant", token).ok()
        with (
            running(service, sleeper, "alice") as hers,
            running(service, sleeper, token, *BY_TOKEN) as by_token,
        ):
            service.ssh(":tokens", "rm", token, "--now").ok()
            ended(by_token, "alice")
            assert hers.poll() is None
        assert service.ssh(sleeper, user=token, options=BY_TOKEN).status == REFUSED

    def test_of_a_user_and_of_his_tokens(self, own_service: Service, name: str):
        own_service.add_user("bob")
        own_service.start()
        own_service.create(name, SLEEPER).ok()
        own_service.ssh(":access", name, "grant", "public").ok()
        text = own_service.ssh(":tokens", "new", user="bob").ok().text.strip()
        full = f"alice/{name}"
        detached = own_service.ssh(":run", "--detach", full, user="bob").ok().text.strip()
        with (
            running(own_service, full, "alice") as hers,
            running(own_service, full, "bob") as his,
            running(own_service, full, text, *BY_TOKEN) as by_token,
        ):
            own_service.cli("user", "rm", "bob", "--now").ok()
            ended(his, "the operator")
            ended(by_token, "the operator")
            said = own_service.ssh(":logs", detached, "-f").ok()
            assert said.err.endswith(b"killed by the operator\n")
            assert hers.poll() is None

    def test_it_is_for_what_is_taken_away(self, service: Service, sleeper: str):
        service.ssh(":access", sleeper, "grant", "bob", "--now").failed(64, "--now")
        service.ssh(":access", sleeper, "--now").failed(64, "--now")
        service.ssh(":admins", sleeper, "revoke", "bob", "--now").failed(64, "--now")
        assert service.ssh(":access", sleeper).ok().out == b""
