"""`:env`: what an owner sets is there in a run, for nobody else, and nowhere to be read."""

from __future__ import annotations

import json
import secrets
import signal
import sqlite3
import textwrap
from pathlib import Path

import pytest

from tests import transcript
from tests.e2e.service_lab import Service

pytestmark = pytest.mark.any_engine

ROOT = Path(__file__).parents[2]

PRINT = b'#!cmd alpine\n#!/bin/sh\nprintf %s "$TOKEN"\n'
ALL = b"#!cmd alpine\n#!/bin/sh\ncat /proc/self/environ\n"
ACCEPTS = (
    b"#!cmd alpine\n#!/bin/sh\n"
    b'# /// cmd\n# accept_env = ["TOKEN", "OTHER"]\n# ///\nprintf "%s %s" "$TOKEN" "$OTHER"\n'
)
WAITS = b'#!cmd alpine\n#!/bin/sh\nprintf %s "$TOKEN" | wc -c\ncat\n'

RESERVED = [
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "IFS", "BASH_ENV"),
    *("CMD_NAME", "CMD_ANY", "CMDSVC_DATA_DIR", "SSH_AUTH_SOCK", "SSH_ANY", "LD_PRELOAD", "LD_ANY"),
    *("REMOTE_ADDR", "SERVER_SOFTWARE"),
]


@pytest.fixture
def printing(service: Service, name: str) -> str:
    service.create(name, PRINT).ok()
    return name


@pytest.fixture
def secret() -> str:
    return f"sEcReT{secrets.token_hex(12)}"


def environ(service: Service, name: str, user: str = "alice") -> dict[bytes, bytes]:
    pairs = service.ssh(name, user=user).ok().out.split(b"\0")
    return dict(pair.split(b"=", 1) for pair in pairs if pair)


class TestSet:
    def test_a_value_is_there_in_the_next_run(self, service: Service, printing: str):
        assert service.ssh(printing).ok().out == b""
        said = service.ssh(":env", printing, "set", "TOKEN=one two  three=four").ok()
        assert (said.out, said.err) == (b"", b"set TOKEN\n")
        assert service.ssh(printing).ok().out == b"one two  three=four"
        service.ssh(":env", printing, "set", "TOKEN=other").ok()
        assert service.ssh(printing).ok().out == b"other"
        service.ssh(":env", printing, "set", "TOKEN=two\nlines\n").ok()
        assert service.ssh(printing).ok().out == b"two\nlines\n"
        service.ssh(":env", printing, "unset", "TOKEN").ok()
        assert service.ssh(printing).ok().out == b""

    def test_values_may_be_empty(self, service: Service, name: str):
        service.create(name, ALL).ok()
        service.ssh(":env", name, "set", "EMPTY=", "B=x").ok()
        found = environ(service, name)
        assert (found[b"EMPTY"], found[b"B"]) == (b"", b"x")

    @pytest.mark.parametrize(
        ("sent", "kept"),
        [
            (b"secret\n", b"secret"),
            (b"secret\r\n", b"secret"),
            (b"secret", b"secret"),
            (b"two\nlines\n\n", b"two\nlines\n"),
            (b"", b""),
            (b"\n", b""),
            (b"-", b"-"),
            (bytes(range(1, 256)) * 200, bytes(range(1, 256)) * 200),
            (b"x" * 65536 + b"\n", b"x" * 65536),
        ],
        ids=lambda value: str(len(value)),
    )
    def test_a_value_from_stdin_less_one_line_break(
        self, sent: bytes, kept: bytes, service: Service, name: str
    ):
        service.create(name, ALL).ok()
        service.ssh(":env", name, "set", "A=1", "TOKEN=-", stdin=sent).ok()
        found = environ(service, name)
        assert (found[b"TOKEN"], found[b"A"]) == (kept, b"1")

    def test_the_largest_that_is_allowed_runs(self, service: Service, name: str):
        service.create(name, ALL).ok()
        for variable in "ABC":
            service.ssh(":env", name, "set", f"{variable}=-", stdin=b"x" * 65536).ok()
        rest = b"x" * (65536 - 4)
        service.ssh(":env", name, "set", "D=-", stdin=rest).ok()
        found = environ(service, name)
        assert [len(found[v]) for v in (b"A", b"B", b"C", b"D")] == [65536] * 3 + [len(rest)]
        service.ssh(":env", name, "set", "E=1").failed(65, "bytes in all")
        service.ssh(":env", name, "set", "D=1", "E=1").ok()

    def test_the_service_keeps_its_own_names(self, service: Service, name: str):
        service.create(name, ALL).ok()
        before = environ(service, name)
        service.ssh(":env", name, "set", "A=1").ok()
        after = environ(service, name)
        assert after.keys() - before.keys() == {b"A"}


