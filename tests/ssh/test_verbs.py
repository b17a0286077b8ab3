"""What builtins are made of: their words, their stdin, their progress, their listings."""

from __future__ import annotations

import asyncio
import json
from argparse import Namespace
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cmdsvc.errors import CmdError, DataError, UsageError
from cmdsvc.model import Door, Identity, Terminal, Via
from cmdsvc.relay import CallerGone
from cmdsvc.service.invocation import Request
from cmdsvc.ssh.builtins import BUILTINS
from cmdsvc.ssh.verbs import PROGRESS_MAX, Call, Parser, Services
from tests.fakes import FakeCaller, LeavingCaller, SlowCaller, soon, turns

ANN = Identity("ann", Via.KEY)
TERMINAL = Terminal("xterm", 40, 24)
LIMIT = 10


def call_of(
    caller: FakeCaller | None = None, terminal: Terminal | None = None, **options: Any
) -> Call:
    services = cast("Services", SimpleNamespace(max_source=LIMIT))

    def request(name: str, args: Sequence[str]) -> Request:
        return Request(ANN, Door.SSH, name, [arg.encode() for arg in args], {}, "192.0.2.1")

    return Call(ANN, services, caller or FakeCaller(), terminal, Namespace(**options), request)


def stdout(call: Call) -> str:
    return cast("FakeCaller", call.caller).stream(1).decode()


def stderr(call: Call) -> str:
    return cast("FakeCaller", call.caller).stream(2).decode()


class TestParser:
    @pytest.fixture
    def parser(self) -> Parser:
        parser = Parser(":verb", "Do it.", "ssh HOST :verb x")
        parser.add_argument("name", metavar="NAME")
        parser.add_argument("stdin", nargs="?", choices=["-"])
        parser.add_argument("-n", "--number", type=int)
        return parser

    def test_words(self, parser: Parser):
        for words in (["-n", "3", "x", "-"], ["x", "-n", "3", "-"], ["x", "-", "-n", "3"]):
            options = parser.parse_intermixed_args(words)
            assert (options.name, options.number, options.stdin) == ("x", 3, "-")

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            ([], "NAME"),
            (["a", "b"], "invalid choice"),
            (["a", "-", "c"], "unrecognized arguments: c"),
            (["a", "--numb", "3"], "unrecognized arguments"),  # nothing is abbreviated
            (["a", "--nope"], "unrecognized arguments: --nope"),
            (["a", "-n"], "expected one argument"),
            (["a", "-n", "x"], "invalid int value"),
            (["a", "-n", "\x1b[2J\n%s%(prog)s"], "invalid int value"),
            (["a", "-", "\x1b[2J\nforged"], "unrecognized arguments"),
        ],
    )
    def test_errors(
        self, words: list[str], says: str, parser: Parser, capfd: pytest.CaptureFixture[str]
    ):
        with pytest.raises(UsageError) as caught:
            parser.parse_intermixed_args(words)
        line = str(caught.value)
        assert says in line
        assert line.isprintable()
        assert line.endswith("; see :verb --help")
        assert capfd.readouterr() == ("", "")

    def test_help_is_returned(self, parser: Parser):
        text = parser.format_help()
        assert text.startswith("usage: :verb")
        assert "Do it." in text
        assert text.endswith("example:\n  ssh HOST :verb x\n")

    def test_leaving_is_an_error(self, parser: Parser):
        with pytest.raises(UsageError, match="so; see :verb --help"):
            parser.exit(0, "so")

    @pytest.mark.parametrize("verb", sorted(BUILTINS))
    def test_of_every_builtin(self, verb: str):
        builtin = BUILTINS[verb]
        parser = builtin.parser()
        assert parser.prog == builtin.verb
        assert builtin.example in parser.format_help()
        with pytest.raises(UsageError):
            parser.parse_intermixed_args(["--no-such-option"])


class TestWriting:
    async def test_line_ends(self):
        piped, seen = call_of(), call_of(terminal=TERMINAL)
        for call in (piped, seen):
            await call.out("a\nb\n")
            await call.err("c\n")
            await call.out("")
        assert piped.caller.got == [(1, b"a\nb\n"), (2, b"c\n")]
        assert seen.caller.got == [(1, b"a\r\nb\r\n"), (2, b"c\r\n")]

    async def test_what_cannot_be_encoded(self):
        call = call_of()
        await call.out("a\udcffb")
        assert stdout(call) == "a?b"

    async def test_who_is_gone(self):
        caller = LeavingCaller()
        caller.gone = True
        with pytest.raises(CallerGone):
            await call_of(caller).out("x")


