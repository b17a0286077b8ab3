"""Names are completed in real shells, from a server that runs."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.availability import unavailable
from tests.e2e.service_lab import HELLO, PATIENCE, Service

pytestmark = pytest.mark.any_engine


@pytest.fixture
def hello(service: Service) -> str:
    """A command's name that begins as no other."""
    service.ssh(":apply", "xylophone.v2", stdin=HELLO).ok()
    return "xylophone.v2"


@pytest.fixture
def path(service: Service, tmp_path: Path) -> str:
    """A PATH on which `ssh cmd` reaches the service, as by ~/.ssh/config."""
    *options, host = service.command_line()
    config = tmp_path / "config"
    config.write_text(f"Host cmd\n  HostName {host}\n")
    options[options.index("none")] = str(config)
    options[0] = shutil.which("ssh") or "ssh"
    wrapper = tmp_path / "bin" / "ssh"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {shlex.join(options)} "$@"\n')
    wrapper.chmod(0o755)
    return f"{wrapper.parent}:{os.environ['PATH']}"


def completion(shell: str, folder: Path, *options: str) -> Path:
    file = folder / f"completion.{shell}"
    file.write_bytes(
        subprocess.run(
            [sys.executable, "-m", "cmdsvc", "completion", shell, *options],
            check=True, capture_output=True, timeout=PATIENCE,
        ).stdout
    )  # fmt: skip
    return file


def need(shell: str) -> str:
    found = shutil.which(shell)
    if found is None:
        unavailable(f"there is no {shell}")
    return found


class Shell:
    """An interactive shell on a terminal, and what is typed there."""

    def __init__(self, argv: list[str], env: dict[str, str]) -> None:
        self.seen = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvpe(argv[0], argv, env)

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def until(self, text: str) -> str:
        """What came up to `text`, without what only moves the cursor."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.seen:
            ready, _, _ = select.select([self.fd], [], [], max(0, deadline - time.monotonic()))
            assert ready, self.seen
            data = os.read(self.fd, 65536).decode(errors="replace")
            self.seen += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]|[\r\a]", "", data)
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def close(self) -> None:
        os.close(self.fd)
        os.waitpid(self.pid, 0)


def environment(path: str, home: Path) -> dict[str, str]:
    return {"PATH": path, "HOME": str(home), "TERM": "dumb", "LANG": "C.UTF-8", "PS1": "READY "}


def test_bash(hello: str, path: str, tmp_path: Path):
    file = completion("bash", tmp_path)
    shell = Shell([need("bash"), "--norc", "--noprofile", "-i"], environment(path, tmp_path))
    try:
        shell.until("READY ")
        shell.type(f"bind 'set enable-bracketed-paste off'; . {file}; echo do''ne\n")
        shell.until("done")
        shell.until("READY ")
        shell.type("ssh cmd xyl\t")
        shell.until(f"ssh cmd {hello} ")
        shell.type("\n")
        shell.until("hello\n")
        shell.type("ssh cmd :whoa\t")
        shell.until("ssh cmd :whoami ")
        shell.type("\n")
        shell.until("alice")
        shell.type("ssh -p 22 cmd :help :whoa\t")
        shell.until(":help :whoami ")
        shell.type("\x15ssh cmd htt\t")
        shell.until("ssh cmd http ")
        # Another host's words are not ours to complete, and nothing asks it.
        shell.type("\x15ssh elsewhere xyl\t.\n")
        shell.until("elsewhere xyl.")
    finally:
        shell.close()


def test_bash_leaves_what_completed_ssh_before(path: str, tmp_path: Path):
    file = completion("bash", tmp_path, "--host", "mine")
    script = f"""
    before() {{ COMPREPLY=(from-before); }}
    complete -F before ssh
    . {file}; . {file}
    COMP_LINE='ssh other na' COMP_POINT=12 COMP_WORDS=(ssh other na) COMP_CWORD=2
    _cmdsvc_ssh ssh na other; echo "${{COMPREPLY[@]}}"; echo "$CMDSVC_HOSTS"
    """
    done = subprocess.run(
        [need("bash"), "--norc", "-c", script], env=environment(path, tmp_path),
        capture_output=True, text=True, check=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.stdout == "from-before\nmine\n", done


def test_names_that_a_hostile_server_sends_are_not_run(tmp_path: Path):
    fake = tmp_path / "bin" / "ssh"
    fake.parent.mkdir()
    fake.write_text(
        f"#!/bin/sh\nprintf '%s\\t1\\n' 'good' '$(touch {tmp_path}/ran)' '`touch {tmp_path}/ran`' '*'\n"
    )
    fake.chmod(0o755)
    path = f"{fake.parent}:{os.environ['PATH']}"
    script = f"""
    . {completion("bash", tmp_path)}
    COMP_LINE='ssh cmd ' COMP_POINT=8 COMP_WORDS=(ssh cmd '') COMP_CWORD=2
    _cmdsvc_ssh ssh '' cmd; printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        [need("bash"), "--norc", "-c", script], env=environment(path, tmp_path),
        capture_output=True, text=True, check=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.stdout == "good\n", done
    assert not (tmp_path / "ran").exists()