class TestRefused:
    @pytest.mark.parametrize(
        "words",
        [
            ["A"],
            ["=B"],
            ["="],
            ["A=1", "B"],
            ["A=1", "A=2"],
            ["A=-", "B=-"],
            ["1A=x"],
            ["A-B=x"],
            ["A B=x"],
            ["\N{LATIN SMALL LETTER E WITH ACUTE}=x"],
            [f"{'A' * 129}=x"],
            [],
            *([f"{name}=x"] for name in RESERVED),
        ],
        ids=str,
    )
    def test_and_nothing_is_set(self, words: list[str], service: Service, printing: str):
        good = ["GOOD=1"] if words else []
        service.ssh(":env", printing, "set", *good, *words, stdin=b"x").failed(64)
        assert service.ssh(":env", printing).ok().out == b""

    def test_a_reserved_name_is_refused_with_a_reason(self, service: Service, printing: str):
        service.ssh(":env", printing, "set", "PATH=/x").failed(
            64, "PATH is reserved", "the service"
        )

    def test_a_value_is_too_large_or_holds_a_nul(self, service: Service, printing: str):
        for value, words in (
            (b"x" * (1 << 20), "larger than 65536 bytes"),
            (b"x" * 65537, "larger than 65536 bytes"),
            (b"a\0b", "NUL"),
        ):
            service.ssh(":env", printing, "set", "A=1", "TOKEN=-", stdin=value).failed(65, words)
        service.ssh(":env", printing, "set", f"TOKEN={'x' * 40000}").failed(64, "stdin")
        assert service.ssh(":env", printing).ok().out == b""

    @pytest.mark.parametrize(
        "words",
        [
            ["set", "TOKEN", "SECRET"],
            ["set", "SECRET"],
            ["set", "=SECRET"],
            ["set", "A=1", "A=SECRET"],
            ["set", "PATH=SECRET"],
            ["set", "A-B=SECRET"],
            ["set", "--A=SECRET"],
            ["A=SECRET"],
            ["unset", "A=SECRET"],
            ["ls", "SECRET"],
            ["--show", "ls", "A=SECRET"],
            ["set", "A=SECRET", "B=-", "C=-"],
        ],
        ids=str,
    )
    def test_no_error_repeats_a_value(self, words: list[str], service: Service, printing: str):
        said = service.ssh(":env", printing, *words).failed(64)
        assert b"SECRET" not in said.out + said.err

    def test_a_terminal_is_not_where_a_value_comes_from(self, service: Service, printing: str):
        said = service.ssh(":env", printing, "set", "TOKEN=-", options=("-tt",))
        assert said.status == 64
        assert b"pipe" in said.out + said.err

    def test_a_command_that_is_not_there(self, service: Service, name: str):
        service.ssh(":env", name).failed(127, name)
        service.ssh(":env", name, "set", "A=1").failed(127, name)


class TestListing:
    def test_names_and_values(self, service: Service, printing: str):
        service.ssh(":env", printing, "set", "TOKEN=a b", "A=-", stdin=b"x\ny\xff\n").ok()
        assert service.ssh(":env", printing).ok().out == b"A\nTOKEN\n"
        assert service.ssh(":env", printing, "ls").ok().out == b"A\nTOKEN\n"
        shown = service.ssh(":env", printing, "ls", "--show").ok().out
        assert shown == b"A\tx\\ny\\xff\nTOKEN\ta b\n"
        names = json.loads(service.ssh(":env", printing, "ls", "-j").ok().out)
        assert names == [{"name": "A"}, {"name": "TOKEN"}]
        exact = json.loads(service.ssh(":env", printing, "ls", "--show", "-j").ok().out)
        assert exact == [
            {"name": "A", "value": "x\ny\udcff"},
            {"name": "TOKEN", "value": "a b"},
        ]
        assert exact[0]["value"].encode(errors="surrogateescape") == b"x\ny\xff"

    def test_unset_says_what_it_did(self, service: Service, printing: str):
        service.ssh(":env", printing, "set", "A=1", "B=2", "C=3").ok()
        assert service.ssh(":env", printing, "unset", "A", "C", "X").ok().err == b"unset A, C\n"
        assert service.ssh(":env", printing, "unset", "A").ok().err == b"nothing of that was set\n"
        assert service.ssh(":env", printing).ok().out == b"B\n"


