"""`git push` to a command, by the real git client."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import transcript
from tests.e2e.service_lab import PATIENCE, Service

pytestmark = pytest.mark.any_engine

ROOT = Path(__file__).parents[2]

SHOWS = """\
#!cmd alpine
#!/bin/sh
# /// cmd
# git_receive = true
# ///
echo "<$#:$1:${GIT_PROTOCOL-unset}>" >&2
exit 9
"""


@dataclass(frozen=True)
class Repository:
    """A repository of the test's, whose git pushes to the service."""

    folder: Path
    service: Service

    def git(
        self, *words: str, user: str = "alice", port: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        """`port` is for an address that cannot have one."""
        ssh = self.service.command_line(user=user)[:-1]
        at = ssh.index("-p")
        del ssh[at : at + 2]
        if port is not None:
            ssh += ["-p", str(port)]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
        return subprocess.run(
            ["git", *words],
            cwd=self.folder,
            env={
                **clean,
                "GIT_SSH_COMMAND": shlex.join(ssh),
                "GIT_SSH_VARIANT": "ssh",
                "GIT_CONFIG_GLOBAL": os.devnull,
                "GIT_CONFIG_NOSYSTEM": "1",
                "LC_ALL": "C",
            },
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def commit(self, message: str = "a change", /, **files: str) -> str:
        """The commit's name."""
        for name, content in files.items():
            (self.folder / name).write_text(content)
        self.done("add", "-A")
        who = ("-c", "user.name=Alice", "-c", "user.email=alice@example.org")
        self.done(*who, "commit", "-q", "-m", message)
        return self.done("rev-parse", "HEAD").strip()

    def done(self, *words: str) -> str:
        said = self.git(*words)
        assert said.returncode == 0, said.stderr
        return said.stdout

    def push(self, path: str, *words: str, user: str = "alice") -> subprocess.CompletedProcess[str]:
        url = f"ssh://127.0.0.1:{self.service.port}/{path}"
        return self.git(*words, "push", url, "main", user=user)


@pytest.fixture
def repository(service: Service, tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "repository", service)
    made.folder.mkdir()
    made.done("init", "-q", "-b", "main")
    made.commit(one="1\n", two="22\n")
    return made


def remote(said: subprocess.CompletedProcess[str]) -> list[str]:
    """What the service's side said."""
    lines = said.stderr.splitlines()
    return [line.removeprefix("remote: ").strip() for line in lines if line.startswith("remote: ")]


def receiving(hook: str) -> str:
    """A command's source whose pre-receive hook is `hook`."""
    return f"""\
#!cmd alpine git
#!/bin/sh
# /// cmd
# git_receive = true
# ///
git init -q --bare repo
mkdir -p repo/hooks
cat >repo/hooks/pre-receive <<'END'
#!/bin/sh
{hook}
END
chmod +x repo/hooks/pre-receive
exec git receive-pack repo
"""


class TestReadyMade:
    def test_what_the_hook_says_is_shown_and_the_push_succeeds(self, repository: Repository):
        said = repository.push("cmd/git-echo")
        assert said.returncode == 0, said.stderr
        short = repository.done("rev-parse", "--short", "HEAD").strip()
        assert remote(said) == [f"refs/heads/main is {short} a change", "2 files, 5 bytes"]
        assert "main -> main" in said.stderr

    def test_a_failing_hook_fails_the_push(self, repository: Repository):
        repository.commit(two="<<<<<<< HEAD\nmine\n=======\n")
        said = repository.push("cmd/git-echo.git")
        assert said.returncode == 1
        assert "a merge is not finished there: refused" in remote(said)
        assert "[remote rejected] main -> main (pre-receive hook declined)" in said.stderr


class TestOwn:
    def test_all_that_was_pushed_is_there(
        self, service: Service, repository: Repository, name: str
    ):
        hook = "read -r old new ref; git show $new:big | sha256sum"
        service.create(name, receiving(hook)).ok()
        big = os.urandom(1 << 20).hex()
        repository.commit(big=big)
        said = repository.push(name)
        assert said.returncode == 0, said.stderr
        assert remote(said) == [f"{hashlib.sha256(big.encode()).hexdigest()}  -"]

    @pytest.mark.parametrize("path", ["{}", "{}.git", "{}/", "alice/{}", "alice/{}.git"])
    def test_how_it_can_be_named(
        self, service: Service, repository: Repository, name: str, path: str
    ):
        service.create(name, SHOWS).ok()
        said = repository.push(path.format(name))
        assert said.returncode == 128
        assert "<0::unset>" in said.stderr

    def test_as_scp_would_name_it(self, service: Service, repository: Repository, name: str):
        service.create(name, SHOWS).ok()
        said = repository.git("push", f"127.0.0.1:{name}", "main", port=service.port)
        assert "<0::unset>" in said.stderr

    def test_the_protocols_version_is_passed_on(
        self, service: Service, repository: Repository, name: str
    ):
        service.create(name, SHOWS).ok()
        said = repository.push(name, "-c", "protocol.version=1")
        assert "<0::version=1>" in said.stderr
        options = ("-o", "SetEnv=GIT_PROTOCOL=version=1")
        assert b"<0::unset>" in service.ssh(name, options=options).err

    def test_who_was_granted_it_can_push(self, service: Service, repository: Repository, name: str):
        service.create(name, SHOWS).ok()
        said = repository.push(f"alice/{name}", user="bob")
        assert said.returncode == 128
        assert f"cmdsvc: alice/{name}: no command alice/{name}" in said.stderr
        service.ssh(":access", name, "grant", "bob").ok()
        assert "<0::unset>" in repository.push(f"alice/{name}", user="bob").stderr


class TestRefused:
    def test_a_command_that_does_not_say_so(
        self, service: Service, repository: Repository, name: str
    ):
        service.create(name, "#!cmd alpine\n#!/bin/sh\necho it ran\n").ok()
        said = repository.push(name)
        assert said.returncode == 128
        assert f"cmdsvc: {name}: alice/{name} takes no git push" in said.stderr
        service.raw(f"git-receive-pack '/{name}'").failed(77, name, "git_receive = true")

    @pytest.mark.parametrize("path", ["no-such-command", "a/b/c", "..", "", "~/x", "x%20y"])
    def test_what_is_no_command(self, repository: Repository, path: str):
        said = repository.push(path)
        assert said.returncode == 128
        assert "cmdsvc: " in said.stderr

    @pytest.mark.parametrize("words", [("fetch",), ("ls-remote",), ("clone",)])
    def test_fetching(
        self, service: Service, repository: Repository, name: str, words: tuple[str, ...]
    ):
        service.create(name, receiving("exit 0")).ok()
        said = repository.git(*words, f"ssh://127.0.0.1:{service.port}/{name}")
        assert said.returncode != 0
        assert f"cmdsvc: {name}: there is nothing to fetch" in said.stderr

    def test_an_archive(self, service: Service, repository: Repository, name: str):
        service.create(name, receiving("exit 0")).ok()
        url = f"ssh://127.0.0.1:{service.port}/{name}"
        said = repository.git("archive", f"--remote={url}", "main")
        assert said.returncode != 0
        assert f"cmdsvc: {name}: there is nothing to fetch" in said.stderr


def test_the_page_on_git(
    service: Service, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    project = Repository(tmp_path / "project", service)
    project.folder.mkdir()
    project.done("init", "-q", "-b", "main")
    project.commit("Say hello", **{"hello.txt": "hello\n"})
    project.done("checkout", "-q", "-b", "conflict")
    project.commit("Try to merge", **{"hello.txt": "<<<<<<< HEAD\nhello\n"})
    for name in list(os.environ):
        if name.startswith("GIT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("LC_ALL", "C")
    page = (ROOT / "docs/git.md").read_text()
    try:
        assert transcript.run(page, service, tmp_path) > 5
    finally:
        service.ssh(":delete", "check")


class TestOneForAll:
    """The caller's own command named git-receive-pack takes what no other one does."""

    def test_it_gets_the_path(self, service: Service, repository: Repository, name: str):
        service.create(name, "#!cmd alpine\n#!/bin/sh\necho it ran\n").ok()
        service.create("git-receive-pack", SHOWS.replace("# git_receive = true\n", "")).ok()
        try:
            for path in (name, "no-such-command"):
                assert f"<1:/{path}:unset>" in repository.push(path).stderr
            said = repository.push("cmd/git-echo")
            assert said.returncode == 0, said.stderr
        finally:
            service.ssh(":delete", "git-receive-pack").ok()
