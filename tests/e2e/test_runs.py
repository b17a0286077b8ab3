"""Bytes, statuses, terminals and signals, from the real ssh client to the script and back."""

from __future__ import annotations

import hashlib
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.e2e.raw_client import sleeper
from tests.e2e.service_lab import PATIENCE, Service


@pytest.fixture(scope="module")
def sh(service: Service) -> Iterator[str]:
    """A command that runs its first argument as shell text."""
    name = "sh-for-tests"
    service.create(name, '#!cmd alpine\n#!/bin/sh\neval "$1"\n').ok()
    yield name
    service.ssh(":delete", name)


@pytest.mark.parametrize("status", [0, 1, 2, 63, 64, 77, 124, 125, 126, 127, 128, 255])
def test_the_exit_status_is_exact(service: Service, sh: str, status: int):
    """cmd.io's was 0, whatever became of the script."""
    assert service.ssh(sh, f"exit {status}").status == status


def test_death_by_signal_is_128_plus_its_number(service: Service, sh: str):
    assert service.ssh(sh, "kill -TERM $$").status == 128 + signal.SIGTERM
    assert service.ssh(sh, "kill -KILL $$").status == 128 + signal.SIGKILL


def test_arguments_are_split_like_a_shell_would_and_not_expanded(service: Service, sh: str):
    script = """for a; do printf '<%s>' "$a"; done"""
    said = service.raw(f"{sh} {_quoted(script)} a  'b c' \"d'e\" \\$HOME $HOME * '' -n ü").ok()
    shown = said.text.split("><")
    assert shown[1:] == ["a", "b c", "d'e", "$HOME", "$HOME", "*", "", "-n", "ü>"]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def test_a_command_line_that_cannot_be_split(service: Service, sh: str):
    service.raw(f"{sh} 'unfinished").failed(64, f"cmdsvc: {sh}: ", "split", "; ")


def test_binary_stdin_comes_back_as_it_was(service: Service, sh: str):
    data = os.urandom(3 << 20)
    assert service.ssh(sh, "exec cat", stdin=data).ok().out == data
    digest = service.ssh(sh, "exec sha256sum", stdin=data).ok().text.split()[0]
    assert digest == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("cipher", ["chacha20-poly1305@openssh.com", "aes128-gcm@openssh.com"])
def test_a_cipher_carries_much_through_new_keys_and_nothing_in_vain(
    service: Service, sh: str, cipher: str
):
    data = os.urandom(3 << 20)
    options = ("-c", cipher, "-o", "RekeyLimit=1M", "-vvv")
    said = service.ssh(sh, "exec cat", stdin=data, options=options).ok()
    assert said.out == data
    words = said.err.decode()
    assert f"cipher: {cipher}" in words
    received = re.findall(r"receive packet: type (\d+)", words)
    assert received.count("21") > 1  # new keys
    assert "2" not in received  # only to be ignored


def test_stdin_can_end_before_the_output_begins(service: Service, sh: str):
    said = service.ssh(sh, 'n=$(wc -c); echo "$n after the end"', stdin=b"12345").ok()
    assert said.out == b"5 after the end\n"


def test_stdout_and_stderr_are_apart(service: Service, sh: str):
    said = service.ssh(sh, "echo out; echo err >&2").ok()
    assert (said.out, said.err) == (b"out\n", b"err\n")


def test_the_environment_is_the_services_and_what_a_caller_may_set(service: Service, sh: str):
    said = service.ssh(
        sh,
        "env",
        options=("-o", "SendEnv=LANG LC_TIME CMD_USER SECRET PATH COLORTERM"),
        env={"LC_TIME": "de_AT", "CMD_USER": "root", "SECRET": "x", "COLORTERM": "truecolor"},
    ).ok()
    env = dict(line.split("=", 1) for line in said.lines)
    run_id = env.pop("CMD_RUN_ID")
    assert len(run_id) == 16
    for shell in ("PWD", "SHLVL", "OLDPWD", "_"):
        env.pop(shell, None)
    assert env.pop("SERVER_SOFTWARE").startswith("cmdsvc/")
    assert env.pop("LANG") == os.environ.get("LANG", "C.UTF-8")
    assert env == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/cmd",
        "USER": "alice",
        "REMOTE_ADDR": "127.0.0.1",
        "CMD_NAME": sh,
        "CMD_OWNER": "alice",
        "CMD_USER": "alice",
        "CMD_VERSION": "1",
        "LC_TIME": "de_AT",
        "COLORTERM": "truecolor",
    }


