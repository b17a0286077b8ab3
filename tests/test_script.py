"""What a script's text means, and what is said where it means nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmdsvc.errors import DataError
from cmdsvc.metadata import Metadata, limits_of
from cmdsvc.script import MAX_PACKAGE, MAX_PACKAGES, MAX_SHEBANG, parse
from tests.scripts import LIMITS, refusal, with_metadata

SEED = b"""
#!cmd alpine bash curl jq
#!/bin/bash
curl -s "${1}" | jq -r "${2}"
"""

examples = settings(deadline=None, derandomize=True, max_examples=200)


def packages_of(line: str) -> tuple[str, ...]:
    return parse(f"{line}\n#!/bin/sh\n:".encode()).packages


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
            (b"#!cmd alpine:3@sha256:0\n#!sh", "line 1: 'alpine:3@sha256:0' cannot be", ":import"),
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
    assert script.imported or script.base in ("alpine", "debian", "ubuntu")
    assert all(re.match(r"[A-Za-z0-9][!-~]*$", package) for package in script.packages)
    assert bool(script.programs) != script.imported
    limits = limits_of(script.metadata, LIMITS)
    assert 0 < limits.timeout <= LIMITS.timeout
    assert 0 < limits.memory <= LIMITS.memory
    assert 0 < limits.cpus <= LIMITS.cpus
    assert 0 < limits.pids <= LIMITS.pids


class TestAnImage:
    PINNED = f"ghcr.io/me/tool@sha256:{'0a' * 32}"

    @pytest.mark.parametrize("rest", ["", "\n", "\n\n  \n", "  \n"])
    def test_it_is_all_there_is(self, rest: str):
        script = parse(f"#!cmd {self.PINNED}{rest}".encode())
        assert (script.base, script.tag, script.packages) == (self.PINNED, "", ())
        assert (script.body, script.utility, script.interpreter) == (None, (), ())
        assert script.imported
        assert script.programs == ()
        assert not parse(b"#!cmd alpine\n#!jq").imported

    def test_it_has_metadata(self):
        block = '# /// cmd\n# timeout = "3s"\n# ///\n'
        assert parse(f"#!cmd {self.PINNED}\n\n{block}\n".encode()).metadata.timeout == 3
        with pytest.raises(DataError, match="line 3: 'nope'"):
            parse(f"#!cmd {self.PINNED}\n# /// cmd\n# nope = 1\n# ///\n".encode())

    @pytest.mark.parametrize(
        ("source", "what"),
        [
            (f"#!cmd {PINNED}\n#!/bin/sh\necho", "line 2: an image runs its own entry point"),
            (f"#!cmd {PINNED}\n\n#!jq", "line 3: an image runs its own entry point"),
            (f"#!cmd {PINNED} jq", "line 1: packages cannot be added"),
            (f"#!cmd alpine {PINNED}", "line 1: .* cannot be a package"),
            (f"#!cmd tool:1@sha256:{'0a' * 32}", "line 1: an image has a tag or a digest"),
            (f"#!cmd {PINNED}0", "line 1: .* cannot be the name of an image"),
            (f"#!cmd {PINNED.upper()}", "line 1: .* cannot be the name of an image"),
            ("#!cmd tool@1", "line 1: .* cannot be the name of an image"),
            ("#!cmd @", "line 1: .* cannot be the name of an image"),
            ("#!cmd ghcr.io/me/tool:1", "line 1: unknown base"),
        ],
    )
    def test_what_it_cannot_be(self, source: str, what: str):
        with pytest.raises(DataError, match=what):
            parse(source.encode())


TOKENS = [
    b"#!cmd", b"#!cmd.io", b"#!", b"alpine", b"debian", b"@", b"@sha256:" + b"0" * 64, b":", b"3.20", b"jq", b"-", b"=", b"$(x)", b" ",
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
