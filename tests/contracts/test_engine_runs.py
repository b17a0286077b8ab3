"""What goes into a run and how it ends: arguments, environment, files, statuses."""

from __future__ import annotations

import asyncio
import hashlib
import os

import pytest

from cmdsvc.engine import Engine
from cmdsvc.model import SCRIPT_PATH, Outcome, Reason, Terminal
from tests.contracts.engine_lab import CANARY, ENV, Lab

pytestmark = [pytest.mark.every_road, pytest.mark.asyncio(loop_scope="session")]

EVERY_BYTE = bytes(range(1, 256))
ODD = [
    b"",
    b"-n",
    b"--",
    b"-",
    b"--help",
    b"\n",
    b"\n\n  trailing\n",
    b" ",
    b"a b\tc",
    b"'",
    b'"',
    b"\\",
    b"\\'\"$(exit 9)`exit 9`;exit 9|&<>*?[]{}~!#%s%%\\n",
    b"$HOME ${PATH} $$ $1",
    EVERY_BYTE,
    EVERY_BYTE[::-1],
    "snow \N{SNOWMAN}".encode(),
    b"\xff\xfe invalid",
    b"",
]


async def test_arguments_arrive_as_they_are(lab: Lab) -> None:
    result = await lab.run("cat /proc/$$/cmdline", *ODD)
    assert result.ok().split(b"\0") == [b"/bin/sh", SCRIPT_PATH, *ODD, b""]


async def test_arguments_of_100_kb(lab: Lab) -> None:
    big = (EVERY_BYTE * 402)[:100_000]
    result = await lab.run("cat /proc/$$/cmdline", big, b"", big)
    assert result.ok().split(b"\0")[2:] == [big, b"", big, b""]


async def test_many_arguments(lab: Lab) -> None:
    many = [b"%d" % n for n in range(5000)]
    result = await lab.run('echo $#; echo "${4321}"; shift 4999; echo "$@"', *many)
    assert result.lines == ["5000", "4320", "4999"]


async def test_the_environment_is_exactly_what_was_given(lab: Lab, canary: str) -> None:
    env = {
        **ENV,
        b"A.B-c": b"odd name",
        b"PPID": b"not a number",
        b"IFS": b"abc",
        b"PS4": b"$(exit 9)",
        b"_": b"underscore",
        b"PWD": b"/elsewhere",
        b"SHLVL": b"7",
        b"OPTIND": b"x",
        b"N": b"n",
        b"n": b"N",
        b"TINI_KILL_PROCESS_GROUP": b"0",
        b"EMPTY": b"",
        b"LINES": b"\n1\n\n2\n",
        b"EVERY": EVERY_BYTE,
        b"BIG": EVERY_BYTE * 390,
        b"\xff\xfe": b"name that is not UTF-8",
        b"a'b\"c $(exit 9)": b"'",
    }
    assert os.environ[CANARY] == canary
    result = await lab.run(None, argv=(b"cat", b"/proc/self/environ"), env=env)
    seen = result.ok().split(b"\0")
    assert seen.pop() == b""
    assert sorted(seen) == sorted(b"%b=%b" % pair for pair in env.items())


async def test_an_empty_environment(lab: Lab) -> None:
    result = await lab.run(None, argv=(b"/bin/cat", b"/proc/self/environ"), env={})
    assert result.ok() == b""


async def test_a_script_sees_the_same_environment(lab: Lab) -> None:
    env = {**ENV, b"X": b"1 2", b"A.B-c": b"3"}
    result = await lab.run("tr '\\0' '\\n' </proc/$$/environ", env=env)
    assert sorted(result.ok().splitlines()) == sorted(b"%b=%b" % pair for pair in env.items())


async def test_a_script_sees_an_environment_of_plain_names(lab: Lab) -> None:
    env = {**ENV, b"X": b"1 2", b"EVERY": EVERY_BYTE, b"n": b"3"}
    script = b"#!/bin/cat /proc/self/environ\n"
    result = await lab.run(script, env=env)
    out = result.ok().removesuffix(script)
    assert sorted(out.split(b"\0")) == sorted([b"", *(b"%b=%b" % pair for pair in env.items())])


