"""How two versions differ, against what patch(1) makes of it."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from cmdsvc.service.versions import COMPARED, unified_diff

TEN = b"".join(b"line %d\n" % n for n in range(10))
MANY = b"".join(b"line %d\n" % n for n in range(3 * COMPARED))

PAIRS = {
    "one line": (TEN, TEN.replace(b"line 5\n", b"five\n")),
    "the first": (TEN, b"new\n" + TEN),
    "the last": (TEN, TEN + b"new\n"),
    "no line break at the end": (TEN, TEN[:-1]),
    "a line break at the end": (TEN[:-1], TEN),
    "both without": (b"a", b"b"),
    "from nothing": (b"", b"a\n"),
    "to nothing": (b"a\nb", b""),
    "twice the same": (b"a\n" * 9, b"a\n" * 10),
    "far apart": (MANY[: len(MANY) // 8], MANY[: len(MANY) // 8].replace(b" 3\n", b" x\n")),
    "too far apart": (MANY, b"x\n" + MANY[8:-10] + b"y\n"),
    "all of it": (MANY, MANY.replace(b"line", b"row")),
    "bytes of any kind": (bytes(range(256)) * 4, bytes(range(255, -1, -1)) * 4),
    "CRLF and CR": (b"a\r\nb\rc\n", b"a\nb\rd\r\n"),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_patch_takes_it(pair: tuple[bytes, bytes], tmp_path: Path):
    before, after = pair
    (tmp_path / "file").write_bytes(before)
    diff = unified_diff(before, after, b"old", b"new")
    assert diff.startswith(b"--- old\n+++ new\n@@ -")
    subprocess.run(
        ["patch", "--binary", "-s", "file"], input=diff, cwd=tmp_path, check=True, timeout=60
    )
    patched = tmp_path / "file"
    assert (patched.read_bytes() if patched.exists() else b"") == after


def test_what_is_alike_has_none():
    assert unified_diff(TEN, TEN, b"old", b"new") == b""


def test_it_says_what_diff_says():
    before, after = PAIRS["one line"]
    assert unified_diff(before, after, b"old", b"new") == (
        b"--- old\n+++ new\n@@ -3,7 +3,7 @@\n line 2\n line 3\n line 4\n"
        b"-line 5\n+five\n line 6\n line 7\n line 8\n"
    )


@pytest.mark.parametrize(
    "pair",
    [
        # Differences on every second line, and lines that are nearly too popular to be compared.
        (
            b"".join(b"%d\nx%d\n" % (n, n) for n in range(COMPARED // 2)),
            b"".join(b"%d\ny%d\n" % (n, n) for n in range(COMPARED // 2)),
        ),
        (
            b"".join(b"%d\nx%d\n" % (n // 9, n) for n in range(COMPARED // 2)),
            b"".join(b"%d\ny%d\n" % (n // 9, n) for n in range(COMPARED // 2)),
        ),
        (b"a\nb\n" * (1 << 18), b"b\na\n" * (1 << 18) + b"c"),
        (b"\n" * (1 << 20), b"x\n" * (1 << 19)),
        (b"a" * (1 << 20), b"b" * (1 << 20)),
    ],
    ids=["every second", "popular", "all alike", "short lines", "long lines"],
)
def test_it_does_not_take_forever(pair: tuple[bytes, bytes]):
    begun = time.process_time()
    assert unified_diff(*pair, b"old", b"new")
    assert time.process_time() - begun < 10