class TestOthers:
    def test_a_stranger_learns_nothing(self, service: Service, printing: str):
        service.ssh(":env", printing, "set", "TOKEN=secret").ok()
        for words in ([], ["ls", "--show"], ["set", "TOKEN=x"], ["unset", "TOKEN"]):
            said = service.ssh(":env", f"alice/{printing}", *words, user="bob").failed(127)
            assert b"secret" not in said.out + said.err
        assert service.ssh(printing).ok().out == b"secret"

    def test_who_may_run_it_uses_the_value_and_cannot_read_it(
        self, service: Service, printing: str
    ):
        service.ssh(":env", printing, "set", "TOKEN=secret").ok()
        service.ssh(":access", printing, "grant", "bob").ok()
        assert service.ssh(f"alice/{printing}", user="bob").ok().out == b"secret"
        for words in ([], ["ls", "--show"], ["set", "TOKEN=x"], ["unset", "TOKEN"]):
            service.ssh(":env", f"alice/{printing}", *words, user="bob").failed(77)
        assert service.ssh(printing).ok().out == b"secret"

    def test_an_admin_does_all_of_it(self, service: Service, printing: str):
        service.ssh(":admins", printing, "grant", "bob").ok()
        full = f"alice/{printing}"
        service.ssh(":env", full, "set", "TOKEN=bobs", user="bob").ok()
        assert service.ssh(printing).ok().out == b"bobs"
        assert service.ssh(":env", full, "ls", "--show", user="bob").ok().out == b"TOKEN\tbobs\n"

    def test_what_a_caller_sends_never_overrides_the_owner(self, service: Service, name: str):
        """cmd.io let the client's environment win over the owner's."""
        service.create(name, ACCEPTS).ok()
        sent = ("-o", "SendEnv=TOKEN OTHER LANG PATH CMD_USER")
        forged = {"TOKEN": "forged", "OTHER": "sent", "LANG": "forged"}
        assert service.ssh(name, options=sent, env=forged).ok().out == b"forged sent"
        service.ssh(":env", name, "set", "TOKEN=true", "LANG=xx").ok()
        assert service.ssh(name, options=sent, env=forged).ok().out == b"true sent"

    def test_deleted_and_made_again_a_command_has_none(self, service: Service, printing: str):
        service.ssh(":env", printing, "set", "TOKEN=secret").ok()
        service.ssh(":delete", printing).ok()
        service.create(printing, PRINT).ok()
        assert service.ssh(":env", printing).ok().out == b""
        assert service.ssh(printing).ok().out == b""

    def test_it_stays_over_new_versions(self, service: Service, printing: str):
        service.ssh(":env", printing, "set", "TOKEN=secret").ok()
        service.ssh(":edit", printing, stdin=PRINT + b"\n").ok()
        assert service.ssh(printing).ok().out == b"secret"


