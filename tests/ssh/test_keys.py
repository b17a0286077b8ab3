"""Whose a key is, as the files change; and the server's own key."""

from __future__ import annotations

import itertools
import logging
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import asyncssh
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmdsvc.errors import CmdError, ExistsError, ForbiddenError, NotFoundError, UsageError
from cmdsvc.ssh import keys
from cmdsvc.ssh.keys import (
    RECHECK,
    KeyRing,
    add_user,
    host_key,
    read_lines,
    read_user_keys,
    remove_key,
)
from cmdsvc.ssh.restrictions import Line


def made(comment: str = "", kind: str = "ssh-ed25519") -> asyncssh.SSHKey:
    return asyncssh.generate_private_key(kind, comment=comment or None)


def line_of(key: asyncssh.SSHKey) -> str:
    return key.export_public_key().decode().strip()


A, B, C = (made(f"key {name}") for name in "abc")
ECDSA = line_of(made(kind="ecdsa-sha2-nistp256"))
LINE = line_of(A)
CERTIFICATE = made().generate_user_certificate(A, "a", principals=["ann"]).export_certificate()

NOT_KEYS = [
    "garbage",
    "ssh-ed25519",
    "ssh-ed25519 AAAA",
    "ssh-ed25519 !!!!",
    LINE[:40],
    LINE.replace("ssh-ed25519", "ssh-rsa", 1),
    LINE.split()[1],
    "0 0",
    "-----BEGIN OPENSSH PRIVATE KEY-----",
    f'from="a.example.org" {LINE}',
    f'from="10.0.0.1/8" {LINE}',
    f'from="10.0.0.1",from="10.0.0.2" {LINE}',
    f'from="10.0.0.1 {LINE}',
    f"from=10.0.0.1 {LINE}",
    f"from {LINE}",
    f'expiry-time="soon" {LINE}',
    f'expiry-time="20261301" {LINE}',
    f"cert-authority {LINE}",
    f'principals="ann" {LINE}',
    f'environment="A=B" {LINE}',
    f"restrict,no-such-option {LINE}",
    f"no-pty, {LINE}",
    CERTIFICATE.decode().strip(),
]

WITH_OPTIONS = [
    f'from="10.0.0.1" {LINE}',
    f'command="echo {LINE}" {LINE}',
    f"restrict {LINE}",
    f"no-pty,no-agent-forwarding {LINE}",
]


class Clock:
    """What `keys` takes for the module time."""

    def __init__(self) -> None:
        self.passed = 1000.0
        self.now: int | None = None

    def monotonic(self) -> float:
        return self.passed

    def time_ns(self) -> int:
        return time.time_ns() if self.now is None else self.now

    def recheck(self) -> None:
        self.passed += RECHECK


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(keys, "time", clock)
    return clock


@pytest.fixture
def users(tmp_path: Path) -> Path:
    folder = tmp_path / "users"
    folder.mkdir()
    return folder


@pytest.fixture
def ring(users: Path, clock: Clock) -> KeyRing:
    return KeyRing(users.parent)


def write(path: Path, *found: asyncssh.SSHKey) -> None:
    path.write_text("".join(f"{line_of(key)}\n" for key in found))