class TestSource:
    @pytest.mark.parametrize(
        "parts",
        [(), (b"",), (b"#!cmd",), (b"#!", b"cmd\r\n"), (b"\x03\x04\x00\xff",), (b"x" * LIMIT,)],
    )
    async def test_piped_it_is_what_comes(self, parts: tuple[bytes, ...]):
        call = call_of(FakeCaller(*parts))
        assert await call.source() == b"".join(parts)
        assert call.caller.got == []

    async def test_over_the_limit_it_says_so_at_once(self):
        caller = FakeCaller(b"x" * LIMIT, b"y", b"never asked for")
        with pytest.raises(DataError, match=f"larger than {LIMIT} bytes"):
            await call_of(caller).source()
        assert caller.given == [b"never asked for"]

    async def test_who_leaves_has_sent_nothing(self):
        with pytest.raises(CallerGone):
            await call_of(LeavingCaller(b"#!cmd")).source()
        with pytest.raises(CallerGone):
            await call_of(LeavingCaller(b"#!cmd"), TERMINAL).source()

    async def test_typed_it_is_shown_and_ends_with_control_d(self):
        caller = FakeCaller(b"a", b"b\r", b"c\x04d", b"never asked for")
        call = call_of(caller, TERMINAL)
        assert await call.source() == b"ab\nc"
        assert stdout(call).startswith("ab\r\nc")
        assert caller.given == [b"never asked for"]

    async def test_typed_it_may_just_end(self):
        assert await call_of(FakeCaller(b"a\r"), TERMINAL).source() == b"a\n"

    @pytest.mark.parametrize("typed", [b"\x03", b"a\r\x03", b"a\x03b\x04"])
    async def test_control_c_gives_it_up(self, typed: bytes):
        caller = FakeCaller(typed, b"never asked for")
        with pytest.raises(UsageError, match="interrupted; nothing was stored"):
            await call_of(caller, TERMINAL).source()
        assert caller.given == [b"never asked for"]

    async def test_typed_it_has_a_limit_too(self):
        with pytest.raises(DataError, match="larger than"):
            await call_of(FakeCaller(b"x" * (LIMIT + 1) + b"\x04"), TERMINAL).source()
        exact = call_of(FakeCaller(b"x" * LIMIT + b"\x04" + b"y" * LIMIT), TERMINAL)
        assert await exact.source() == b"x" * LIMIT


class TestProgress:
    async def test_piped_it_is_every_line(self):
        call = call_of()
        async with call.progress() as tell:
            tell("one")
            tell("  two")
            await turns()
            assert stderr(call) == "one\n  two\n"
            tell("three")
        assert stderr(call) == "one\n  two\nthree\n"
        assert stdout(call) == ""

    async def test_on_a_terminal_it_is_one_line_that_goes_away(self):
        call = call_of(terminal=TERMINAL)
        async with call.progress() as tell:
            tell("one")
            tell("x" * 100)
        assert stderr(call) == f"\r\x1b[Kone\r\x1b[K{'x' * 39}\r\x1b[K"

    async def test_nothing_to_tell(self):
        piped, seen = call_of(), call_of(terminal=TERMINAL)
        for call in (piped, seen):
            async with call.progress():
                await turns()
        assert stderr(piped) == ""
        assert stderr(seen) == "\r\x1b[K"

    @pytest.mark.parametrize("terminal", [None, TERMINAL])
    async def test_no_line_moves_the_cursor(self, terminal: Terminal | None):
        call = call_of(terminal=terminal)
        async with call.progress() as tell:
            tell("a\x1b[2J\rb\x9bc\u2028d")
        text = stderr(call).replace("\r\x1b[K", "").replace("\n", "")
        assert text == text.encode().decode()
        assert text.isprintable()

    async def test_to_who_reads_slowly_nothing_is_lost(self):
        caller = SlowCaller()
        call = call_of(caller)
        async with call.progress() as tell:
            tell("one")
            await soon(caller.asked.wait())
            tell("two")  # at once, although "one" waits
            asyncio.get_running_loop().call_soon(caller.room.set)
        assert stderr(call) == "one\ntwo\n"

    async def test_for_who_does_not_read_the_last_lines_are_kept(self):
        caller = SlowCaller()
        call = call_of(caller)
        async with call.progress() as tell:
            tell("first")
            await soon(caller.asked.wait())
            for number in range(PROGRESS_MAX + 7):
                tell(f"{number}")
            caller.room.set()
        lines = stderr(call).splitlines()
        assert lines == ["first", *(str(n) for n in range(7, PROGRESS_MAX + 7))]

    async def test_what_was_told_before_a_failure_is_shown(self):
        call = call_of()

        async def build() -> None:
            async with call.progress() as tell:
                tell("ERROR: unable to select packages:")
                raise DataError("no such package")

        with pytest.raises(DataError, match="no such package"):
            await build()
        assert stderr(call) == "ERROR: unable to select packages:\n"

    async def test_who_leaves_ends_it(self):
        caller = LeavingCaller()
        caller.gone = True

        async def build() -> None:
            async with call_of(caller).progress() as tell:
                tell("one")
                await turns()
                tell("two")

        with pytest.raises(CallerGone):
            await build()

    async def test_cancelled_while_the_reader_is_slow(self):
        caller = SlowCaller()

        async def build() -> None:
            async with call_of(caller).progress() as tell:
                tell("one")
                await asyncio.Event().wait()

        task = asyncio.create_task(build())
        await soon(caller.asked.wait())
        task.cancel()
        await turns()
        caller.room.set()
        with pytest.raises(asyncio.CancelledError):
            await soon(task)
        assert caller.got == [(2, b"one\n")]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    async def test_cancelled_twice_it_waits_no_longer(self):
        caller = SlowCaller()

        async def build() -> None:
            async with call_of(caller).progress() as tell:
                tell("one")
                await asyncio.Event().wait()

        task = asyncio.create_task(build())
        await soon(caller.asked.wait())
        for _ in range(2):
            task.cancel()
            await turns()
        assert task.cancelled()
        assert asyncio.all_tasks() == {asyncio.current_task()}


