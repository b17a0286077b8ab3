"""The server's own life: start, check, limits, drain, death, restart."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.service_lab import HELLO, Service

WAIT = b'#!cmd alpine\n#!/bin/sh\necho begun\nread line\necho "got $line"\n'


def begun(service: Service, name: str) -> subprocess.Popen[bytes]:
    """A run of WAIT that is going on."""
    client = service.popen(name)
    assert client.stdout is not None
    assert client.stdout.readline() == b"begun\n"
    return client


def rows(service: Service, query: str) -> list[tuple[object, ...]]:
    database = sqlite3.connect(f"file:{service.home}/var/cmdsvc.db?mode=ro", uri=True)
    try:
        return database.execute(query).fetchall()
    finally:
        database.close()


@pytest.mark.any_engine
def test_version_and_help(own_service: Service):
    own_service.fresh = True
    assert own_service.cli("--version").ok().text.startswith("cmdsvc 0.")
    for words in ([], ["serve"], ["check"], ["pull"], ["user"], ["user", "add"], ["demo"]):
        own_service.fresh = not words
        assert "Usage" in own_service.cli(*words, "--help").ok().text


@pytest.mark.any_engine
def test_check_says_what_is_in_force_and_what_is_wrong(own_service: Service):
    said = own_service.cli("check").ok()
    assert "CMDSVC_TIMEOUT" in said.text
    assert "1 keys of 1 users" in said.text
    wrong = own_service.cli("check", CMDSVC_MEMORY="lots")
    assert wrong.status == 1
    assert "CMDSVC_MEMORY" in wrong.text
    taken = own_service.cli("check", CMDSVC_SSH_LISTEN="203.0.113.1:2222")
    assert taken.status == 1
    assert "CMDSVC_SSH_LISTEN" in taken.text
    gone = own_service.cli("check", CMDSVC_BASE_ALPINE="/nowhere/base.tar")
    assert gone.status == 1
    assert "/nowhere/base.tar is not there" in gone.text
    odd = own_service.cli("check", CMDSVC_TIMOUT="1m").ok()
    assert "CMDSVC_TIMOUT is not a setting" in odd.text


def test_settings_come_from_the_file_too_and_the_environment_wins(own_service: Service):
    (own_service.home / "cmdsvc.toml").write_text('timeout = "7m"\npids = 77\n')
    said = own_service.cli("check", CMDSVC_PIDS="88").ok()
    shown = dict(
        words[:2]
        for line in said.lines
        if (words := line.split())[1:] and words[0].startswith("CMDSVC_")
    )
    assert shown["CMDSVC_TIMEOUT"] == "420.0"
    assert shown["CMDSVC_PIDS"] == "88"


@pytest.mark.any_engine
def test_a_start_that_cannot_be_is_one_clear_line(own_service: Service, service: Service):
    said = own_service.cli("serve", CMDSVC_SSH_LISTEN=f"127.0.0.1:{service.port}")
    assert said.status != 0
    assert said.err.decode().strip().splitlines()[-1].startswith("cmdsvc: cannot listen")
    said = own_service.cli("serve", CMDSVC_TIMEOUT="never")
    assert said.status == 64
    assert said.err.decode().startswith("cmdsvc: CMDSVC_TIMEOUT: ")
    assert said.err.count(b"\n") == 1
    said = own_service.cli("serve", CMDSVC_DATA_DIR="/proc/var").failed(70, "/proc/var")
    assert said.err.count(b"\n") == 1
    assert b"/proc/var cannot be used" in own_service.cli("check", CMDSVC_DATA_DIR="/proc/var").out


def test_a_second_server_on_the_same_data_is_refused(own_service: Service):
    own_service.start()
    said = own_service.cli("serve", CMDSVC_SSH_LISTEN="127.0.0.1:0")
    assert said.status != 0
    assert b"another server" in said.err


@pytest.mark.any_engine
def test_user_add(own_service: Service):
    own_service.start()
    assert own_service.ssh(":whoami", user="bob").status == 255
    key = own_service.key("bob").with_suffix(".pub").read_bytes()
    own_service.cli("user", "add", "bob", stdin=key).ok()
    own_service.cli("user", "add", "carol", stdin=b"nonsense").failed(64, "public key")
    own_service.cli("user", "add", "../x", stdin=key).failed(64)
    own_service.cli("user", "add", "cmd", stdin=key).failed(64)
    own_service.cli(
        "user",
        "add",
        "dave",
        "--operator",
        stdin=own_service.key("dave").with_suffix(".pub").read_bytes(),
    ).ok()
    assert 'operators = ["dave"]' in (own_service.home / "cmdsvc.toml").read_text()
    own_service.stop()
    own_service.start()
    assert own_service.ssh(":whoami", user="bob").ok().text.split("\t")[0] == "bob"
    assert json.loads(own_service.ssh(":whoami", "-j", user="dave").ok().out)[0]["operator"] is True


def test_a_restart_keeps_everything_but_the_runs(own_service: Service, name: str):
    own_service.start()
    own_service.create(name, HELLO).ok()
    assert own_service.stop() == 0
    own_service.start()
    assert own_service.ssh(name).ok().out == b"hello\n"
    assert own_service.stop() == 0
    assert rows(own_service, "select count(*) from runs where ended_at is null") == [(0,)]


def test_a_run_is_recorded_with_its_outcome_and_logged_in_one_line(own_service: Service, name: str):
    own_service.settings = {**own_service.settings, "CMDSVC_LOG": "json"}
    own_service.start()
    own_service.create(name, b"#!cmd alpine\n#!/bin/sh\nexit 3\n").ok()
    own_service.ssh(name)
    own_service.stop()
    assert [r[0] for r in rows(own_service, "select exit_status from runs")] == [3]
    lines = [json.loads(line) for line in own_service.log.splitlines()]
    logged = [line for line in lines if line["message"] == "run"]
    assert len(logged) == 1
    assert (logged[0]["command"], logged[0]["exit_status"]) == (f"alice/{name}", 3)
    assert (logged[0]["user"], logged[0]["door"]) == ("alice", "ssh")


def test_sigterm_drains(own_service: Service, name: str):
    """Runs going on end by themselves; new ones on an open connection are 75."""
    own_service.start()
    own_service.create(name, WAIT).ok()
    master = ("-o", f"ControlPath={own_service.home}/mux")
    first = subprocess.Popen(
        [*own_service.command_line(*master, "-M"), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert first.stdin is not None
    assert first.stdout is not None
    assert first.stdout.readline() == b"begun\n"
    process = own_service.process
    assert process is not None
    process.send_signal(signal.SIGTERM)
    while True:  # the signal is handled at the server's leisure: each try asks again
        said = own_service.ssh(name, stdin=b"x\n", options=master)
        if said.status != 0:
            break
    said.failed(75, "shutting down")
    first.stdin.write(b"on\n")
    first.stdin.close()
    assert first.stdout.read() == b"got on\n"
    first.stdout.close()
    assert first.wait(60) == 0
    assert process.wait(60) == 0
    own_service.stop()


def test_a_drain_has_an_end(own_service: Service, name: str):
    own_service.settings = {**own_service.settings, "CMDSVC_DRAIN": "200ms"}
    own_service.start()
    own_service.create(name, WAIT).ok()
    client = begun(own_service, name)
    assert own_service.stop() == 0
    _, err = client.communicate(timeout=60)
    line = f"cmdsvc: {name}: the server stopped while this ran; start it again\n"
    assert (client.returncode, err.decode()) == (70, line)
    assert [r[0] for r in rows(own_service, "select reason from runs")] == ["lost"]


def test_a_killed_server_leaves_no_run_and_marks_it_lost(own_service: Service, name: str):
    own_service.start()
    own_service.create(name, WAIT).ok()
    client = begun(own_service, name)
    own_service.stop(signal.SIGKILL)
    client.communicate(timeout=60)
    own_service.start()
    assert [r[0] for r in rows(own_service, "select reason from runs")] == ["lost"]
    assert own_service.ssh(name, stdin=b"again\n").ok().out == b"begun\ngot again\n"


@pytest.mark.any_engine
def test_over_the_limit_is_75_and_the_rest_is_unharmed(own_service: Service, name: str):
    own_service.settings = {**own_service.settings, "CMDSVC_MAX_RUNS": "3"}
    own_service.start()
    own_service.create(name, WAIT).ok()
    clients = [begun(own_service, name) for _ in range(3)]
    own_service.ssh(name).failed(75, name, "3 runs")
    for client in clients:
        out, _ = client.communicate(b"x\n", timeout=60)
        assert (out, client.returncode) == (b"got x\n", 0)
    assert own_service.ssh(name, stdin=b"y\n").ok().out == b"begun\ngot y\n"


@pytest.mark.any_engine
def test_one_user_cannot_take_all_runs(own_service: Service, name: str):
    own_service.settings = {**own_service.settings, "CMDSVC_MAX_RUNS_PER_USER": "1"}
    own_service.add_user("bob")
    own_service.start()
    for user in ("alice", "bob"):
        own_service.create(name, WAIT, user=user).ok()
    client = begun(own_service, name)
    own_service.ssh(name).failed(75, "of yours")
    assert own_service.ssh(name, user="bob", stdin=b"z\n").ok().out == b"begun\ngot z\n"
    client.communicate(b"x\n", timeout=60)
    assert client.returncode == 0


@pytest.mark.slow
def test_200_sessions_at_once(own_service: Service, name: str):
    """Over the limit they are told 75, within it they are served; none hangs, none is harmed."""
    own_service.settings = {
        **own_service.settings,
        "CMDSVC_MAX_RUNS": "20",
        "CMDSVC_MAX_RUNS_PER_USER": "20",
    }
    own_service.start()
    own_service.create(name, WAIT).ok()
    held = begun(own_service, name)
    sockets = [f"{own_service.home}/m{i}" for i in range(10)]
    for path in sockets:
        subprocess.run(
            [*own_service.command_line("-o", f"ControlPath={path}", "-M", "-N", "-f")],
            check=True,
            timeout=60,
        )
    try:
        with ThreadPoolExecutor(200) as pool:
            said = list(
                pool.map(
                    lambda i: own_service.ssh(
                        name,
                        stdin=b"%d\n" % i,
                        options=("-o", f"ControlPath={sockets[i % 10]}"),
                    ),
                    range(200),
                )
            )
    finally:
        for path in sockets:
            subprocess.run(
                own_service.command_line("-o", f"ControlPath={path}", "-O", "exit"),
                check=False,
                capture_output=True,
            )
    for i, one in enumerate(said):
        if one.status == 0:
            assert one.out == b"begun\ngot %d\n" % i
        else:
            one.failed(75, "20 runs")
    assert sum(one.status == 0 for one in said) >= 19
    held.communicate(b"x\n", timeout=60)
    assert held.returncode == 0


def test_a_failing_session_does_not_harm_its_neighbours(own_service: Service, name: str):
    own_service.start()
    own_service.create(name, WAIT).ok()
    mux = f"ControlPath={own_service.home}/mux"
    first = subprocess.Popen(
        [*own_service.command_line("-o", mux, "-M"), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert first.stdout is not None
    assert first.stdout.readline() == b"begun\n"
    own_service.ssh(":nonsense", options=("-o", mux)).failed(64)
    own_service.raw("'", options=("-o", mux)).failed(64)
    own_service.raw("sftp", options=("-o", mux, "-s"))
    killed = own_service.popen(name, options=("-o", mux))
    assert killed.stdout is not None
    assert killed.stdout.readline() == b"begun\n"
    killed.kill()
    killed.communicate()
    out, _ = first.communicate(b"fine\n", timeout=60)
    assert (out, first.returncode) == (b"got fine\n", 0)


def test_secrets_have_the_modes_of_secrets(own_service: Service):
    own_service.start()
    key = own_service.home / "keys" / "ssh_host_ed25519_key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert (own_service.home / "var").stat().st_mode & 0o077 == 0
    assert (own_service.home / "var" / "cmdsvc.db").stat().st_mode & 0o077 == 0
    before = key.read_bytes()
    own_service.stop()
    own_service.start()
    assert key.read_bytes() == before


def test_a_base_can_be_fetched_ahead(own_service: Service):
    own_service.cli("pull", "alpine").ok()
    own_service.cli("pull", "beos").failed(64, "beos")


def test_the_log_does_not_let_a_line_be_forged(own_service: Service):
    own_service.start()
    own_service.ssh("x\nforged line").failed(64)
    own_service.stop()
    assert "\nforged" not in own_service.log


@pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root to have a folder that only root can enter"
)
def test_it_all_works_below_a_folder_that_only_root_can_enter(own_service: Service, name: str):
    own_service.home.chmod(0o700)
    (own_service.home / "var").mkdir(mode=0o700)
    own_service.start()
    own_service.create(name, "#!cmd alpine jq\n#!jq\n").ok()
    assert own_service.ssh(name, ".", stdin=b"1").ok().out == b"1\n"


def test_the_start_says_what_the_engine_cannot_give(own_service: Service, engine_name: str):
    own_service.start()
    own_service.ssh(":whoami").ok()
    own_service.stop()
    warnings = [line for line in own_service.log.splitlines() if " warning " in line]
    if engine_name == "docker":
        assert any("cmdsvc firewall" in line for line in warnings), own_service.log
    else:
        networked = os.geteuid() == 0
        assert any("no network" in line for line in warnings) != networked, own_service.log
