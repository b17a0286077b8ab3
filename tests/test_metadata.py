"""What a script says about itself, and what is said where it says nonsense."""

from __future__ import annotations

import re

import pytest

from cmdsvc.errors import DataError
from cmdsvc.metadata import (
    MAX_DESCRIPTION,
    MAX_METADATA,
    MAX_METADATA_LINES,
    Metadata,
    limits_of,
    parse_duration,
    parse_size,
)
from cmdsvc.model import Limits, Network
from cmdsvc.script import parse
from tests.scripts import LIMITS, refusal, with_metadata


def metadata_of(*lines: str) -> Metadata:
    return parse(with_metadata(*lines)).metadata


class TestMetadata:
    def test_every_key(self):
        assert metadata_of(
            'description = "Fetches, and picks é"',
            'timeout = "30s"',
            'memory = "256M"',
            "cpus = 0.5",
            "pids = 32",
            'network = "none"',
            'accept_env = ["LANGUAGE", "_x1", "LANGUAGE"]',
        ) == Metadata(
            "Fetches, and picks é", 30.0, 256 << 20, 0.5, 32, Network.NONE, ("LANGUAGE", "_x1")
        )

    @pytest.mark.parametrize("leader", ["#", "//", "--", ";"])
    def test_leaders(self, leader: str):
        source = with_metadata("# a comment", "pids = 7", leader=leader)
        assert parse(source).metadata.pids == 7

    def test_stay_in_the_body(self):
        source = with_metadata("pids = 7")
        assert parse(source).body == source.removeprefix(b"#!cmd alpine\n")

    def test_before_the_shebang(self):
        script = parse(b"#!cmd alpine\n# /// cmd\n# pids = 7\n# ///\n#!/bin/sh\n:\n")
        assert script.metadata.pids == 7
        assert script.body == b"#!/bin/sh\n:\n"

    def test_anywhere_and_with_blanks_at_the_end_of_its_marks(self):
        source = b"#!cmd alpine\n#!/bin/sh\n\xff\n\n# /// cmd \n#\n#   pids = 7\n# ///\t\necho"
        assert parse(source).metadata.pids == 7

    def test_empty(self):
        assert metadata_of() == Metadata()

    def test_of_another_tool_are_not_ours(self):
        source = (
            b"#!cmd debian uv\n#!/usr/bin/env -S uv run\n# /// script\n# x = 1\n# ///\nprint()\n"
        )
        assert parse(source).metadata == Metadata()

    def test_an_indented_block_is_none(self):
        assert parse(b"#!cmd alpine\n#!/bin/sh\n  # /// cmd\n").metadata == Metadata()

    @pytest.mark.parametrize(
        ("line", "value"),
        [
            ("timeout = '500ms'", 0.5),
            ("timeout = 90", 90),
            ("timeout = 1.5", 1.5),
            ("memory = 16777216", 16 << 20),
            ("memory = '1g'", 1 << 30),
            ("cpus = 2", 2),
            ("cpus = 0.01", 0.01),
            ("pids = 1", 1),
            ('network = "internet"', Network.INTERNET),
            ("accept_env = []", ()),
            ("keep_output = true", True),
            ("keep_output = false", False),
            (f"description = '{'x' * MAX_DESCRIPTION}'", "x" * MAX_DESCRIPTION),
        ],
    )
    def test_values(self, line: str, value: object):
        assert getattr(metadata_of(line), line.partition(" ")[0]) == value

    @pytest.mark.parametrize(
        ("line", "says"),
        [
            ("timeout = '30 s'", "expected a duration"),
            ("timeout = ''", "expected a duration"),
            ("timeout = true", "expected a duration"),
            ("timeout = []", "expected a duration"),
            ("timeout = 1979-05-27", "expected a duration"),
            ("timeout = 0", "out of range; it can be from 0.001s to 366d"),
            ("timeout = '0s'", "out of range"),
            ("timeout = -1", "out of range"),
            ("timeout = nan", "out of range"),
            ("timeout = inf", "out of range"),
            ("timeout = 1e400", "out of range"),
            ("timeout = '400d'", "out of range"),
            ("memory = 'lots'", "expected a size"),
            ("memory = '-1M'", "expected a size"),
            ("memory = 1.5", "expected a size"),
            ("memory = false", "expected a size"),
            ("memory = '1M'", "out of range; it can be from 6M to 1024T"),
            ("memory = '999999T'", "out of range"),
            (f"memory = {'9' * 4000}", "out of range"),
            (f"memory = 0x{'f' * 4000}", "out of range"),
            ("cpus = '1'", "expected a number"),
            ("cpus = true", "expected a number"),
            ("cpus = 0", "out of range"),
            ("cpus = -0.5", "out of range"),
            ("cpus = nan", "out of range"),
            ("cpus = 1e9", "out of range; it can be from 0.01 to 4096"),
            ("pids = 0", "out of range; it can be from 1 to 4194304"),
            ("pids = 1.0", "expected a whole number"),
            ("pids = '1'", "expected a whole number"),
            ("pids = {}", "expected a whole number"),
            ("network = 'host'", 'expected "internet" or "none"'),
            ("network = 1", 'expected "internet" or "none"'),
            ("description = 1", "expected one line"),
            (f"description = '{'x' * (MAX_DESCRIPTION + 1)}'", "expected one line"),
            ('description = "\\u001b[2J"', "expected one line"),
            ('description = "a\\nb"', "expected one line"),
            ("accept_env = 'LANG'", "expected a list"),
            ("accept_env = [" + "'a', " * 65 + "]", "expected a list of at most 64"),
            ("accept_env = [1]", "expected names of variables"),
            ("accept_env = ['']", "expected names of variables"),
            ("accept_env = ['A=B']", "expected names of variables"),
            ("accept_env = ['1A']", "expected names of variables"),
            ('accept_env = ["A\\n"]', "expected names of variables"),
            ("accept_env = ['é']", "expected names of variables"),
            (f"accept_env = ['{'A' * 129}']", "expected names of variables"),
            *(
                (f"accept_env = ['A', '{name}']", f"'{name}' is not for a caller to set")
                for name in ["PATH", "HOME", "USER", "CMD_", "CMD_USER", "SSH_AUTH_SOCK",
                             "LD_PRELOAD", "REMOTE_ADDR", "SERVER_SOFTWARE", "BASH_ENV", "IFS"]
            ),
            ("git_receive = 1", "true or false"),
            ("keep_output = 1", "true or false"),
            ("keep_output = 'true'", "true or false"),
            ("schedule = '@reboot'", "there are @annually"),
            ("schedule = 5", "expected an expression of crontab"),
            ("schedule = '* * 31 2 *'", "it never comes"),
            ("http.public = 1", "expected true or false"),
            ("http.x = 1", "unknown key"),
            ("http.methods = ['TRACE']", "expected a list of GET"),
            ("http.cors = ['example.org']", "expected true, or a list"),
            ("http.response = 'nph'", 'expected "plain" or "cgi"'),
            ('http.content_type = "text/html\\r\\nX: y"', "expected a media type"),
            ("[[http]]", "expected a table"),
            ("timout = '30s'", "unknown key; there are accept_env, cpus"),
            ("Timeout = '30s'", "unknown key"),
            ("'' = 1", "unknown key"),
            ('"\\u001b" = 1', "unknown key"),
            ("[tool]", "unknown key"),
        ],
    )  # fmt: skip
    def test_errors_name_the_line_and_the_key(self, line: str, says: str):
        error = refusal(with_metadata("# about", "", line))
        assert re.match(r"line 6: '[^']*': ", error.what)
        assert says in error.what
        assert len(error.what) < 400

    def test_a_key_is_found_behind_values_of_several_lines(self):
        error = refusal(
            with_metadata(
                'description = """\\',  # 4
                "  pids = 0 \\",
                '  """',
                "accept_env = [",  # 7
                "  'cpus', # = 0",
                "]",
                '"cpus" = 1',  # 10
                "'pids'=0",  # 11
                "[http]",
                "pids = 3",
            )
        )
        assert error.what.startswith("line 11: 'pids': out of range")

    def test_the_line_of_a_value_of_several_lines_is_its_first(self):
        error = refusal(with_metadata("pids = 3", "accept_env = [", "  'A',", "  'PATH',", "]"))
        assert error.what.startswith("line 5: 'accept_env': 'PATH'")

    def test_the_first_error_is_told(self):
        assert refusal(with_metadata("pids = 0", "cpus = 0")).what.startswith("line 4: 'pids'")

    @pytest.mark.parametrize(
        ("lines", "line"),
        [
            (("pids = 1", "pids ="), 5),
            (("pids = 1", "pids = 2"), 5),
            (("pids = 01",), 4),
            (("pids 1",), 4),
            (("", "description = 'a"), 5),
            (("pids = 1", 'description = """a', "b"), 5),
            (("x = " + "1" * 5000, "pids = 1"), 4),
            (("pids = 1", "# \x01"), 5),
        ],
    )  # fmt: skip
    def test_what_is_not_toml(self, lines: tuple[str, ...], line: int):
        assert refusal(with_metadata(*lines)).what.startswith(
            f"line {line}: the metadata is not TOML: "
        )

    def test_nested_too_deeply(self):
        error = refusal(with_metadata("a = " + "[" * 5000))
        assert error.what == "line 3: the metadata is nested too deeply"

    def test_nested_almost_too_deeply_before_another_error(self):
        """Near the interpreter's limit, finding the line of the error is what goes too deep."""

        def one_frame_deeper(source: bytes) -> DataError:
            return refusal(source)

        for depth in range(300, 520):
            source = with_metadata(f"a = {'[' * depth}{']' * depth}", "b = 'x")
            for error in (refusal(source), one_frame_deeper(source)):
                assert re.match(r"line [345]: the metadata is ", error.what)

    def test_not_utf8(self):
        source = b"#!cmd alpine\n#!/bin/sh\n# /// cmd\n# pids = 1\n# # \xff\n# ///\n"
        assert refusal(source).what == "line 5: the metadata is not UTF-8"

    @pytest.mark.parametrize(
        "lines", [["# x"] * (MAX_METADATA_LINES + 1), ["# " + "x" * MAX_METADATA]]
    )
    def test_too_much(self, lines: list[str]):
        assert refusal(with_metadata(*lines)).what.startswith("line 3: more metadata than ")

    @pytest.mark.parametrize(
        "rest",
        [
            b"",
            b"\n# pids = 1\n",
            b"\n# pids = 1\necho\n# ///\n",
            b"\n# pids = 1\n\n# ///\n",
            b"\n#pids = 1\n# ///\n",
            b"\n// pids = 1\n# ///\n",
            b"\n# pids = 1\n// ///\n",
            b"\n# pids = 1\n#\t///\n",
        ],
    )
    def test_not_closed(self, rest: bytes):
        error = refusal(b"#!cmd alpine\n#!/bin/sh\n\n# /// cmd" + rest)
        assert error.what == "line 4: the metadata block is not closed"
        assert "'# ///'" in error.hint

    def test_two_blocks(self):
        source = with_metadata("pids = 1") + b"// /// cmd\n// ///\n"
        assert refusal(source).what == "line 7: a second metadata block, after that of line 3"