async def test_a_script_sees_an_empty_environment(lab: Lab) -> None:
    script = b"#!/bin/cat /proc/self/environ\n"
    assert (await lab.run(script, env={})).ok() == script


async def test_on_a_terminal_words_of_any_bytes_are_only_words(lab: Lab) -> None:
    """And none is a key that was pressed."""
    hostile = b"'\x7f\x7f\x7f; set -- /usr/bin/env; : '"
    words = [EVERY_BYTE, hostile, b"\t\x03\x04\x11\x13\x15\x1a\x1c", b"x" * 100_000]
    env = {**ENV, b"X": EVERY_BYTE, b"Y": hostile, b"SECRET": b"of the owner"}
    script = b'#!/bin/sh\nstty -opost\nprintf \'%s|\' "$@" "$X" "$Y"\nwc -c <$0\nexit\n\t'
    script += EVERY_BYTE
    terminal = Terminal("xterm", 80, 24)
    result = await lab.run(script, *words, env=env, terminal=terminal)
    expected = b"|".join([*words, EVERY_BYTE, hostile, b"%d\n" % len(script)])
    assert result.ok() == expected


async def test_the_working_directory_is_home(lab: Lab) -> None:
    result = await lab.run('pwd; cd; pwd; ls -A | wc -l; echo "$HOME"')
    assert result.ok() == b"/cmd\n/cmd\n0\n/cmd\n"


@pytest.mark.parametrize("folder", ["/cmd", "/tmp"])
async def test_a_folder_is_writable_and_executable(lab: Lab, folder: str) -> None:
    result = await lab.run(
        'cd "$1"; mkdir -p a/b; printf "#!/bin/sh\\necho ran \\$1\\n" >a/b/x; chmod +x a/b/x;'
        "./a/b/x it; ln -s x a/b/l; a/b/l again; mv a c; rm -r c; mkfifo f; ls",
        folder,
    )
    assert result.ok() == b"ran it\nran again\nf\n"
    assert result.stderr == b""


async def test_what_one_run_writes_the_next_does_not_see(lab: Lab) -> None:
    script = "for f in /cmd /tmp /dev/shm; do ls -A $f; echo x >$f/left; done; true"
    for _ in range(2):
        result = await lab.run(script)
        assert result.ok() == b""


async def test_the_script_is_read_only_and_as_it_came(lab: Lab) -> None:
    body = (
        b"#!/bin/sh\nstat -c %a $0; sha256sum <$0; echo x 2>/dev/null >>$0 || echo refused; exit\n"
    )
    body += bytes(range(256)) * 4000  # NUL bytes too: the shell has left by then
    result = await lab.run(body)
    assert result.lines == ["555", f"{hashlib.sha256(body).hexdigest()}  -", "refused"]


@pytest.mark.parametrize(
    "last", [b"echo end", b"echo end\n", b"echo end\n\n\n", b"echo end # \xff"], ids=repr
)
async def test_a_script_needs_no_last_line_break(lab: Lab, last: bytes) -> None:
    assert (await lab.run(b"#!/bin/sh\n" + last)).ok() == b"end\n"


async def test_a_shebang_with_an_argument(lab: Lab) -> None:
    result = await lab.run(b"#!/bin/sh -e\nfalse\necho not here\n")
    assert (result.status, result.stdout) == (1, b"")


async def test_a_shebang_by_env(lab: Lab) -> None:
    assert (await lab.run(b"#!/usr/bin/env sh\necho $1\n", "x")).ok() == b"x\n"


async def test_an_interpreter_that_is_no_shell(lab: Lab) -> None:
    script = b"#!/usr/bin/awk -f\nBEGIN { print ARGC, ARGV[1]; exit 5 }\n"
    result = await lab.run(script, "x")
    assert (result.status, result.stdout) == (5, b"2 x\n")


async def test_a_program_by_name(lab: Lab) -> None:
    """The utility form: no script, and the arguments reach it untouched."""
    result = await lab.run(None, argv=(b"printf", b"%s|", *ODD[1:]))
    assert result.ok() == b"".join(word + b"|" for word in ODD[1:])


async def test_a_program_by_path(lab: Lab) -> None:
    result = await lab.run(None, argv=(b"/bin/busybox", b"echo", b"x"), env={})
    assert result.ok() == b"x\n"