COLUMNS = ("name", "description")
ROWS = [("ann", "plain"), ("世界", "wide"), ("é", "a\tb\nc"), ("x", "\x1b[2J\x9bm"), ("n", 7)]
BAD = "\N{REPLACEMENT CHARACTER}"


class TestTable:
    async def test_piped_it_is_separated_by_tabs(self):
        call = call_of()
        await call.table(COLUMNS, ROWS)
        assert stdout(call) == (f"ann\tplain\n世界\twide\né\ta b c\nx\t{BAD}[2J{BAD}m\nn\t7\n")

    async def test_on_a_terminal_it_has_a_header_and_is_aligned(self):
        call = call_of(terminal=TERMINAL)
        await call.table(COLUMNS, ROWS)
        assert stdout(call).split("\r\n") == [
            "NAME  DESCRIPTION",
            "ann   plain",
            "世界  wide",
            "e\u0301     a b c".replace("e\u0301", "é"),
            f"x     {BAD}[2J{BAD}m",
            "n     7",
            "",
        ]

    async def test_combining_characters_take_no_room(self):
        call = call_of(terminal=TERMINAL)
        await call.table(("a", "b"), [("e\u0301", "x"), ("yy", "z")])
        assert stdout(call).split("\r\n")[1:3] == ["e\u0301   x", "yy  z"]

    @pytest.mark.parametrize(("columns", "room"), [(40, 40), (25, 25), (3, 20), (0, 20)])
    async def test_what_is_too_wide_is_cut(self, columns: int, room: int):
        call = call_of(terminal=Terminal("xterm", columns, 24))
        await call.table(("a",), [("x" * 100,), ("世" * 100,)])
        narrow, wide = stdout(call).split("\r\n")[1:3]
        assert narrow == "x" * room
        assert wide == "世" * (room // 2)

    async def test_what_is_much_too_wide_is_cut_in_no_time(self):
        """Cut character by character from its end, this would take hours."""
        call = call_of(terminal=TERMINAL)
        await call.table(("a",), [("x" * 1_000_000,)])
        assert stdout(call) == f"A\r\n{'x' * 40}\r\n"

    async def test_json(self):
        call = call_of(json=True)
        await call.table(("Name", "n", "ok"), [("é 世界", 7, True), ('a"\n\t', 0, False)])
        text = stdout(call)
        assert json.loads(text) == [
            {"name": "é 世界", "n": 7, "ok": True},
            {"name": 'a"\n\t', "n": 0, "ok": False},
        ]
        assert "é 世界" in text
        assert text.endswith("]\n")

    @pytest.mark.parametrize("text", ["\x1b[2J", "\x9b2J", "\u202e", "\u2028", "\udcff", "🎉\x7f"])
    async def test_json_moves_no_cursor_and_loses_nothing(self, text: str):
        call = call_of(json=True)
        await call.table(("name",), [(text,)])
        assert stdout(call).replace("\n", "").isprintable()
        assert json.loads(stdout(call)) == [{"name": text}]

    async def test_json_on_a_terminal(self):
        call = call_of(terminal=TERMINAL, json=True)
        await call.table(("name",), [("x" * 100,)])
        assert json.loads(stdout(call)) == [{"name": "x" * 100}]
        assert "\n" not in stdout(call).replace("\r\n", "")

    @pytest.mark.parametrize(
        ("terminal", "options", "text"),
        [(None, {}, ""), (TERMINAL, {}, "NAME  DESCRIPTION\r\n"), (None, {"json": True}, "[]\n")],
    )
    async def test_empty(self, terminal: Terminal | None, options: dict[str, bool], text: str):
        call = call_of(terminal=terminal, **options)
        await call.table(COLUMNS, [])
        assert stdout(call) == text


def test_a_callers_leaving_is_no_error_of_the_services():
    assert not issubclass(CallerGone, CmdError)
