"""What hostile WebSockets get, and what they leave behind: nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable

import pytest

from cmdsvc.web.frames import CLOSING, MESSAGE_MAX, PING
from tests.e2e.http_lab import Web, rest, status
from tests.e2e.raw_client import (
    AT_HAND,
    MARKS,
    Sleeper,
    descriptors,
    memory,
    peak_below,
    until,
)
from tests.e2e.service_lab import PATIENCE
from tests.e2e.ws_lab import bare, closing, frame, talking, upgrade

V1 = "Sec-WebSocket-Protocol: cmdsvc.v1"
TEXT, BINARY, CONT, CLOSE, PINGED = 1, 2, 0, 8, 9


class TestHandshake:
    @pytest.mark.parametrize(
        ("line", "changed", "expected"),
        [
            ("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 8", 426),
            ("Sec-WebSocket-Version: 13", "X: y", 426),
            ("Sec-WebSocket-Key", "X-Key", 400),
            ("Sec-WebSocket-Key: ", "Sec-WebSocket-Key: AAAA", 400),
            ("X: y", "Content-Length: 3", 400),
            ("X: y", "Transfer-Encoding: chunked", 400),
            ("X: y", "Sec-WebSocket-Protocol: cmdsvc.v2", 400),
            ("X: y", "Origin: https://evil.example", 403),
            ("Authorization", "X-Authorization", 401),
        ],
    )
    def test_what_is_refused(self, web: Web, line: str, changed: str, expected: int):
        with web.socket() as sock:
            head = upgrade(web, "echo", "X: y")
            assert line.encode() in head
            sock.sendall(head.replace(line.encode(), changed.encode()))
            reply = sock.recv(1 << 16)
        assert status(reply) == expected
        if expected == 426:
            assert b"sec-websocket-version: 13" in reply.lower()

    def test_what_asks_for_none_gets_none(self, web: Web):
        for old, new in (
            (b"GET ", b"POST "),
            (b"HTTP/1.1", b"HTTP/1.0"),
            (b"Upgrade: WebSocket", b"Upgrade: h2c"),
            (b"keep-alive, Upgrade", b"keep-alive"),
        ):
            with web.socket() as sock:
                sock.sendall(upgrade(web, "echo plain").replace(old, new, 1))
                reply = through(sock, b"plain\n")
            assert status(reply) == 200, new

    def test_after_a_refusal_the_connection_goes_on(self, web: Web):
        with web.socket() as sock:
            sock.sendall(upgrade(web, "echo", "Sec-WebSocket-Protocol: x"))
            assert status(through(sock, b"or none\n")) == 400
            sock.sendall(web.head("echo hi"))
            assert status(through(sock, b"hi\n")) == 200

    def test_who_does_not_wait_for_it(self, web: Web):
        with web.socket() as sock:
            sock.sendall(upgrade(web, "head -c 3") + frame(BINARY, b"abc"))
            assert status(through(sock, b"abc")) == 101


def through(sock: socket.socket, words: bytes) -> bytes:
    """What comes, up to these words."""
    data = b""
    while words not in data:
        piece = sock.recv(1 << 16)
        assert piece, data
        data += piece
    return data


def reset_at_end(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def control(text: str) -> bytes:
    return frame(TEXT, text.encode())


class TestFrames:
    @pytest.mark.parametrize(
        ("data", "code", "words"),
        [
            (frame(BINARY, b"x", masked=False), 1002, "mask"),
            (frame(3, b"x"), 1002, "opcode"),
            (b"\xc2\x80\0\0\0\0", 1002, "reserved"),
            (frame(CONT, b"x"), 1002, "continuation"),
            (frame(PINGED, bytes(126)), 1002, "long"),
            (frame(CLOSE, b"\0"), 1002, ""),
            (frame(TEXT, b"\xff"), 1007, "UTF-8"),
            (frame(BINARY, bytes(MESSAGE_MAX + 1))[:14], 1009, ""),
            (
                b"".join(frame(BINARY, bytes(300_000), fin=False) for _ in range(1))
                + b"".join(frame(CONT, bytes(300_000), fin=False) for _ in range(3)),
                1009,
                "",
            ),
            (control("nonsense"), 1003, "JSON"),
            (control("[" * 4000), 1003, "JSON"),
            (control("9" * 4096), 1008, "type"),
            (control(f'{{"type":"eof","x":"{"y" * 5000}"}}'), 1008, "type"),
            (control("[]"), 1008, "type"),
            (control("{}"), 1008, "eof, resize or signal"),
            (control('{"type":"run"}'), 1008, "eof, resize or signal"),
            (control('{"type":"resize","cols":80}'), 1008, "cols and rows"),
            (control('{"type":"resize","cols":0,"rows":1}'), 1008, "65535"),
            (control('{"type":"resize","cols":1e9,"rows":1}'), 1008, "65535"),
            (control('{"type":"signal","signal":"SIGINT"}'), 1008, "INT"),
            (control('{"type":"signal","signal":9}'), 1008, "INT"),
            (control('{"type":"eof"}') + frame(BINARY, b"x"), 1008, "eof"),
        ],
    )
    async def test_the_run_is_ended_and_the_client_told_why(
        self, web: Web, data: bytes, code: int, words: str
    ):
        mark = next(MARKS)
        with bare(web, f"sleep {mark}", V1) as sock:
            asleep = Sleeper(mark)
            await asleep.there()
            begun = time.monotonic()
            sock.sendall(data)
            found, reason = closing(await asyncio.to_thread(rest, sock))
            await asleep.gone()
        assert time.monotonic() - begun < CLOSING / 2
        assert found == code
        assert words in reason

    async def test_what_follows_a_close(self, web: Web):
        mark = next(MARKS)
        with bare(web, f"sleep {mark}", V1) as sock:
            asleep = Sleeper(mark)
            await asleep.there()
            sock.sendall(frame(CLOSE, b"\x03\xe8") + frame(BINARY, b"x") * 1000 + b"\xff" * 1000)
            assert closing(await asyncio.to_thread(rest, sock)) == (1000, "")
            await asleep.gone()

    @pytest.mark.slow
    async def test_one_who_sends_on_after_the_end_is_cut_off(self, web: Web):
        with bare(web, "true", V1) as sock:
            sock.settimeout(CLOSING * 3)
            begun = time.monotonic()
            with contextlib.suppress(ConnectionError):
                while time.monotonic() - begun < CLOSING * 2:
                    await asyncio.to_thread(sock.sendall, frame(BINARY, bytes(60_000)))
        assert CLOSING - 1 < time.monotonic() - begun < CLOSING + 3

    def test_a_long_message_in_small_pieces(self, web: Web):
        """As long as a whole one may be, and in order."""
        with bare(web, "wc -c", V1) as sock:
            sock.sendall(frame(BINARY, fin=False))
            sock.sendall(frame(CONT, b"x" * 100, fin=False) * 10_000)
            sock.sendall(frame(CONT) + control('{"type":"eof"}'))
            said = sock.recv(1000)
            assert said[2:].startswith(b"\x011000000\n")


class TestWhatIsNotTaken:
    async def stuffed(
        self, web: Web, script: str, data: bytes, *, most: int = 64 << 20, window: int = 0
    ) -> None:
        """Sends as much as is taken of `most` bytes; the sandbox is gone within a second after it."""
        mark = next(MARKS)
        script = f"sleep {mark} & {script}"
        with peak_below(web.service, 24), bare(web, script, V1, window=window) as sock:
            asleep = Sleeper(mark)
            await asleep.there()
            sock.settimeout(1)
            with contextlib.suppress(TimeoutError):
                for _ in range(most // len(data) if data else 0):
                    await asyncio.to_thread(sock.sendall, data)
            assert (await asyncio.to_thread(web.run, "echo hi")).text == "hi\n"
            if most > 32 << 20:  # what is on its way comes before an orderly end: TCP's, not ours
                reset_at_end(sock)
        await asleep.gone(1.5)

    @pytest.mark.parametrize("most", [600_000, 20 << 20, 64 << 20])
    async def test_stdin_that_the_script_does_not_read(self, web: Web, most: int):
        await self.stuffed(web, "exec sleep 1000", frame(BINARY, bytes(65_000)), most=most)

    async def test_stdin_in_large_messages(self, web: Web):
        await self.stuffed(web, "exec sleep 1000", frame(BINARY, bytes(1_000_000)))

    async def test_output_that_the_client_does_not_read(self, web: Web):
        await self.stuffed(web, "exec yes", b"", window=4096)

    async def test_answers_to_pings_that_the_client_does_not_read(self, web: Web):
        data = frame(PINGED, b"x" * 125) * 500
        await self.stuffed(web, "exec sleep 1000", data, window=4096)

    @pytest.mark.slow
    async def test_the_smallest_frames(self, web: Web):
        """Others are served meanwhile."""
        for data in (frame(BINARY), frame(CONT, fin=False), control("{}")[:0] + frame(PINGED)):
            first = frame(BINARY, fin=False) if data == frame(CONT, fin=False) else b""
            with peak_below(web.service, 24), bare(web, "exec sleep 1000", V1) as sock:
                sock.sendall(first)
                served = threading.Event()
                flooding = asyncio.to_thread(self.flood, sock, data * 40_000, served)
                flood = asyncio.create_task(flooding)
                while not flood.done():
                    assert (await asyncio.to_thread(web.run, "echo hi")).text == "hi\n"
                    if not flood.done():
                        served.set()
                await flood
                assert served.is_set()

    def flood(self, sock: socket.socket, data: bytes, served: threading.Event) -> None:
        """For 3 s, and until somebody else was served."""
        sock.settimeout(1)
        left = memoryview(data)
        begun = time.monotonic()
        with contextlib.suppress(OSError):  # it was cut off
            while (seconds := time.monotonic() - begun) < 3 or not served.is_set():
                assert seconds < PATIENCE
                with contextlib.suppress(TimeoutError):  # it is not read just now
                    left = left[sock.send(left) :] or memoryview(data)


class TestClientsThatLeave:
    @pytest.mark.parametrize("reset", [True, False])
    @pytest.mark.parametrize("script", ["exec sleep 1000", "exec yes", "exec cat"])
    async def test_in_mid_run(self, web: Web, script: str, reset: bool):
        mark = next(MARKS)
        with bare(web, f"sleep {mark} & {script}", V1) as sock:
            asleep = Sleeper(mark)
            await asleep.there()
            if reset:
                reset_at_end(sock)
        await asleep.gone(1.5)

    @pytest.mark.slow
    async def test_pings_are_to_be_answered(self, web: Web):
        """But not by who has not got them yet, nor by who is not listened to."""
        begun = time.monotonic()
        with (
            bare(web, "exec sleep 1000", V1) as mute,
            bare(web, "exec yes", V1, window=4096) as deaf,
            bare(web, "exec sleep 1000", V1) as stuffed,
        ):
            stuffed.settimeout(1)
            with contextlib.suppress(TimeoutError):
                stuffed.sendall(frame(BINARY, bytes(60_000)) * 2000)
            async with talking(web, "read x; echo $x") as fine:
                found = closing(await asyncio.to_thread(rest, mute))
                assert 2 * PING - 2 < time.monotonic() - begun < 2 * PING + 25
                assert found[0] == 1011
                assert "ping" in found[1]
                await fine.ws.send(b"still here\n")
                assert await fine.end() == 1000
                assert fine.out == b"still here\n"
            await until(lambda: len(running(web)) == 2, 20)
            assert deaf.recv(10)
            reset_at_end(stuffed)
        await until(lambda: not running(web), 20)

    def test_hundreds_of_broken_ones_leave_nothing(self, web: Web):
        def broken(n: int) -> None:
            cases: list[Callable[[], bytes]] = [
                lambda: b"",
                lambda: b"\x82",
                lambda: frame(BINARY, bytes(100_000))[:50_000],
                lambda: frame(CLOSE),
                lambda: frame(TEXT, b"\xff"),
                lambda: frame(PINGED) * 100,
            ]
            with web.socket() as sock:
                sock.sendall(upgrade(web, "exec yes", V1) + cases[n % len(cases)]())
                if n % 2:
                    sock.recv(100)

        for n in range(60):
            broken(n)
        assert web.run("echo").status_code in {200, 429, 503}
        asyncio.run(until(lambda: not running(web), 10))
        before = memory(web.service, "VmRSS"), descriptors(web.service)
        for n in range(300):
            broken(n)
        asyncio.run(until(lambda: not running(web), 20))
        asyncio.run(until(lambda: descriptors(web.service) <= before[1] + AT_HAND))
        assert memory(web.service, "VmRSS") - before[0] < 20


def running(web: Web) -> list[str]:
    return [
        line for line in web.service.ssh(":runs", "-n", "500").ok().lines if "\trunning" in line
    ]
