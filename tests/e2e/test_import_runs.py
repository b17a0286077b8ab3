"""Runs of imported images: what is the image's in them, what is the service's."""

from __future__ import annotations

import os
import select
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cmdsvc.engine import AGENT_PATH
from tests.availability import unavailable
from tests.e2e import test_agent
from tests.e2e.image_lab import Images, images, serving, static_program
from tests.e2e.raw_client import sleeper
from tests.e2e.service_lab import Service
from tests.e2e.test_runs import Terminal
from tests.kit import Kit

pytestmark = pytest.mark.docker

SH = 'ENTRYPOINT ["/bin/sh", "-c"]'


@pytest.fixture(scope="module")
def served(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    yield from serving(kit, tmp_path_factory.mktemp("import"))


@pytest.fixture(scope="module")
def made(served: Service, kit: Kit) -> Iterator[Images]:
    with images(served.settings["DOCKER_HOST"], kit) as found:
        yield found


@pytest.fixture(scope="module")
def sh(served: Service, made: Images) -> str:
    """A command that runs its first argument as shell text, as the image's root."""
    served.ssh(":import", "sh", made.build("sh", SH)).ok()
    return "sh"


def imported(served: Service, made: Images, name: str, *lines: str) -> None:
    served.ssh(":import", name, made.build(name, *lines)).ok()


class TestWhatIsTheImages:
    @pytest.mark.parametrize(
        ("lines", "said"),
        [
            (['ENTRYPOINT ["/bin/echo", "a"]', 'CMD ["b"]'], ("a b", "a x  y")),
            (['ENTRYPOINT ["/bin/echo", "a"]'], ("a", "a x  y")),
            (["ENTRYPOINT echo shell"], ("shell", "shell")),
        ],
        ids=["both", "entry point", "as a shell's"],
    )
    def test_arguments_take_the_place_of_its_own(
        self, lines: list[str], said: tuple[str, str], served: Service, made: Images
    ):
        served.ssh(":import", "--", "words", made.build("words", *lines)).ok()
        assert served.ssh("words").ok().lines == [said[0]]
        assert served.ssh("words", "x ", "y").ok().lines == [said[1]]
        served.ssh(":delete", "words").ok()

    def test_without_an_entry_point_they_are_what_is_run(
        self, served: Service, made: Images, name: str
    ):
        imported(served, made, name, "ENTRYPOINT []", 'CMD ["echo", "own"]')
        assert served.ssh(name).ok().out == b"own\n"
        assert served.ssh(name, "expr", "6", "*", "7").ok().out == b"42\n"
        assert served.ssh(name, "no-such-program").status == 127
        assert served.ssh(name, "/etc/passwd").status == 126
        assert served.ssh(name, "").status == 127

    def test_its_user_folder_and_environment(self, served: Service, made: Images, name: str):
        imported(
            served,
            made,
            name,
            SH,
            "RUN adduser -D -u 4321 app && mkdir /app && echo file > /app/file",
            "USER app",
            "WORKDIR /app",
            "ENV OWN=image PATH=/app:/usr/bin:/bin HOME=/app CMD_NAME=image",
        )
        script = (
            'id -un; id -u; pwd; cat file; echo "$OWN $PATH $HOME $USER $CMD_NAME $CMD_VERSION"'
        )
        assert served.ssh(name, script).ok().lines == [
            *("app", "4321", "/app", "file"),
            f"image /app:/usr/bin:/bin /cmd alice {name} 1",
        ]
        served.ssh(":env", name, "set", "OWN=owner").ok()
        assert served.ssh(name, "echo $OWN").ok().out == b"owner\n"
        assert served.ssh(
            name, "echo ok > /cmd/a; echo ok > /tmp/a; cat ~/a /tmp/a"
        ).ok().lines == [*("ok", "ok")]
        assert b"Read-only" in served.ssh(name, "echo no > /app/no").err

    def test_without_a_folder_of_its_own_it_is_ours(self, served: Service, sh: str):
        assert served.ssh(sh, "pwd; touch here; ls").ok().lines == ["/cmd", "here"]

    def test_its_volumes_are_writable_bounded_and_gone_afterwards(
        self, served: Service, made: Images, name: str
    ):
        imported(
            served, made, name, SH, "RUN mkdir -m 700 /real && ln -s /real /link && adduser -D app", "USER app",
            "VOLUME /data /link /cmd/ /a/../b",
        )  # fmt: skip
        before = {volume.id for volume in made.client.volumes.list()}
        script = (
            "for d in /data /real /cmd /b /tmp; do "
            'ls $d; grep -c " $d tmpfs " /proc/mounts; dd if=/dev/zero of=$d/f bs=1M; '
            "done; du -cm /data/f /real/f /cmd/f /b/f /tmp/f"
        )
        for _ in range(2):
            *there, _, _, _, _, _, total = served.ssh(name, script).ok().lines
            assert there == ["1"] * 5
            assert 50 <= int(total.split()[0]) <= 64
        assert {volume.id for volume in made.client.volumes.list()} <= before

    def test_one_without_a_shell(self, served: Service, made: Images, name: str, tmp_path: Path):
        try:
            program = static_program(tmp_path)
        except FileNotFoundError:
            unavailable("no C compiler (apt-get install gcc libc6-dev)")
        image = made.build(
            name, "COPY program /program", 'ENTRYPOINT ["/program", "own"]', base="scratch",
            files={"program": program},
        )  # fmt: skip
        served.ssh(":import", name, image).ok()
        data = os.urandom(3 << 20)
        said = served.ssh(name, "two", "three", stdin=data)
        assert (said.out, said.status) == (b"<own><two><three>" + data, 4)

    def test_what_cannot_be_executed(self, served: Service, made: Images, name: str):
        for line, status in (('["/none"]', 127), ('["none"]', 127), ('["/etc/passwd"]', 126)):
            imported(served, made, name, f"ENTRYPOINT {line}")
            assert served.ssh(name).status == status
            served.ssh(":delete", name).ok()

    def test_a_user_that_is_not_there(self, served: Service, made: Images, name: str):
        imported(served, made, name, SH, "USER nobody-knows")
        served.ssh(name, "true").failed(125, "nobody-knows")


class TestStreams:
    @pytest.mark.parametrize("status", [0, 1, 64, 125, 126, 127, 255])
    def test_the_exit_status_is_exact(self, status: int, served: Service, sh: str):
        assert served.ssh(sh, f"exit {status}").status == status

    def test_death_by_signal(self, served: Service, sh: str):
        assert served.ssh(sh, "kill -TERM $$").status == 128 + signal.SIGTERM
        assert served.ssh(sh, "kill -KILL $$").status == 128 + signal.SIGKILL

    def test_bytes_and_the_end_of_stdin(self, served: Service, sh: str):
        data = os.urandom(1 << 20)
        said = served.ssh(sh, "cat; echo no >&2; echo after", stdin=data).ok()
        assert (said.out, said.err) == (data + b"after\n", b"no\n")

    def test_what_it_leaves_running_is_ended(self, served: Service, sh: str):
        assert served.ssh(sh, "sleep 1000 & exec 1>&-; exit 3").status == 3

    def test_a_terminal(self, served: Service, sh: str):
        terminal = Terminal(served, sh, shlex.quote("PS1='ready> ' exec sh -i"))
        try:
            terminal.until(b"ready> ")
            terminal.type(b"stty size; echo $TERM\n")
            terminal.until(b"33 111\r\nxterm-256color\r\n")
            terminal.resize(120, 40)
            terminal.type(b"while [ \"$(stty size)\" != '40 120' ]; do :; done; echo re''sized\n")
            terminal.until(b"resized")
            terminal.type(b"sh -c 'echo be$1; exec sleep 1000' sh gun\n")
            terminal.until(b"begun")
            terminal.type(b"\x03")
            terminal.until(b"ready> ")
            terminal.type(b"exit 5\n")
            assert terminal.wait() == 5
        finally:
            terminal.close()

    def test_bytes_that_json_cannot_carry(self, served: Service, sh: str):
        said = served.ssh(sh, "true", options=("-o", "SendEnv=LC_BAD"), env={"LC_BAD": "\udcff"})
        said.failed(64, "UTF-8")
        assert served.ssh(sh, 'printf %s "$0"', "ü").ok().text == "ü"


class TestEnds:
    def test_a_time_limit(self, served: Service, sh: str):
        served.ssh(":run", "--timeout", "1s", sh, "trap '' TERM INT; sleep 1000").failed(124)

    def test_out_of_memory(self, served: Service, made: Images, name: str):
        imported(served, made, name, SH)
        source = served.ssh(":source", name).ok().out
        served.ssh(":edit", name, stdin=source + b'# /// cmd\n# memory = "32M"\n# ///\n').ok()
        served.ssh(name, "x=x; while :; do x=$x$x; done").failed(137, "memory")

    def test_it_is_gone_with_its_client(self, served: Service, made: Images, sh: str):
        mark = f"2{os.getpid():07d}"
        client = served.popen(sh, f"echo begun; exec sleep {mark}")
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

    def test_it_is_killed_and_leaves_no_container(self, served: Service, made: Images, sh: str):
        client = served.popen(sh, "echo begun; trap '' TERM; while :; do sleep 1; done")
        try:
            assert client.stdout is not None
            assert client.stdout.readline() == b"begun\n"
            run = served.ssh(":runs", sh, "-n", "1").ok().text.split("\t")[0]
            served.ssh(":kill", run).ok()
            assert client.wait(60) == 137
        finally:
            client.kill()
            client.communicate()
        instance = (served.home / "var" / "instance").read_text()
        mine = {"label": f"cmdsvc.instance={instance}"}
        while made.client.api.containers(all=True, filters=mine):
            pass  # it goes behind the run's back


def test_the_owners_agent_is_reached(served: Service, made: Images, name: str, tmp_path: Path):
    imported(served, made, name, SH, "RUN adduser -D app", "USER app")
    script = (
        "mkfifo /tmp/in; nc local:$SSH_AUTH_SOCK <>/tmp/in >/tmp/out & "
        "printf '\\0\\0\\0\\1\\13' >/tmp/in; "  # SSH_AGENTC_REQUEST_IDENTITIES
        "until grep -q mine /tmp/out; do sleep 0.1; done; echo $SSH_AUTH_SOCK"
    )
    with test_agent.made(tmp_path, "mine") as agent:
        said = agent.ssh(served, name, f"timeout 30 sh -c {shlex.quote(script)}").ok()
    assert said.out == AGENT_PATH + b"\n"


def test_root_in_an_image_has_no_privileges(served: Service, sh: str):
    status = dict(
        line.split(":\t", 1) for line in served.ssh(sh, "cat /proc/self/status").ok().lines
    )
    assert status["Uid"].split() == ["0"] * 4
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == 0, kind
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    attempts = (
        "mount -t tmpfs x /tmp",
        "chown 1 /cmd",
        "mknod /cmd/null c 1 3",
        "echo x > /etc/passwd",
        "echo x > /etc/hosts",
        "echo x > /proc/sys/kernel/core_pattern",
        "echo x > /proc/sysrq-trigger",
        "echo 1 > /sys/fs/cgroup/cgroup.procs",
        "unshare -U true",
        "chroot / true",
        "hostname x",
        "true",
    )
    script = "\n".join(f"({attempt}) && echo '{attempt}'" for attempt in attempts)
    assert served.ssh(sh, script).ok().lines == ["true"]
