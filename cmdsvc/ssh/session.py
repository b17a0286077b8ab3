"""One SSH session: a channel as a `relay.Caller`, and what its command line asks for."""

from __future__ import annotations

import asyncio
import functools
import logging
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

import asyncssh

from cmdsvc.errors import CmdError, UsageError, one_line
from cmdsvc.model import Door, Identity, Outcome, Terminal
from cmdsvc.relay import CallerGone, Event, Resize, Signal
from cmdsvc.service.invocation import Request
from cmdsvc.ssh import git
from cmdsvc.ssh.agent import ForwardedAgent
from cmdsvc.ssh.builtins import dispatch
from cmdsvc.ssh.link import Link
from cmdsvc.ssh.verbs import Services

log = logging.getLogger("cmdsvc.ssh")

STDIN_HIGH = 256 << 10
"""Bytes of unread stdin above which the client gets no more window: it may send what it had."""
EVENTS_MAX = 64
ENTRY = 128
"""Bytes that an entry of the environment costs beside what is in it."""
NAMED = 80
"""Characters of what was asked for that an error repeats."""
TERM = re.compile(r"[A-Za-z0-9._+-]{1,64}")
PIECE = re.compile(
    r"""
      (?P<space> [ \t\r\n]++ )
    | (?P<plain> [^ \t\r\n'"\\]++ )
    | \\ (?P<escaped> . )
    | ' (?P<single> [^']*+ ) '
    | " (?P<double> (?: [^"\\]++ | \\. )*+ ) "
    """,
    re.DOTALL | re.VERBOSE,
)
ESCAPED = re.compile(r"""\\(["\\])""")


