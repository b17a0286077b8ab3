"""/runs/ID: what became of a run, its output, and its end; for the token that asked for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from cmdsvc.errors import BusyError, NotFoundError
from cmdsvc.metadata import Http
from cmdsvc.model import Outcome, Reason, Run
from cmdsvc.service.live import Live, Piece
from cmdsvc.service.outputs import Gap
from cmdsvc.web.asked import Asked
from cmdsvc.web.credentials import Doorkeeper, Who
from cmdsvc.web.events import LAST, Place
from cmdsvc.web.out import Out
from cmdsvc.web.problems import RequestError, not_allowed, not_found, unauthorized
from cmdsvc.web.replies import FRESH, SAFE, Body, Events
from cmdsvc.web.run import mode_of

PLAIN = Http()


class RunsRoute:
    def __init__(self, live: Live, doorkeeper: Doorkeeper) -> None:
        self._live = live
        self._doorkeeper = doorkeeper

    async def __call__(self, asked: Asked, out: Out) -> None:
        who = await self._doorkeeper.who(asked.headers, asked.query, asked.origin.address)
        if not who.known:
            raise unauthorized()
        methods = ["GET", "HEAD"]
        match asked.path.decode().split("/")[2:]:
            case [run_id]:
                methods.append("DELETE")
            case [run_id, "output"]:
                pass
            case _:
                raise not_found()
        run = await self._live.of_token(who.identity, run_id)
        out.run = run.id
        if asked.method not in methods:
            raise not_allowed(asked.method, methods)
        if asked.method == "DELETE":
            await self._live.end(run, who.identity)
            await out.whole(204, [], b"")
        elif asked.path.endswith(b"/output"):
            await self._output(asked, out, run)
        elif (stream := asked.flag(b"stream")) is not None:
            await self._follow(asked, out, who, run, stream)
        else:
            await out.json(200, told(run))

    async def _pieces(self, run: Run, *, follow: bool) -> AsyncIterator[Piece]:
        if run.outcome is None and not self._live.here(run):
            raise BusyError("it runs on another server", "ask again when it has ended")
        pieces = await self._live.written(run.id, follow=follow)
        if pieces is None:
            raise NotFoundError("nothing is kept of its output", "?detach keeps it")
        return pieces

    async def _output(self, asked: Asked, out: Out, run: Run) -> None:
        """What is kept of its stdout, or (`?stderr`) of its stderr; so far, where it goes on."""
        wanted = 1 if asked.flag(b"stderr") is None else 2
        left_out = 0
        body = bytearray()
        async for piece in await self._pieces(run, follow=False):
            if isinstance(piece, Gap):
                left_out += piece.size
            elif piece[0] == wanted:
                body += piece[1]
        headers = [("content-type", PLAIN.content_type), FRESH, SAFE]
        if left_out:
            headers.append(("x-cmd-left-out", str(left_out)))
        await out.whole(200, headers, bytes(body))

    async def _follow(self, asked: Asked, out: Out, who: Who, run: Run, stream: str) -> None:
        if not asked.accepts("text/event-stream"):
            await asked.line.serve(self._tell(run, who, Body(out, PLAIN, 0), 0))
            return
        last = b"".join(asked.values(b"last-event-id")).decode("latin-1")
        if last == LAST:
            await out.whole(204, [], b"")  # which ends an EventSource
            return
        place = Place.read(last or "0")
        if place is None:
            raise RequestError(400, "the Last-Event-ID is none of ours", "leave it out")
        reply = Events(out, mode_of(stream), place)
        await asked.line.serve(self._tell(run, who, reply, told_before=place.offset))

    async def _tell(self, run: Run, who: Who, reply: Body | Events, told_before: int) -> None:
        """What it wrote and writes, but for the first `told_before` bytes, and how it ended."""
        pieces = await self._pieces(run, follow=True)
        at = 0
        try:
            await reply.begin()
            async for piece in pieces:
                if isinstance(piece, Gap):
                    if at + piece.size > told_before and isinstance(reply, Events):
                        await reply.left_out(at + piece.size - max(at, told_before))
                    at += piece.size
                    continue
                fd, data = piece
                rest = data[max(0, told_before - at) :]
                at += len(data)
                if rest:
                    await reply.write(fd, rest)
            run = await self._live.of_token(who.identity, run.id)
            await reply.end(run.outcome or Outcome(70, Reason.LOST, "its end is not known"))
        finally:
            await reply.stop()


def told(run: Run) -> dict[str, Any]:
    """As JSON has it."""
    outcome = run.outcome
    return {
        "id": run.id,
        "command": run.command,
        "state": "running" if outcome is None else "failed" if outcome.exit_status else "done",
        "exit_status": None if outcome is None else outcome.exit_status,
        "reason": None if outcome is None else outcome.reason,
        "message": "" if outcome is None else outcome.message,
        "started_at": run.started_at.isoformat(),
        "ended_at": run.ended_at.isoformat() if run.ended_at else None,
    }