class TestKeyRing:
    def test_owners(self, ring: KeyRing, users: Path):
        write(users / "ann.pub", A, B)
        write(users / "bob.pub", C)
        assert [ring.owner(key) for key in (A, B, C)] == ["ann", "ann", "bob"]
        assert ring.owner(made()) is None

    def test_the_public_half_is_what_counts(self, ring: KeyRing, users: Path):
        write(users / "ann.pub", A)
        assert ring.owner(A.convert_to_public()) == "ann"

    def test_changes_are_seen_after_the_recheck_time(
        self, ring: KeyRing, users: Path, clock: Clock
    ):
        def owners() -> list[str | None]:
            return [ring.owner(key) for key in (A, B, C)]

        assert owners() == [None, None, None]
        write(users / "ann.pub", A)
        assert owners() == ["ann", None, None], "a new file counts at once"
        write(users / "bob.pub", B)
        assert owners() == ["ann", "bob", None]
        write(users / "ann.pub", C)  # another content of the same length, in place
        clock.passed += RECHECK * 0.9
        assert owners() == ["ann", "bob", None]
        clock.recheck()
        assert owners() == [None, "bob", "ann"]
        (users / "ann.pub").rename(users / "cy.pub")
        clock.recheck()
        assert owners() == [None, "bob", "cy"]
        (users / "cy.pub").unlink()
        clock.recheck()
        assert owners() == [None, "bob", None]

    def test_another_content_with_the_old_time_stamp(
        self, ring: KeyRing, users: Path, clock: Clock
    ):
        path = users / "ann.pub"
        write(path, A)
        os.utime(path, (1, 1))
        assert ring.owner(A) == "ann"
        write(path, B)
        os.utime(path, (1, 1))
        clock.recheck()
        assert (ring.owner(A), ring.owner(B)) == (None, "ann")

    def test_files_are_read_again_only_while_they_are_fresh_or_changed(
        self, ring: KeyRing, users: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ):
        read: list[str] = []

        def note(path: Path) -> list[Line]:
            read.append(path.name)
            return read_lines(path)

        monkeypatch.setattr(keys, "read_lines", note)
        path = users / "ann.pub"
        write(path, A)
        changed = path.stat().st_ctime_ns
        clock.now = changed + 1_000_000_000
        for _ in range(3):
            ring.owner(A)
            clock.recheck()
        assert len(read) == 3
        clock.now = changed + 3_000_000_000
        for _ in range(3):
            ring.owner(A)
            clock.recheck()
        assert len(read) == 4
        path.chmod(0o600)
        ring.owner(A)
        assert len(read) == 5

    def test_comments_blank_lines_and_crlf(self, ring: KeyRing, users: Path):
        text = f"\n# {line_of(B)}\n  \n\t{line_of(A)}\r\n\n{line_of(C)}"
        (users / "ann.pub").write_text(text, newline="")
        assert [ring.owner(key) for key in (A, B, C)] == ["ann", None, "ann"]

    @pytest.mark.parametrize("comment", ["José's laptop", "世界", "\udcff"])
    def test_a_comment_in_any_encoding(self, comment: str, ring: KeyRing, users: Path):
        line = " ".join(LINE.split()[:2])
        (users / "ann.pub").write_bytes(f"{line} {comment}\n".encode(errors="surrogateescape"))
        assert ring.owner(A) == "ann"

    @pytest.mark.parametrize("line", NOT_KEYS, ids=itertools.count())
    def test_lines_with_options_or_without_a_key_are_skipped(
        self, line: str, ring: KeyRing, users: Path, caplog: pytest.LogCaptureFixture
    ):
        (users / "ann.pub").write_text(f"# mine\n{line}\n{line_of(B)}\n")
        with caplog.at_level(logging.WARNING):
            assert ring.owner(A) is None
        assert ring.owner(B) == "ann"
        assert caplog.messages == [
            "ann.pub, line 2: not a public key, or an option that is not known here; skipped"
        ]

    @pytest.mark.parametrize("line", WITH_OPTIONS, ids=itertools.count())
    def test_options_come_with_the_key(self, line: str, ring: KeyRing, users: Path):
        (users / "ann.pub").write_text(f"{line}\n{LINE}\n")
        owner, lines = ring.lines(A.public_data)
        assert owner == "ann"
        assert [bool(found.options) for found in lines] == [True, False]

    def test_a_key_has_one_owner(
        self, ring: KeyRing, users: Path, caplog: pytest.LogCaptureFixture
    ):
        write(users / "bob.pub", A, B)
        write(users / "ann.pub", A, A)
        with caplog.at_level(logging.WARNING):
            assert (ring.owner(A), ring.owner(B)) == ("ann", "bob")
        assert caplog.messages == ["a key of bob is ann's already; skipped"]

    @pytest.mark.parametrize(
        "name",
        [
            "Ann.pub",
            ".pub",
            "-a.pub",
            "a b.pub",
            "a\nb.pub",
            "cmd.pub",
            "public.pub",
            f"{'a' * 65}.pub",
        ],
    )
    def test_names_that_are_none(
        self, name: str, ring: KeyRing, users: Path, caplog: pytest.LogCaptureFixture
    ):
        write(users / name, A)
        write(users / "bob.pub", B)
        with caplog.at_level(logging.WARNING):
            assert (ring.owner(A), ring.owner(B)) == (None, "bob")
        assert caplog.messages == [f"{name}: not a user name; skipped"]

    def test_other_files(self, ring: KeyRing, users: Path, caplog: pytest.LogCaptureFixture):
        write(users / "ann", A)
        write(users / "ann.pub~", A)
        (users / "dir.pub").mkdir()
        (users / "gone.pub").symlink_to("nowhere")
        os.mkfifo(users / "fifo.pub")
        write(users / "bob.pub", B)
        assert (ring.owner(A), ring.owner(B)) == (None, "bob")
        assert caplog.messages == []

    def test_a_file_that_cannot_be_read_leaves_the_others(
        self, ring: KeyRing, users: Path, clock: Clock, caplog: pytest.LogCaptureFixture
    ):
        write(users / "ann.pub", A)
        write(users / "bob.pub", B)
        assert ring.owner(A) == "ann"
        (users / "ann.pub").unlink()
        (users / "ann.pub").symlink_to("/proc/self/mem")  # nothing is at its beginning
        clock.recheck()
        assert (ring.owner(A), ring.owner(B)) == (None, "bob")
        assert "ann.pub cannot be read" in caplog.text

    def test_a_folder_that_cannot_be_read_keeps_what_is_known(
        self, ring: KeyRing, users: Path, clock: Clock, caplog: pytest.LogCaptureFixture
    ):
        write(users / "ann.pub", A)
        assert ring.owner(A) == "ann"
        users.rename(users.parent / "away")
        clock.recheck()
        assert ring.owner(A) == "ann"
        assert "the users' keys cannot be read" in caplog.text
        users.mkdir()
        clock.recheck()
        assert ring.owner(A) is None

    def test_no_folder_yet(self, tmp_path: Path, clock: Clock):
        ring = KeyRing(tmp_path / "keys")
        assert ring.owner(A) is None
        add_user(tmp_path / "keys", "ann", LINE)
        clock.recheck()
        assert ring.owner(A) == "ann"

    @settings(deadline=None, derandomize=True, max_examples=300)
    @given(
        st.sampled_from([LINE, ECDSA]),
        st.lists(st.tuples(st.integers(0, 80), st.characters(codec="utf-8")), max_size=4),
    )
    def test_no_line_whatever_stops_the_reading(
        self, tmp_path_factory: pytest.TempPathFactory, line: str, changes: list[tuple[int, str]]
    ):
        for place, character in changes:
            line = line[:place] + character + line[place + 1 :]
        path = tmp_path_factory.getbasetemp() / "fuzzed.pub"
        path.write_text(f"{line}\n{line_of(B)}\n", encoding="utf-8")
        assert read_user_keys(path)[-1].public_data == B.public_data