def test_zsh(hello: str, path: str, tmp_path: Path):
    file = completion("zsh", tmp_path)
    shell = Shell([need("zsh"), "-f", "-i"], environment(path, tmp_path))
    try:
        shell.until("READY ")
        shell.type(
            f"autoload -Uz compinit; compinit -u -d {tmp_path}/dump; source {file}; echo do''ne\n"
        )
        shell.until("done\n")
        shell.until("READY ")
        shell.type("ssh cmd xyl\t")
        shell.until(f"{hello} ")
        shell.type("\n")
        shell.until("hello\n")
        shell.until("READY ")
        shell.type("ssh cmd :whoa\t")
        shell.until("mi ")
        shell.type("\n")
        shell.until("alice")
    finally:
        shell.close()


def test_fish(hello: str, path: str, tmp_path: Path):
    file = completion("fish", tmp_path)

    def complete(line: str) -> list[str]:
        done = subprocess.run(
            [need("fish"), "--no-config", "-c", f"source {file}; complete -C {shlex.quote(line)}"],
            env=environment(path, tmp_path), capture_output=True, text=True, check=True,
            timeout=PATIENCE,
        )  # fmt: skip
        assert not done.stderr, done
        return [found.split("\t")[0] for found in done.stdout.splitlines()]

    assert complete("ssh cmd xyl") == [hello]
    assert complete("ssh -p 22 cmd :whoa") == [":whoami"]
    assert complete("ssh cmd :help :whoa") == [":whoami"]
    assert hello not in complete("ssh elsewhere xyl")
    assert complete(f"ssh cmd {hello} xyl") == []


def test_the_snippet_for_ssh_config(service: Service, tmp_path: Path, name: str):
    """It is what a real client takes, and the second run has no handshake."""
    service.create(name, HELLO).ok()
    snippet = service.ssh(":help", "ssh").ok().text
    assert f"Port {service.port}\n" in snippet
    config = tmp_path / "config"
    # A socket's name has room for 100 characters.
    with tempfile.TemporaryDirectory() as short:
        config.write_text(snippet.replace("~/.ssh/control-%C", f"{short}/c-%C"))
        _shared(service, config, name, Path(short))


def _shared(service: Service, config: Path, name: str, sockets: Path) -> None:
    *options, _ = service.command_line()
    options[options.index("none")] = str(config)
    del options[options.index("-p") : options.index("-p") + 2]
    for _ in range(2):
        done = subprocess.run(
            [*options, "cmd", name], capture_output=True, timeout=PATIENCE, check=True
        )
        assert done.stdout == b"hello\n"
    assert list(sockets.glob("c-*"))
    subprocess.run(
        [*options, "-O", "exit", "cmd"], capture_output=True, timeout=PATIENCE, check=True
    )