class Session(asyncssh.SSHServerSession[bytes]):
    """`over` is called at the very end, when the client is gone and all is cleaned up."""

    def __init__(
        self,
        services: Services,
        identity: Identity,
        address: str,
        link: Link,
        over: Callable[[Session], None],
    ) -> None:
        self._services = services
        self._identity = identity
        self._address = address
        self._link = link
        self._over = over
        self._chan: asyncssh.SSHServerChannel[bytes] | None = None
        self._command: str | None = None
        self._terminal: Terminal | None = None
        self._task: asyncio.Task[None] | None = None
        self._agent: ForwardedAgent | None = None

        self._unread = bytearray()
        self._eof = False
        self._gone = False
        self._lost = False
        self._events: deque[Event] = deque(maxlen=EVENTS_MAX)
        self._stdin_wake = asyncio.Event()
        self._event_wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    # What asyncssh calls. An error in one of these would end the whole connection, with the other
    # sessions on it: they only note what happened.

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        self._chan = chan
        # asyncssh keeps what comes before the command in a list that it then takes apart from the
        # front: a million small packets would stop the server for minutes.
        chan.resume_reading()

    def pty_requested(self, term_type: str, term_size: tuple[int, ...], term_modes: object) -> bool:
        del term_modes
        term = term_type if TERM.fullmatch(term_type) else "dumb"
        self._terminal = Terminal(term, *_size(term_size[0], term_size[1]))
        return True

    def exec_requested(self, command: str) -> bool:
        self._command = command
        return True

    def shell_requested(self) -> bool:
        return True

    def session_started(self) -> None:
        self._task = asyncio.create_task(self._serve())
        self._task.add_done_callback(lambda _: self._end())

    def data_received(self, data: bytes, datatype: int | None) -> None:
        del datatype
        self._unread += data
        self._stdin_wake.set()
        if len(self._unread) > STDIN_HIGH and self._chan is not None:
            self._link.hold(self._chan)

    def eof_received(self) -> bool:
        self._eof = True
        self._stdin_wake.set()
        return True  # the other half stays open

    def terminal_size_changed(self, width: int, height: int, pixwidth: int, pixheight: int) -> None:
        del pixwidth, pixheight
        self._events.append(Resize(*_size(width, height)))
        self._event_wake.set()

    def signal_received(self, signal: str) -> None:
        self._events.append(Signal(signal))
        self._event_wake.set()

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._lost = True
        self._left()
        if self._chan is not None:
            self._link.release(self._chan)
        self._end()

    def _end(self) -> None:
        if self._lost and (self._task is None or self._task.done()):
            self._over(self)

    def environment_size(self) -> int:
        """Bytes of environment that the client has sent."""
        if self._chan is None:
            return 0
        environment = self._chan.get_environment_bytes()
        return sum(len(key) + len(value) + ENTRY for key, value in environment.items())

    def _left(self) -> None:
        if self._gone:
            return
        self._gone = True
        for event in (self._stdin_wake, self._event_wake, self._room):
            event.set()
        if self._task is not None:
            self._task.cancel()

    # relay.Caller

    async def stdin(self) -> AsyncIterator[bytes]:
        while True:
            while self._unread:
                data = bytes(self._unread[:STDIN_HIGH])
                del self._unread[:STDIN_HIGH]
                if len(self._unread) <= STDIN_HIGH and self._chan is not None:
                    self._link.release(self._chan)
                yield data
            if self._gone:
                raise CallerGone
            if self._eof:
                return
            self._stdin_wake.clear()
            await self._stdin_wake.wait()

    async def events(self) -> AsyncIterator[Event]:
        while True:
            while self._events:
                yield self._events.popleft()
            if self._gone:
                raise CallerGone
            self._event_wake.clear()
            await self._event_wake.wait()

    async def write(self, fd: int, data: bytes) -> None:
        await self._link.writable()
        if self._gone or self._chan is None or self._chan.is_closing():
            raise CallerGone
        try:
            self._chan.write(data, None if fd == 1 else asyncssh.EXTENDED_DATA_STDERR)
        except asyncssh.DisconnectError:
            raise CallerGone from None
        if not self._room.is_set():
            await self._room.wait()
            if self._gone:
                raise CallerGone

    # The session itself

    async def _serve(self) -> None:
        """Does what was asked; whatever happens, the client gets an exit status."""
        command = self._command or ""
        name = one_line(command[:NAMED]).partition(" ")[0]
        status = 70
        try:
            try:
                words = split(command)
                name = one_line(git.repository(words) or words[0])[:NAMED] if words else ":help"
                name = name or "''"
                await self._services.sharing.welcome(self._identity)
                await self._tell(name)
                outcome = await self._do(words)
                status = outcome.exit_status
                if outcome.message:
                    await self._say(name, outcome.message)
            except CmdError as error:
                status = error.exit_status
                await self._say(name, str(error))
            except CallerGone:
                pass
            except Exception:
                log.exception("a session failed", extra={"fields": {"user": self._identity.user}})
                await self._say(name, "internal error; the operator's log has more")
        except CallerGone:
            pass
        finally:
            if self._agent is not None:
                await self._agent.aclose()
            if self._chan is not None and not self._gone:
                self._chan.exit(status)

    async def _do(self, words: list[str]) -> Outcome:
        if not words or words[0].startswith(":"):
            return await dispatch(
                words or [":help"],
                self._services,
                self._identity,
                self,
                self._terminal,
                request=self._request,
            )
        repository = git.repository(words)
        if repository is None:
            request = self._request(words[0], words[1:])
        else:
            commands = self._services.commands
            request = await git.asked(repository, words, self._identity, commands, self._request)
        return await self._services.runs.run(request, self)

    async def _tell(self, name: str) -> None:
        """The operator's notice, once on a connection, where a script does not take it for output."""
        notice = self._services.notices.current
        if notice is None or self._link.told == notice:
            return
        if self._terminal or name.startswith(":"):
            self._link.told = notice
            await self._say("notice", one_line(notice.text))

    def _request(self, name: str, args: Sequence[str]) -> Request:
        chan = self._chan
        assert chan is not None  # noqa: S101 - connection_made comes first
        if self._link.agent_offered and self._agent is None:
            self._agent = ForwardedAgent(self._link, functools.partial(self._say, name))
        return Request(
            identity=self._identity,
            door=Door.SSH,
            name=name,
            args=[word.encode() for word in args],
            env=chan.get_environment_bytes(),
            remote_addr=self._address,
            terminal=self._terminal,
            agent=self._agent,
        )

    async def _say(self, name: str, text: str) -> None:
        line = f"cmdsvc: {name}: {text}"
        await self.write(2, line.encode() + (b"\r\n" if self._terminal else b"\n"))


def split(command: str) -> list[str]:
    """The exec string split as a POSIX shell would, without expansion: as shlex.split does it.

    In linear time, where shlex takes half a second for what fits into one packet.
    """
    if "\0" in command:
        raise UsageError("a NUL byte in the command line", "leave it out")
    words: list[str] = []
    word: list[str] | None = None
    at = 0
    while piece := PIECE.match(command, at):
        at = piece.end()
        kind = piece.lastgroup or ""
        if kind != "space":
            text = piece[kind]
            word = [] if word is None else word
            word.append(ESCAPED.sub(r"\1", text) if kind == "double" else text)
        elif word is not None:
            words.append("".join(word))
            word = None
    if at < len(command):
        raise UsageError(
            "cannot split the command line: "
            + ("it ends in a backslash" if command[at] == "\\" else "a quotation is not closed"),
            "mind the quotes",
        )
    return words if word is None else [*words, "".join(word)]


def _size(columns: int, rows: int) -> tuple[int, int]:
    """A terminal's size within what a kernel takes; 80x24 where the client has none."""
    return min(columns, 65535) or 80, min(rows, 65535) or 24
