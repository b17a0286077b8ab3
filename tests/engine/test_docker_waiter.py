"""The hand-over as shells read it, and the trailer, however it is cut."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmdsvc.engine.docker.waiter import (
    BLOCK,
    FOLDER,
    GO,
    LINE,
    READY,
    WAITER,
    Trailer,
    hand_over,
    quoted,
)
from cmdsvc.model import SEARCH_PATH

NONCE = b"0123456789abcdef"
TRAILER = b"\0" + NONCE + b" "
SHELLS = [shell for shell in ("dash", "busybox") if shutil.which(shell)] or ["sh"]

SHELLS_ENVIRONMENT = {"PATH": SEARCH_PATH.decode()}


def handed(
    shell: str,
    place: Path,
    argv: list[bytes],
    env: dict[bytes, bytes],
    *,
    script: bytes | None = None,
    stdin: bytes = b"",
) -> tuple[bytes, bytes]:
    """What the program wrote, and the script that arrived.

    The shell waits as in a container, but without killing all that it may.
    """
    line, block = hand_over(argv, env, script, NONCE)
    line = line.replace(b"kill -9 -1 && while kill -0 -1; do :; done; ", b"")
    command = [shell, "sh"] if shell == "busybox" else [shell]
    begin = WAITER.replace(FOLDER, str(place.parent)).replace("/bin/sh", " ".join(command))
    with subprocess.Popen(
        [*command, "-c", begin],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=SHELLS_ENVIRONMENT,
        bufsize=0,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.read(1) == READY
        process.stdin.write(line)
        process.stdin.flush()
        if block:
            assert process.stdout.read(1) == BLOCK
            process.stdin.write(block)
            process.stdin.flush()
        assert process.stdout.read(1) == GO
        out, _ = process.communicate(stdin, timeout=30)
    trailer = Trailer(NONCE)
    out = trailer.feed(out)
    assert trailer.status == 0
    return out, place.read_bytes()


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    return str(request.param)


EVERY = bytes(range(1, 256))


@pytest.mark.parametrize("size", [0, LINE], ids=["in one line", "in blocks"])
def test_arguments_of_any_bytes(shell: str, tmp_path: Path, size: int) -> None:
    arguments = [EVERY, b"", b"-n", b"'", b"\n", b"a\nb", b"$(exit)", b"x" * size]
    argv = [b"printf", b"%s\\0", *arguments]
    out, _ = handed(shell, tmp_path / "main", argv, {b"PATH": SEARCH_PATH})
    assert out.split(b"\0")[:-1] == arguments


@pytest.mark.parametrize("size", [0, LINE], ids=["in one line", "in blocks"])
def test_an_environment_of_any_bytes(shell: str, tmp_path: Path, size: int) -> None:
    env = {
        b"A.B-c": b"1",
        b"\xff": EVERY,
        b"IFS": b"x",
        b"PPID": b"",
        b"L": b"y" * size,
        b"E": b"\n",
    }
    out, _ = handed(shell, tmp_path / "main", [b"/usr/bin/env", b"-0"], env)
    assert dict(item.split(b"=", 1) for item in out.split(b"\0")[:-1]) == env


@pytest.mark.parametrize(
    "script", [b"", b"echo\n", b"\n\n", EVERY, b"\0" * 10, bytes(range(256)) * 100], ids=len
)
def test_a_script_and_the_input_after_it(shell: str, tmp_path: Path, script: bytes) -> None:
    stdin = os.urandom(200_000)
    out, came = handed(
        shell, tmp_path / "main", [b"cat"], {b"PATH": SEARCH_PATH}, script=script, stdin=stdin
    )
    assert came == script
    assert out == stdin


def test_a_program_is_found_whatever_the_path_says(shell: str, tmp_path: Path) -> None:
    for env in ({}, {b"PATH": b"/nowhere"}):
        out, _ = handed(shell, tmp_path / "main", [b"expr", b"1"], env)
        assert out == b"1\n"


def test_a_program_whose_name_has_an_equals_sign(shell: str, tmp_path: Path) -> None:
    program = tmp_path / "a=b"
    program.write_text('#!/bin/sh\necho "$0" "$@"\n')
    program.chmod(0o755)
    env = {b"PATH": SEARCH_PATH}
    out, _ = handed(shell, tmp_path / "main", [bytes(program), b"x y"], env)
    assert out == bytes(program) + b" x y\n"


def test_nul_cannot_be_an_argument() -> None:
    with pytest.raises(ValueError, match="NUL"):
        quoted(b"a\0b")


@pytest.mark.parametrize("size", [100, 2 * LINE], ids=["in the line", "in the block"])
def test_what_is_cut_off_is_not_begun(shell: str, tmp_path: Path, size: int) -> None:
    line, block = hand_over([b"touch", b"begun"], {}, b"x" * size, NONCE)
    command = [shell, "sh"] if shell == "busybox" else [shell]
    begin = WAITER.replace(FOLDER, str(tmp_path)).replace("/bin/sh", " ".join(command))
    sent = line + block[: size // 2] if block else line.rpartition(b"; sleep")[0] + b"\n"
    done = subprocess.run(
        [*command, "-c", begin],
        input=sent,
        capture_output=True,
        check=False,
        cwd=tmp_path,
        env=SHELLS_ENVIRONMENT,
        timeout=30,
    )
    assert GO not in done.stdout
    assert not (tmp_path / "begun").exists()


# ---- the trailer


@given(st.binary(max_size=200), st.integers(0, 255), st.lists(st.integers(1, 60)), st.booleans())
def test_a_trailer_is_found_however_it_is_cut(
    output: bytes, status: int, cuts: list[int], terminal: bool
) -> None:
    end = b"\r\n" if terminal else b"\n"
    data = output + TRAILER + str(status).encode() + end + b"left behind"
    trailer, got = Trailer(NONCE), b""
    for cut in [*cuts, len(data)]:
        got += trailer.feed(data[:cut])
        data = data[cut:]
    assert (got, trailer.status) == (output, status)
    assert trailer.rest() == b""


@given(st.lists(st.sampled_from([b"\0", TRAILER, b"1", b"2345", b"\r", b"x", NONCE, TRAILER[:5]])))
def test_what_is_no_trailer_passes(pieces: list[bytes]) -> None:
    """And what is held back of it is bounded."""
    trailer, got, given_ = Trailer(NONCE), b"", b""
    for piece in pieces:
        got += trailer.feed(piece)
        given_ += piece
        assert len(given_) - len(got) <= len(TRAILER) + 4
    assert got + trailer.rest() == given_
    assert trailer.status is None


def test_after_the_trailer_nothing_passes() -> None:
    trailer = Trailer(NONCE)
    assert trailer.feed(b"a" + TRAILER + b"0\nb") == b"a"
    assert trailer.feed(b"c") == b""
