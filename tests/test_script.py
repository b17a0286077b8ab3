"""What a script's text means, and what is said where it means nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmdsvc.errors import DataError
from cmdsvc.model import Limits, Network
from cmdsvc.script import (
    MAX_DESCRIPTION,
    MAX_METADATA,
    MAX_METADATA_LINES,
    MAX_PACKAGE,
    MAX_PACKAGES,
    MAX_SHEBANG,
    Metadata,
    limits_of,
    parse,
    parse_duration,
    parse_size,
)

LIMITS = Limits(timeout=600.0, memory=512 << 20, cpus=1.0, pids=256, disk=512 << 20)
SEED = b"""
#!cmd alpine bash curl jq
#!/bin/bash
curl -s "${1}" | jq -r "${2}"
"""

examples = settings(deadline=None, derandomize=True, max_examples=200)


def packages_of(line: str) -> tuple[str, ...]:
    return parse(f"{line}\n#!/bin/sh\n:".encode()).packages


def with_metadata(*lines: str, leader: str = "#") -> bytes:
    """A script whose metadata begin on line 4 of the file."""
    block = "\n".join(f"{leader} {line}" for line in ("/// cmd", *lines, "///"))
    return f"#!cmd alpine\n#!/bin/sh\n{block}\necho\n".encode()


def metadata_of(*lines: str) -> Metadata:
    return parse(with_metadata(*lines)).metadata


def refusal(source: bytes, limits: Limits | None = None) -> DataError:
    with pytest.raises(DataError) as caught:
        parse(source, limits)
    assert "\n" not in str(caught.value)
    return caught.value


def test_the_example_of_2017_works_to_the_letter():
    script = parse(SEED)
    assert (script.base, script.tag, script.packages) == ("alpine", "", ("bash", "curl", "jq"))
    assert script.interpreter == script.programs == ("/bin/bash",)
    assert script.body == b'#!/bin/bash\ncurl -s "${1}" | jq -r "${2}"\n'
    assert script.utility is None
    assert script.metadata == Metadata()
    assert script.warnings == ()


GUIDE = (Path(__file__).parents[1] / "docs" / "writing-commands.md").read_bytes()


@pytest.mark.parametrize(
    "source", re.findall(rb"^```\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
)
def test_the_scripts_in_the_guide_are_scripts(source: bytes):
    assert not parse(source, LIMITS).warnings


class TestHeader:
    @pytest.mark.parametrize("word", ["#!cmd", "#!cmd.io"])
    @pytest.mark.parametrize("before", ["", "\n", "\n \t\n\n", "\r\n"])
    def test_may_follow_blank_lines(self, before: str, word: str):
        script = parse(f"{before}{word} debian jq\n#!/bin/sh\n:".encode())
        assert (script.base, script.packages) == ("debian", ("jq",))

    def test_is_split_on_spaces_and_tabs(self):
        assert packages_of("#!cmd \t alpine  bash\tjq \t") == ("bash", "jq")

    def test_names_a_tag(self):
        script = parse(b"#!cmd debian:12-slim jq\n#!/bin/sh\n:")
        assert (script.base, script.tag) == ("debian", "12-slim")

    def test_keeps_order_and_doubles(self):
        assert packages_of("#!cmd alpine jq bash jq") == ("jq", "bash", "jq")

    def test_takes_the_bases_that_it_is_given(self):
        assert parse(b"#!cmd mine\n#!sh", bases={"mine": "x"}).base == "mine"

    @pytest.mark.parametrize(
        "package",
        ["jq", "libstdc++", "gtk+3.0", "py3-pip", "7zip", "lua5.4", "cmd:dig", "so:libjq.so.1",
         "jq=1.7.1-r0", "jq~1.7", "jq~=1.7", "jq>1.6", "jq<2", "jq>=1.7", "jq<=1.7_rc1", "jq@edge",
         "jq@edge=1.7.1-r0"],
    )  # fmt: skip
    def test_alpine_packages(self, package: str):
        assert packages_of(f"#!cmd alpine {package}") == (package,)

    @pytest.mark.parametrize("base", ["debian", "ubuntu"])
    @pytest.mark.parametrize(
        "package",
        ["jq", "g++", "libstdc++6", "python3.11", "jq:amd64", "jq=1.6-2.1", "jq=1:2.3-4~bpo12+1",
         "jq:amd64=1.6-2.1", "jq/bookworm-backports"],
    )  # fmt: skip
    def test_debian_packages(self, package: str, base: str):
        assert packages_of(f"#!cmd {base} {package}") == (package,)

    @pytest.mark.parametrize("base", ["alpine", "debian"])
    @pytest.mark.parametrize(
        "package",
        ["jq;id", "$(id)", "`id`", "jq|id", "jq&", "-U", "--root=/", "!jq", "jq-", "'jq'", '"jq"',
         "jq\\", "jq*", "j?q", "jq#", "../jq.apk", "/tmp/jq.deb", "http://x/jq.apk", "jq=", "jq=;id",
         "jq>", "jq>/etc/passwd", "jq<(id)", "jq=1.0-", "{a,b}", "~ninstalled", "?all", "jq^", "%jq",
         "jq=1=2", "jq,bash", "é", "a" * (MAX_PACKAGE + 1)],
    )  # fmt: skip
    def test_what_is_no_package(self, package: str, base: str):
        error = refusal(f"\n#!cmd {base} bash {package}\n#!/bin/sh\n:".encode())
        assert error.what.startswith("line 2: ")
        assert f"cannot be a package of {base}" in error.what
        assert len(str(error)) < 400

    @pytest.mark.parametrize("package", ["JQ", "jq~1.7", "jq@edge", "jq>1"])
    def test_apt_does_not_get_what_apk_spells(self, package: str):
        assert "package of debian" in refusal(f"#!cmd debian {package}\n#!sh".encode()).what

    def test_a_package_name_cannot_hold_a_line_break(self):
        assert refusal(b"#!cmd alpine jq\nrm -rf\n#!/bin/sh").what.startswith("line 2: ")

    @pytest.mark.parametrize(
        "control", ["\x01", "\x0b", "\x0c", "\r", "\x1b", "\x7f", "\u0085", "\u00a0", "\u202e"]
    )
    def test_control_characters(self, control: str):
        error = refusal(f"#!cmd alpine jq{control}bash\n#!/bin/sh\n:".encode())
        assert error.what == f"line 1: character U+{ord(control):04X} cannot stand here"

    def test_number_of_packages(self):
        names = [f"p{i}" for i in range(MAX_PACKAGES + 1)]
        assert len(packages_of(f"#!cmd alpine {' '.join(names[1:])}")) == MAX_PACKAGES
        assert "201 packages" in refusal(f"#!cmd alpine {' '.join(names)}\n#!sh".encode()).what

    @pytest.mark.parametrize(
        ("source", "what", "hint"),
        [
            (b"#!/bin/sh\necho", "line 1: this is not a '#!cmd' line", "'#!cmd alpine'"),
            (b"\n\necho\n", "line 3: this is not a '#!cmd' line", "'#!cmd alpine'"),
            (b" #!cmd alpine\n#!sh", "line 1: this is not", "'#!cmd alpine'"),
            (b"#!cmdx alpine\n#!sh", "line 1: this is not", "'#!cmd alpine'"),
            (b"#!cmd.ioalpine\n#!sh", "line 1: this is not", "'#!cmd alpine'"),
            (b"#! cmd alpine\n#!sh", "line 1: this is not", "'#!cmd alpine'"),
            (b"#!CMD alpine\n#!sh", "line 1: this is not", "'#!cmd alpine'"),
            (b"\x1f\x8b\x08gz", "line 1: this is not", "'#!cmd alpine'"),
            (b"#!cmd\n#!sh", "line 1: no base is named", "alpine, debian, ubuntu"),
            (b"\n#!cmd  \t\n#!sh", "line 2: no base is named", "alpine, debian, ubuntu"),
            (b"#!cmd arch\n#!sh", "line 1: unknown base 'arch'", "alpine, debian, ubuntu"),
            (b"#!cmd Alpine\n#!sh", "line 1: unknown base 'Alpine'", "alpine, debian, ubuntu"),
            (b"#!cmd x/alpine\n#!sh", "line 1: unknown base 'x/alpine'", "alpine"),
            (b"#!cmd alpine:\n#!sh", "line 1: '' cannot be a tag", "'alpine:3.20'"),
            (b"#!cmd alpine:-x\n#!sh", "line 1: '-x' cannot be a tag", "'alpine:3.20'"),
            (b"#!cmd alpine:3@sha256:0\n#!sh", "line 1: '3@sha256:0' cannot be a tag", "alpine"),
            (b"#!cmd alpine:" + b"1" * 129 + b"\n#!sh", "line 1: '111", "alpine"),
            (b"#!cmd alpine \xff\n#!sh", "line 1: the '#!cmd' line is not UTF-8", ""),
        ],
    )
    def test_errors(self, source: bytes, what: str, hint: str):
        error = refusal(source)
        assert error.what.startswith(what)
        assert hint in error.hint


class TestWholeText:
    @pytest.mark.parametrize("source", [b"", b"\n", b" \t\r\n\n", b"\xef\xbb\xbf"])
    def test_empty(self, source: bytes):
        assert refusal(source).what == "line 1: the source is empty"

    def test_nul(self):
        assert refusal(b"#!cmd alpine\n#!/bin/sh\na\0b").what == "line 3: a NUL byte"
        assert refusal("#!cmd alpine\n#!sh".encode("utf-16")).what == "line 1: a NUL byte"

    def test_size(self):
        source = b"#!cmd alpine\n#!/bin/sh\n:"
        assert parse(source, max_size=len(source)).body == b"#!/bin/sh\n:"
        with pytest.raises(DataError, match="24 bytes, more than the 23 allowed"):
            parse(source, max_size=len(source) - 1)
        assert "more than the 1048576" in refusal(source + b"x" * (1 << 20)).what

    def test_crlf_is_mended_with_a_warning(self):
        script = parse(with_metadata("pids = 5").replace(b"\n", b"\r\n"))
        assert script.packages == ()
        assert script.interpreter == ("/bin/sh",)
        assert script.body == b"#!/bin/sh\n# /// cmd\n# pids = 5\n# ///\necho\n"
        assert script.metadata.pids == 5
        assert len(script.warnings) == 1
        assert "CRLF" in script.warnings[0]

    def test_a_lone_cr_stays(self):
        script = parse(b"#!cmd alpine\n#!/bin/sh\nprintf '\r'\n")
        assert script.body == b"#!/bin/sh\nprintf '\r'\n"
        assert script.warnings == ()

    def test_byte_order_mark_is_dropped_with_a_warning(self):
        script = parse(b"\xef\xbb\xbf" + SEED)
        assert script.body == parse(SEED).body
        assert len(script.warnings) == 1
        assert "byte order mark" in script.warnings[0]

    def test_both(self):
        assert len(parse(b"\xef\xbb\xbf#!cmd alpine\r\n#!jq\r\n").warnings) == 2


class TestShebang:
    def test_words(self):
        script = parse(b"#!cmd alpine\n#! /usr/bin/awk\t-f  x \nBEGIN {}")
        assert script.interpreter == ("/usr/bin/awk", "-f", "x")
        assert script.programs == ("/usr/bin/awk",)

    def test_the_body_is_any_bytes_but_nul(self):
        rest = bytes(range(1, 256)).replace(b"\r\n", b"")
        script = parse(b"#!cmd alpine\n#!/bin/sh\n" + rest)
        assert script.body == b"#!/bin/sh\n" + rest

    def test_its_arguments_may_be_any_bytes(self):
        script = parse(b"#!cmd alpine\n#!/bin/x \xff\n:")
        assert script.body == b"#!/bin/x \xff\n:"
        assert script.interpreter[1].encode("utf-8", "surrogateescape") == b"\xff"

    def test_blank_lines_before_it_are_skipped(self):
        assert parse(b"#!cmd alpine\n\n \t\n#!/bin/sh\n:\n").body == b"#!/bin/sh\n:\n"

    @pytest.mark.parametrize(
        ("shebang", "programs"),
        [
            ("/usr/bin/env bash", ("/usr/bin/env", "bash")),
            ("/usr/bin/env /bin/bash", ("/usr/bin/env", "/bin/bash")),
            ("/usr/bin/env -S bash -e", ("/usr/bin/env", "bash")),
            ("/usr/bin/env -Sbash -e", ("/usr/bin/env", "bash")),
            ("/usr/bin/env -vS A=1 B= node --x", ("/usr/bin/env", "node")),
            ("/usr/bin/env --split-string=uv run", ("/usr/bin/env", "uv")),
            ("/usr/bin/env --split-string uv run", ("/usr/bin/env", "uv")),
            ("/usr/bin/env -S -i bash", ("/usr/bin/env",)),
            ("/usr/bin/env -S ${SHELL} x", ("/usr/bin/env",)),
            ("/usr/bin/environ bash", ("/usr/bin/environ",)),
        ],
    )
    def test_programs_behind_env(self, shebang: str, programs: tuple[str, ...]):
        assert parse(f"#!cmd debian\n#!{shebang}\n:".encode()).programs == programs

    def test_length(self):
        longest = b"#!/bin/" + b"x" * (MAX_SHEBANG - 7)
        assert parse(b"#!cmd alpine\n" + longest + b"\n:").body == longest + b"\n:"
        assert "longer than 255" in refusal(b"#!cmd alpine\n" + longest + b"x\n:").what

    @pytest.mark.parametrize(
        ("source", "what", "hint"),
        [
            (b"#!cmd alpine", "line 2: there is no script", "'#!/bin/sh'"),
            (b"\n#!cmd alpine\n", "line 3: there is no script", "'#!/bin/sh'"),
            (b"#!cmd alpine\n \n\n", "line 2: there is no script", "'#!/bin/sh'"),
            (b"#!cmd alpine\n# /// cmd\n# ///\n", "line 2: there is no script", "'#!/bin/sh'"),
            (b"#!cmd alpine\necho\n", "line 2: this must be a shebang", "'#!/bin/sh'"),
            (b"#!cmd alpine\n\necho\n", "line 3: this must be a shebang", "'#!/bin/sh'"),
            (b"#!cmd alpine\n# x\n#!/bin/sh\n:", "line 2: this must be a", "'#!/bin/sh'"),
            (b"#!cmd alpine\n #!/bin/sh\n:", "line 2: this must be a", "'#!/bin/sh'"),
            (b"#!cmd alpine\n#!\n:", "line 2: the shebang names no program", "'#!/bin/sh'"),
            (b"#!cmd alpine\n#! \t\n", "line 2: the shebang names no program", "'#!/bin/sh'"),
            (b"#!cmd alpine\n#!bash\n:", "line 2: 'bash' is not an absolute", "'#!/bin/bash'"),
            (b"#!cmd alpine\n#!bin/sh\n:", "line 2: 'bin/sh' is not an abs", "'#!/bin/sh'"),
            (b"#!cmd alpine\n#!./jq\n", "line 2: './jq' is not an absolute", "'#!/bin/jq'"),
            (b"#!cmd alpine\n#!x/\n", "line 2: 'x/' is not an absolute", "'#!/bin/sh'"),
            (b"#!cmd alpine\n#!/bin/sh\x1b\n:", "line 2: character U+001B", ""),
            (b"#!cmd alpine\n#!/bin/sh\r", "line 2: character U+000D", ""),
            (b"#!cmd alpine\n#!/usr/bin/env\n:", "line 2: env names no program", "env bash"),
            (b"#!cmd alpine\n#!/usr/bin/env bash -e\n:", "line 2: env takes one", "/bin/bash"),
        ],
    )
    def test_errors(self, source: bytes, what: str, hint: str):
        error = refusal(source)
        assert error.what.startswith(what)
        assert hint in error.hint


class TestUtility:
    @pytest.mark.parametrize(
        ("rest", "utility"),
        [
            (b"#!jq", (b"jq",)),
            (b"#!jq\n\n \t\n", (b"jq",)),
            (b"#!jq -r\n", (b"jq", b"-r")),
            (b"#! /usr/bin/jq \t -r  .a\n", (b"/usr/bin/jq", b"-r", b".a")),
            (b"#!sed s/\xff/x/\n", (b"sed", b"s/\xff/x/")),
            (b"#!/usr/bin/env jq -r\n", (b"/usr/bin/env", b"jq", b"-r")),
            (b"#!jq " + b"x" * 300, (b"jq", b"x" * 300)),
        ],
    )
    def test_words(self, rest: bytes, utility: tuple[bytes, ...]):
        script = parse(b"#!cmd alpine jq\n" + rest)
        assert script.utility == utility
        assert script.body is None
        assert script.programs[0].encode() == utility[0]

    def test_programs_behind_env(self):
        assert parse(b"#!cmd alpine\n#!/usr/bin/env A=1 jq -r").programs == ("/usr/bin/env", "jq")

    @pytest.mark.parametrize(
        "source",
        [
            b"#!cmd alpine jq\n#!jq -r\n\n# /// cmd\n# pids = 5\n# ///\n\n",
            b"#!cmd alpine jq\n\n# /// cmd\n# pids = 5\n# ///\n\n#!jq -r\n\n",
        ],
    )
    def test_metadata_count_as_nothing(self, source: bytes):
        script = parse(source)
        assert script.utility == (b"jq", b"-r")
        assert script.metadata.pids == 5

    def test_a_comment_is_a_script(self):
        script = parse(b"#!cmd alpine\n#!/bin/sh\n# nothing\n")
        assert script.utility is None
        assert script.body == b"#!/bin/sh\n# nothing\n"


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
            ("git_receive = true", "not yet supported"),
            ("keep_output = true", "not yet supported"),
            ("schedule = '@hourly'", "not yet supported"),
            ("http.public = true", "not yet supported"),
            ("[http]", "not yet supported"),
            ("[[http]]", "not yet supported"),
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


def check(source: bytes) -> None:
    """Either it is refused as it should be, or what comes out is sound."""
    refused: DataError | None = None
    try:
        script = parse(source, LIMITS)
    except DataError as error:
        refused = error
    if refused:
        assert re.match(r"line [1-9][0-9]*: ", refused.what)
        assert len(str(refused).encode()) < 2000
        return
    assert (script.body is None) != (script.utility is None)
    assert script.base in ("alpine", "debian", "ubuntu")
    assert all(re.match(r"[A-Za-z0-9][!-~]*$", package) for package in script.packages)
    assert script.programs
    limits = limits_of(script.metadata, LIMITS)
    assert 0 < limits.timeout <= LIMITS.timeout
    assert 0 < limits.memory <= LIMITS.memory
    assert 0 < limits.cpus <= LIMITS.cpus
    assert 0 < limits.pids <= LIMITS.pids


TOKENS = [
    b"#!cmd", b"#!cmd.io", b"#!", b"alpine", b"debian", b":", b"3.20", b"jq", b"-", b"=", b"$(x)", b" ",
    b"\t", b"\n", b"\r\n", b"\r", b"\0", b"\xff", b"\xef\xbb\xbf", "\u2028é".encode(), b"/bin/sh",
    b"/usr/bin/env", b"-S", b"# ", b"// ", b"/// cmd", b"///", b"\n# /// cmd\n", b"\n# ///\n",
    b"timeout", b'"30s"', b"pids", b"1", b"[", b"]", b"{", b"}", b"[http]", b'"""', b"'", b".", b"nan",
    b"accept_env", b'["A"]', b"#!cmd alpine jq\n#!/bin/sh\n", b"\n# pids = 3",
]  # fmt: skip