class TestAddUser:
    def test_the_first_key_makes_the_folder(self, tmp_path: Path):
        folder = tmp_path / "new" / "keys"
        assert add_user(folder, "ann", f"{LINE}\n") == 1
        assert (folder / "users" / "ann.pub").read_text() == f"{LINE}\n"

    def test_is_idempotent(self, tmp_path: Path):
        text = f"# two\n{LINE}\n\n  {line_of(B)}  \n{LINE}\n"
        assert add_user(tmp_path, "ann", text) == 2
        path = tmp_path / "users" / "ann.pub"
        before = path.read_text()
        assert before == f"{LINE}\n{line_of(B)}\n"
        assert add_user(tmp_path, "ann", text) == 0
        assert add_user(tmp_path, "ann", " ".join(LINE.split()[:2]) + " another comment") == 0
        assert path.read_text() == before

    def test_keeps_what_is_there(self, tmp_path: Path):
        (tmp_path / "users").mkdir()
        path = tmp_path / "users" / "ann.pub"
        path.write_text(f"# mine\n{LINE}")  # without a line break at its end
        assert add_user(tmp_path, "ann", line_of(B)) == 1
        assert path.read_text() == f"# mine\n{LINE}\n{line_of(B)}\n"
        assert len(read_user_keys(path)) == 2

    def test_a_comment_in_any_language(self, tmp_path: Path):
        line = " ".join([*LINE.split()[:2], "José"])
        assert add_user(tmp_path, "ann", line) == 1
        assert add_user(tmp_path, "ann", line) == 0

    @pytest.mark.parametrize("line", NOT_KEYS + WITH_OPTIONS, ids=itertools.count())
    def test_garbage_is_refused_and_nothing_is_written(self, line: str, tmp_path: Path):
        with pytest.raises(UsageError, match="not a public key") as caught:
            add_user(tmp_path, "ann", f"{line_of(B)}\n{line}\n")
        assert "ssh-keygen" in caught.value.hint
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("text", ["", "\n \n", "# nothing\n"])
    def test_nothing_is_refused(self, text: str, tmp_path: Path):
        with pytest.raises(UsageError, match="no public key"):
            add_user(tmp_path, "ann", text)
        assert list(tmp_path.iterdir()) == []

    def test_a_private_key_is_refused_and_not_repeated(self, tmp_path: Path):
        text = A.export_private_key().decode()
        with pytest.raises(UsageError) as caught:
            add_user(tmp_path, "ann", text)
        assert not any(line in str(caught.value) for line in text.splitlines())
        assert list(tmp_path.iterdir()) == []

    def test_anothers_key_is_refused(self, tmp_path: Path):
        add_user(tmp_path, "zoe", LINE)
        with pytest.raises(ExistsError, match="another user's"):
            add_user(tmp_path, "ann", f"{line_of(B)}\n{LINE}\n")
        assert not (tmp_path / "users" / "ann.pub").exists()

    def test_one_that_is_published_for_another_is_refused(self, tmp_path: Path):
        with pytest.raises(ExistsError, match="another user's"):
            add_user(tmp_path, "ann", LINE, {A.public_data: "zoe"}.get)
        assert add_user(tmp_path, "zoe", LINE, {A.public_data: "zoe"}.get) == 1

    def test_bounded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(keys, "KEYS_MAX", 2)
        add_user(tmp_path, "ann", f"{LINE}\n{line_of(B)}")
        with pytest.raises(UsageError, match="more than 2 keys"):
            add_user(tmp_path, "ann", line_of(C))
        assert len(read_user_keys(tmp_path / "users" / "ann.pub")) == 2

    def test_a_link_stays_one_and_the_mode_stays(self, tmp_path: Path):
        (tmp_path / "users").mkdir()
        real = tmp_path / "real"
        real.write_text(f"{LINE}\n")
        real.chmod(0o640)
        (tmp_path / "users" / "ann.pub").symlink_to(real)
        assert add_user(tmp_path, "ann", line_of(B)) == 1
        assert (tmp_path / "users" / "ann.pub").is_symlink()
        assert stat.S_IMODE(real.stat().st_mode) == 0o640
        assert len(read_user_keys(real)) == 2

    def test_many_at_once_all_count(self, tmp_path: Path):
        lines = [line_of(made()) for _ in range(8)]
        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(lambda line: add_user(tmp_path, "ann", line), lines)) == 8
        assert len(read_user_keys(tmp_path / "users" / "ann.pub")) == 8
        assert [path.name for path in (tmp_path / "users").iterdir()] == ["ann.pub"]


