"""/hook/OWNER/NAME/HOOK: what others send; it is stored before it is answered."""

from __future__ import annotations

from cmdsvc.service.hooks import Hooks
from cmdsvc.service.signatures import Post
from cmdsvc.web import cgi
from cmdsvc.web.asked import Asked
from cmdsvc.web.bodies import Room, in_memory
from cmdsvc.web.out import Out
from cmdsvc.web.problems import not_allowed, not_found

BODY_MAX = 25 << 20
"""Bytes: what GitHub sends at most. A delivery is held in memory while it is stored."""


class HookRoute:
    def __init__(self, hooks: Hooks, *, max_body: int) -> None:
        self._hooks = hooks
        self._most = min(max_body, BODY_MAX)
        self._room = Room(4 * self._most)

    async def __call__(self, asked: Asked, out: Out) -> None:
        where = cgi.target(asked.path)
        if where is None or len(where.rest) != 1:
            raise not_found("no such hook")
        if asked.method != "POST":
            raise not_allowed(asked.method, ["POST"])
        hook = where.rest[0].decode(errors="replace")
        env = cgi.variables(
            method=asked.method,
            protocol=asked.protocol,
            path=asked.path,
            query=asked.query,
            headers=asked.headers,
            where=cgi.Target(
                owner=where.owner,
                name=where.name,
                rest=(),
                script_name=where.script_name + where.path_info,
                path_info=b"",
            ),
            origin=asked.origin,
        )
        async with in_memory(asked, self._room, self._most) as body:
            post = Post(asked.headers, asked.query, body)
            received = await self._hooks.receive(where.owner, where.name, hook, post, env)
        if received.reply is not None:
            headers = [("content-type", "text/plain; charset=utf-8")]
            await out.whole(200, headers, received.reply.encode())
        else:
            await out.json(202, {"id": received.delivery})