class TestAnyInput:
    @examples
    @given(st.binary())
    def test_bytes(self, source: bytes):
        check(source)

    @examples
    @given(st.binary())
    def test_bytes_behind_a_header(self, rest: bytes):
        check(b"#!cmd alpine\n" + rest)

    @settings(examples, max_examples=1000)
    @given(st.lists(st.sampled_from(TOKENS) | st.binary(max_size=3), max_size=40).map(b"".join))
    def test_tokens(self, source: bytes):
        check(source)

    @settings(examples, max_examples=500)
    @given(st.lists(st.sampled_from(TOKENS) | st.binary(max_size=3), max_size=12).map(b"".join))
    def test_tokens_as_packages(self, rest: bytes):
        check(b"#!cmd alpine " + rest + b"\n#!/bin/sh\n:")

    @settings(examples, max_examples=1000)
    @given(
        st.lists(st.sampled_from(TOKENS) | st.text(max_size=3).map(str.encode), max_size=30).map(
            b"".join
        )
    )
    def test_tokens_as_metadata(self, content: bytes):
        lines = b"".join(b"# " + line + b"\n" for line in content.split(b"\n"))
        check(b"#!cmd alpine\n#!/bin/sh\n# /// cmd\n" + lines + b"# ///\n:")

    @examples
    @given(
        st.sampled_from(["timeout", "memory", "cpus", "pids", "network", "accept_env", "x"]),
        st.one_of(
            st.integers(), st.floats().map(repr), st.datetimes().map(str),
            st.text(st.characters(codec="utf-8"), max_size=9).map(
                lambda x: '"' + "".join(f"\\U{ord(c):08X}" for c in x) + '"'
            ),
        ),
    )  # fmt: skip
    def test_values(self, key: str, value: object):
        check(with_metadata(f"{key} = {value}"))

    @examples
    @given(st.binary(min_size=1))
    def test_a_body_is_kept(self, body: bytes):
        body = body.replace(b"\0", b"").replace(b"\r", b"") + b"\rx"
        assert parse(b"#!cmd alpine\n#!/bin/sh\n" + body).body == b"#!/bin/sh\n" + body