class TestRemoveKey:
    @pytest.fixture
    def path(self, users: Path) -> Path:
        path = users / "ann.pub"
        path.write_text(
            f"# mine\n{LINE}\nrubbish\nno-pty {LINE}\n{line_of(B)} \udcff\n",
            errors="surrogateescape",
        )
        return path

    def remove(self, path: Path, key: asyncssh.SSHKey, *unusable: asyncssh.SSHKey) -> None:
        gone = {k.public_data for k in unusable}
        remove_key(
            path.parent.parent,
            "ann",
            key.get_fingerprint(),
            lambda line: line.key.public_data not in gone,
        )

    def test_all_its_lines_go_and_all_else_stays(self, path: Path):
        rest = path.read_bytes().splitlines(keepends=True)
        self.remove(path, A)
        assert path.read_bytes() == rest[0] + rest[2] + rest[4]

    def test_the_last_one_stays(self, path: Path):
        self.remove(path, B)
        before = path.read_bytes()
        with pytest.raises(ForbiddenError, match="last key"):
            self.remove(path, A)
        assert path.read_bytes() == before

    def test_one_that_cannot_be_used_is_no_other(self, path: Path):
        with pytest.raises(ForbiddenError, match="last key"):
            self.remove(path, A, B)

    def test_one_that_is_not_there(self, path: Path):
        with pytest.raises(NotFoundError):
            self.remove(path, C)
        path.unlink()
        with pytest.raises(NotFoundError):
            self.remove(path, A)
        assert not path.exists()