class TestLimits:
    @pytest.mark.parametrize(
        ("line", "says"),
        [
            ("timeout = '11m'", "at most 10m"),
            ("memory = '513M'", "at most 512M"),
            ("cpus = 1.01", "at most 1.0"),
            ("pids = 257", "at most 256"),
        ],
    )
    def test_above_the_operators(self, line: str, says: str):
        error = refusal(with_metadata(line), LIMITS)
        assert error.what.startswith(
            f"line 4: '{line.partition(' ')[0]}': above this server's limit"
        )
        assert says in error.what
        parse(with_metadata(line))

    def test_up_to_the_operators(self):
        lines = "timeout = '10m'", "memory = '512M'", "cpus = 1", "pids = 256"
        assert limits_of(parse(with_metadata(*lines), LIMITS).metadata, LIMITS) == LIMITS

    def test_default(self):
        assert limits_of(Metadata(), LIMITS) == LIMITS

    def test_lowered(self):
        metadata = metadata_of("timeout = '5s'", "memory = '16M'", "cpus = 0.1", "pids = 9")
        assert limits_of(metadata, LIMITS) == Limits(5.0, 16 << 20, 0.1, 9, 512 << 20)

    def test_never_raised(self):
        metadata = metadata_of("timeout = '5h'", "memory = '16G'", "cpus = 8", "pids = 999")
        assert limits_of(metadata, LIMITS) == LIMITS


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("5m", 300), ("1h", 3600), ("1d", 86400), ("500ms", 0.5), ("1.5h", 5400),
     ("0s", 0), ("30", 30)],
)  # fmt: skip
def test_duration(text: str, seconds: float):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "s", "-1s", "+1s", "1 s", " 1s", "1s\n", "1S", "1e3s", "nan", "inf", "1h30m", "٣s",
             ".5s", "1.s", "1" * 13 + "s"]
)  # fmt: skip
def test_no_duration(text: str):
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("64K", 65536), ("256M", 256 << 20), ("1G", 1 << 30), ("2T", 2 << 40), ("1m", 1 << 20),
     ("0", 0), ("4096", 4096)],
)  # fmt: skip
def test_size(text: str, size: int):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "M", "-1M", "1.5G", "1 M", "1M\n", "1MB", "1MiB", "0x10", "1P", "٣M", "1" * 16]
)
def test_no_size(text: str):
    with pytest.raises(ValueError, match="size"):
        parse_size(text)