def test_a_script_can_accept_more_of_the_callers_environment(service: Service, name: str):
    service.create(
        name,
        '#!cmd alpine\n#!/bin/sh\n# /// cmd\n# accept_env = ["GREETING"]\n# ///\n'
        'echo "$GREETING ${OTHER-unset}"\n',
    ).ok()
    said = service.ssh(
        name, options=("-o", "SendEnv=GREETING OTHER"), env={"GREETING": "hi", "OTHER": "x"}
    ).ok()
    assert said.out == b"hi unset\n"


def test_a_time_limit_is_told(service: Service, name: str):
    service.create(
        name, '#!cmd alpine\n#!/bin/sh\n# /// cmd\n# timeout = "500ms"\n# ///\nexec sleep 1000\n'
    ).ok()
    service.ssh(name).failed(124, f"cmdsvc: {name}: timed out after 0.5 s; ")


def test_out_of_memory_is_told(service: Service, name: str, engine_name: str):
    service.create(
        name,
        '#!cmd alpine\n#!/bin/sh\n# /// cmd\n# memory = "32M"\n# ///\n'
        "exec awk 'BEGIN { s = \"x\"; while (1) s = s s }'\n",
    ).ok()
    service.ssh(name).failed(137, f"cmdsvc: {name}: out of memory; ")


class Terminal:
    """An ssh client on a pseudo-terminal, as a person sees it."""

    def __init__(self, service: Service, *words: str) -> None:
        self.master, slave = pty.openpty()
        import fcntl
        import struct
        import termios

        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 111, 0, 0))
        self.process = subprocess.Popen(
            [*service.command_line("-t"), *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color"},
        )
        os.close(slave)
        self.seen = b""

    def until(self, text: bytes) -> bytes:
        ends = time.monotonic() + PATIENCE
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(0.0, ends - time.monotonic()))
            assert ready, self.seen
            try:
                data = os.read(self.master, 65536)
            except OSError:  # EIO: the client has closed its side
                data = b""
            assert data, (text, self.seen)
            self.seen += data
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def resize(self, columns: int, rows: int) -> None:
        import fcntl
        import struct
        import termios

        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process.send_signal(signal.SIGWINCH)

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def shell(service: Service, name: str) -> Iterator[Terminal]:
    """An interactive shell in a sandbox, in the hands of a person."""
    service.create(name, "#!cmd alpine\n#!/bin/sh\nPS1='ready> ' exec sh -i\n").ok()
    terminal = Terminal(service, name)
    try:
        terminal.until(b"ready> ")
        yield terminal
    finally:
        terminal.close()


def test_a_terminal_has_its_size_and_type_and_echoes(shell: Terminal):
    shell.type(b"stty size; echo $TERM\r")
    shell.until(b"33 111\r\nxterm-256color\r\n")


def test_a_terminal_follows_the_clients_size(shell: Terminal):
    shell.type(b"sh -c 'trap \"stty size; exit\" WINCH; echo $1; sleep 1000 & wait' sh set\r")
    shell.until(b"set\r\n")
    shell.until(b"set\r\n")
    shell.resize(77, 44)
    shell.until(b"44 77")


def test_control_c_interrupts_what_runs_and_not_the_shell(shell: Terminal):
    # The program in the foreground announces itself: the shell may still be between two things.
    shell.type(b"sh -c 'echo be$1; exec sleep 1000' sh gun\r")
    shell.until(b"begun\r\n")
    shell.type(b"\x03")
    shell.until(b"ready> ")
    shell.type(b"exit 5\r")
    assert shell.wait() == 5


def test_edit_opens_an_editor_on_a_terminal(service: Service, name: str):
    service.create(name, "#!cmd alpine\n#!/bin/sh\necho first\n").ok()
    terminal = Terminal(service, f":edit {name}")
    try:
        terminal.until(b"echo first")
        terminal.type(b":%s/first/second/\r:wq\r")
        terminal.until(b"is now version 2")
        assert terminal.wait() == 0
    finally:
        terminal.close()
    assert service.ssh(name).ok().out == b"second\n"
    terminal = Terminal(service, f":edit {name}")
    try:
        terminal.until(b"echo second")
        terminal.type(b":q\r")
        terminal.until(b"is unchanged")
        assert terminal.wait() == 0
    finally:
        terminal.close()


def test_the_sandbox_is_gone_within_a_second_of_the_client(service: Service, sh: str):
    mark = f"1{os.getpid():07d}"
    client = service.popen(sh, f"echo begun; exec sleep {mark}")
    try:
        assert client.stdout is not None
        assert client.stdout.readline() == b"begun\n"
        while (pid := sleeper(mark)) is None:
            assert client.poll() is None
        process = os.pidfd_open(pid)
        try:
            client.kill()
            gone, _, _ = select.select([process], [], [], 1.0)
        finally:
            os.close(process)
        assert gone
    finally:
        client.kill()
        client.communicate()