class TestHostKey:
    def test_is_made_once(self, tmp_path: Path):
        folder = tmp_path / "new" / "keys"
        key = host_key(folder)
        assert key.algorithm == b"ssh-ed25519"
        assert [path.name for path in folder.iterdir()] == ["ssh_host_ed25519_key"]
        path = folder / "ssh_host_ed25519_key"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        written = path.read_bytes()
        assert host_key(folder).public_data == key.public_data
        assert path.read_bytes() == written

    def test_is_for_its_owner_alone_whatever_the_umask(self, tmp_path: Path):
        before = os.umask(0)
        try:
            host_key(tmp_path)
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "ssh_host_ed25519_key").stat().st_mode) == 0o600

    def test_many_at_once_get_the_same_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        together = Barrier(4, timeout=30)
        generate = asyncssh.generate_private_key

        def all_at_once(*args: str, **options: str) -> asyncssh.SSHKey:
            together.wait()  # all have seen that there is none
            return generate(*args, **options)

        monkeypatch.setattr(keys.asyncssh, "generate_private_key", all_at_once)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(host_key, [tmp_path] * 4))
        assert len({key.public_data for key in found}) == 1
        assert [path.name for path in tmp_path.iterdir()] == ["ssh_host_ed25519_key"]

    @pytest.mark.parametrize(
        "content",
        [b"", b"garbage\n", A.export_private_key()[:100], A.export_public_key(),
         A.export_private_key("pkcs8-pem", passphrase="secret")],
        ids=itertools.count(),
    )  # fmt: skip
    def test_a_broken_file(self, content: bytes, tmp_path: Path):
        path = tmp_path / "ssh_host_ed25519_key"
        path.write_bytes(content)
        with pytest.raises(CmdError) as caught:
            host_key(tmp_path)
        line = str(caught.value)
        assert line.startswith(f"the host key {path} cannot be used: ")
        assert line.endswith("; mend or remove it")
        assert path.read_bytes() == content

    def test_a_folder_that_cannot_be_had(self, tmp_path: Path):
        (tmp_path / "keys").write_text("a file")
        with pytest.raises(CmdError, match="cannot be used"):
            host_key(tmp_path / "keys")

    def test_a_failure_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        def full(source: str, target: Path) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(keys.os, "link", full)
        with pytest.raises(CmdError, match="No space left"):
            host_key(tmp_path)
        assert list(tmp_path.iterdir()) == []