async def test_a_program_is_found_whatever_the_environment_says(lab: Lab) -> None:
    env = {**ENV, b"PATH": b"/nowhere"}
    assert (await lab.run(None, argv=(b"echo", b"x"), env=env)).ok() == b"x\n"
    assert (await lab.run(None, argv=(b"echo", b"x"), env={})).ok() == b"x\n"


@pytest.mark.parametrize(
    "name", [b"no-such-program", b"/no/such", b"no such $(exit 1)", b"-n", b"A=B"]
)
async def test_a_program_that_is_not_there(lab: Lab, name: bytes) -> None:
    result = await lab.run(None, argv=(name, b"x"))
    assert result.status == 127
    assert result.stdout == b""


@pytest.mark.parametrize("name", [b"/etc/passwd", b"/etc", b"/tmp"])
async def test_a_program_that_cannot_be_executed(lab: Lab, name: bytes) -> None:
    result = await lab.run(None, argv=(name, b"x"))
    assert result.status == 126
    assert result.stdout == b""


async def test_a_script_whose_interpreter_is_not_there(lab: Lab) -> None:
    result = await lab.run(b"#!/no/such/interpreter\necho x\n")
    assert result.status in (126, 127)
    assert result.stdout == b""


@pytest.mark.slow
async def test_every_exit_status(lab: Lab, engine_name: str) -> None:
    room = asyncio.Semaphore(8)
    # Each takes a container there, and is told as text: all that differ in length, and the signals'.
    handed = [0, 1, 9, 10, 99, 100, 124, 127, 128, 130, 137, 143, 254, 255]
    numbers = handed if engine_name == "docker-handed" else list(range(256))

    async def status(number: int) -> Outcome:
        async with room:
            return (await lab.run(f"exit {number}")).outcome

    outcomes = await asyncio.gather(*map(status, numbers))
    told = dict(zip(numbers, outcomes, strict=True))
    wrong = {n: o for n, o in told.items() if o != Outcome(n) and n <= 128}
    assert not wrong
    # A status over 128 may be a signal's as well: what the caller gets is the same.
    assert [outcome.exit_status for outcome in outcomes] == numbers
    assert {outcome.reason for outcome in outcomes} <= {Reason.EXIT, Reason.SIGNAL}


@pytest.mark.parametrize("number", [0, 1, 2, 64, 124, 125, 126, 127, 128, 137, 143, 255])
async def test_an_exit_status(lab: Lab, number: int) -> None:
    result = await lab.run('echo out; echo err >&2; exit "$1"', str(number))
    assert (result.status, result.stdout, result.stderr) == (number, b"out\n", b"err\n")
    assert result.outcome.reason in (Reason.EXIT, Reason.SIGNAL)
    assert result.outcome.message == ""


async def test_ten_at_once(lab: Lab) -> None:
    script = 'cat; echo "$1" >/tmp/mine; sleep 0.1; cat /tmp/mine; exit "$1"'
    results = await asyncio.gather(
        *(lab.run(script, str(n), stdin=b"in %d\n" % n) for n in range(10))
    )
    assert [r.status for r in results] == list(range(10))
    assert [r.stdout for r in results] == [b"in %d\n%d\n" % (n, n) for n in range(10)]


async def test_a_run_knows_nothing_of_the_service(lab: Lab, canary: str) -> None:
    result = await lab.run("cat /proc/*/environ /proc/*/cmdline 2>/dev/null; ls -l /proc/$$/fd")
    told = result.ok()
    assert canary.encode() not in told
    assert str(lab.settings.data_dir.parent).encode() not in told


async def test_a_run_has_no_more_open_than_its_streams(lab: Lab) -> None:
    result = await lab.run(None, argv=(b"ls", b"/proc/self/fd"))
    assert result.lines == ["0", "1", "2", "3"]  # 3 is the folder itself


async def test_check_tells_what_is_in_force(engine: Engine) -> None:
    findings = await engine.check()
    assert findings
    assert {f.level for f in findings} <= {"ok", "warning", "error"}
    assert not [f for f in findings if f.level == "error"]
    assert all(f.what and "\n" not in f.what + f.hint for f in findings)


async def test_the_engine_says_its_name(lab: Lab) -> None:
    assert lab.engine.name == lab.name