class TestNowhereToBeRead:
    def test_not_in_the_log_nor_the_store_nor_a_process_list(
        self, service: Service, name: str, secret: str
    ):
        service.create(name, WAITS).ok()
        service.ssh(":env", name, "set", f"TOKEN={secret}", "A=x").ok()
        service.ssh(":env", name, "set", "B=-", stdin=secret.encode()).ok()
        service.ssh(":env", name, "set", f"PATH={secret}").failed(64)
        service.ssh(":env", name, "set", f"A={secret}", "B").failed(64)
        running = service.popen(name)
        assert running.stdin is not None
        assert running.stdout is not None
        try:
            assert running.stdout.readline().strip() == str(len(secret)).encode()
            seen = [
                path
                for path in Path("/proc").glob("[0-9]*/cmdline")
                if secret.encode() in readable(path)
            ]
            assert seen == []
            for words in ([":history", name], [":ls"], [":env", name], [":ls", "-j"]):
                assert secret not in service.ssh(*words).ok().text
        finally:
            running.stdin.close()
            running.wait()
            running.stdout.close()
            if running.stderr is not None:
                running.stderr.close()
        assert secret not in service.log
        kept = [
            path
            for folder in ("var", "keys")
            for path in (service.home / folder).rglob("*")
            if "engine" not in path.parts and path.is_file()
        ]
        assert any(path.suffix == ".db" for path in kept)
        assert [path for path in kept if secret.encode() in readable(path)] == []

    def test_a_value_that_is_moved_does_not_open(self, own_service: Service):
        own_service.start()
        for command in ("one", "two"):
            own_service.create(command, PRINT).ok()
            own_service.ssh(":env", command, "set", f"TOKEN={command}", f"A=of-{command}").ok()
        own_service.stop()
        with sqlite3.connect(own_service.home / "var" / "cmdsvc.db") as store:
            (one,) = store.execute("SELECT id FROM commands WHERE name = 'one'").fetchone()
            (two,) = store.execute("SELECT id FROM commands WHERE name = 'two'").fetchone()
            stolen = "UPDATE env SET value = (SELECT value FROM env WHERE command_id = ? AND name = 'TOKEN')"
            done = store.execute(f"{stolen} WHERE command_id = ? AND name = 'TOKEN'", (one, two))
            assert done.rowcount == 1
        store.close()
        own_service.start()
        assert own_service.ssh("one").ok().out == b"one"
        said = own_service.ssh("two").failed(70, "alice/two/TOKEN")
        assert b"one" not in said.out + said.err.replace(b"alice/two", b"")
        own_service.ssh(":env", "two", "set", "TOKEN=again").ok()
        assert own_service.ssh("two").ok().out == b"again"


class TestTheKey:
    def test_lost_another_or_damaged_it_is_told_at_the_start(self, own_service: Service):
        key = own_service.home / "keys" / "secret.key"
        own_service.start()
        own_service.create("one", PRINT).ok()
        own_service.ssh(":env", "one", "set", "TOKEN=secret").ok()
        assert key.stat().st_mode & 0o777 == 0o600
        own_service.cli("rotate-key").failed(70, "another server runs")
        own_service.stop()
        kept = key.read_bytes()
        own_service.cli("rotate-key").ok()
        now = key.read_bytes()
        assert now != kept
        for content, words in (
            (None, "is not there"),
            (kept, "is not the key to this store"),
            (now[:-9], "cannot be used"),
        ):
            key.unlink(missing_ok=True)
            if content is not None:
                key.write_bytes(content)
            own_service.cli("serve").failed(70, words, "backup")
            assert (key.read_bytes() if key.exists() else None) == content
        key.write_bytes(now)
        own_service.start()
        assert own_service.ssh("one").ok().out == b"secret"

    def test_lost_for_good_the_rest_goes_on(self, own_service: Service):
        own_service.start()
        own_service.create("one", PRINT).ok()
        own_service.ssh(":env", "one", "set", "TOKEN=hidden").ok()
        own_service.stop(signal.SIGKILL)
        (own_service.home / "keys" / "secret.key").unlink()
        said = own_service.cli("rotate-key", "--lost").ok()
        assert "removed alice/one/TOKEN: no key opens it" in said.text
        assert b"hidden" not in said.out + said.err
        own_service.start()
        assert own_service.ssh("one").ok().out == b""
        assert own_service.ssh(":env", "one").ok().out == b""


def readable(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # a process that ended meanwhile
        return b""


def test_the_page_shows_what_happens(own_service: Service, tmp_path: Path):
    page = (ROOT / "docs" / "secrets.md").read_text()
    (tmp_path / "token.txt").write_text("abcd1234\n")
    script = page[page.index("    #!cmd") : page.index("\n\n", page.index("    #!cmd"))]
    (tmp_path / "news.sh").write_text(textwrap.dedent(script) + "\n")
    users, operators = page.split("## For operators")
    own_service.start()
    assert transcript.run(users, own_service, tmp_path) > 5
    own_service.stop()
    assert transcript.run(operators, own_service, tmp_path) == 1
