"""The public keys that a site publishes for a name: GitHub's, GitLab's and Gitea's NAME.keys."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

from cmdsvc.model import valid_name, valid_user
from cmdsvc.ssh.blobs import blob_of, line_of
from cmdsvc.ssh.fetching import TIME_MAX, FetchError, Page, fetch
from cmdsvc.ssh.files import write_whole

log = logging.getLogger("cmdsvc.keys")

EVERYONE = "*"
GONE = frozenset({404, 410})

DEFAULT_AGE = 300.0
"""Seconds that an answer counts which does not say for how long."""
AGE = (60.0, 3600.0)
"""The least and the most seconds that one counts."""
NOBODY_AGE = 60.0
"""Seconds that "there is no such user" counts."""
RETRY = 15.0
"""Seconds from a failure until the site is asked again for that name."""
AT_ONCE = 8
"""Requests to the site."""
WAITING = 64
"""Names that are being asked for or wait to be; whoever comes then gets what is known."""
TRIED = 1000
KNOWN = 10_000
"""Names kept: those that somebody claimed, and those that somebody proved (these also on disk)."""
KEYS_MAX = 256
"""Of one name; the rest is not looked at."""
COMPLAINT = 60.0
"""Seconds between two lines in the log about a site that is down."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Times are seconds since the epoch, for they are kept over a restart."""

    keys: frozenset[bytes] = frozenset()
    fetched_at: float = 0.0
    expires_at: float = 0.0
    retry_at: float = 0.0


class Published:
    """`url` has `{user}` where the name goes; only `names` are asked for, EVERYONE among them for all.

    An answer that has expired counts for `stale` seconds more while the site cannot be had. What
    somebody has logged in with is kept in `folder`.
    """

    def __init__(
        self,
        url: str,
        names: Collection[str],
        folder: Path,
        stale: float,
        get: Callable[[str], Awaitable[Page]] = fetch,
    ) -> None:
        self._url = url
        self._names = names
        self._folder = folder
        self._stale = stale
        self._get = get
        self._known: OrderedDict[str, Answer] = OrderedDict()
        self._tried: OrderedDict[str, Answer] = OrderedDict()
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._complained = -COMPLAINT
        if url:
            self._load()

    def covers(self, name: str) -> bool:
        return (
            bool(self._url)
            and valid_user(name)
            and (name in self._names or EVERYONE in self._names)
        )

    async def keys(self, name: str) -> frozenset[bytes]:
        """The keys of `name` that count now; the site is asked where that is due."""
        if not self.covers(name):
            return frozenset()
        if _due(self._find(name)) and (task := self._ask(name)):
            await asyncio.shield(task)  # who goes away meanwhile stops nothing
        return self._usable(self._find(name))

    def holds(self, name: str, key: bytes) -> bool:
        """Whether a login that was proved by `key` still counts, as far as is known."""
        answer = self._known.get(name)
        if answer is None:  # it was pushed out by others
            return self.covers(name)
        if _due(answer):
            self._ask(name)
        return self.covers(name) and key in self._usable(answer)

    def owner(self, key: bytes) -> str | None:
        """The name that it is known to be published for."""
        for name, answer in [*self._known.items(), *self._tried.items()]:
            if key in answer.keys and self.covers(name):
                return name
        return None

    def proved(self, name: str) -> None:
        """Somebody logged in as `name` by such a key: its answer is worth keeping."""
        answer = self._tried.get(name)
        if answer is not None:
            self._put(name, answer, known=True)

    async def aclose(self) -> None:
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _find(self, name: str) -> Answer:
        return self._known.get(name) or self._tried.get(name) or Answer()

    def _usable(self, answer: Answer) -> frozenset[bytes]:
        now = time.time()
        recent = answer.fetched_at <= now <= answer.fetched_at + self._stale
        return answer.keys if recent or _fresh(answer) else frozenset()

    def _ask(self, name: str) -> asyncio.Task[None] | None:
        """Asks the site, once for all who want to know."""
        task = self._asking.get(name)
        if task is None and len(self._asking) < WAITING:
            task = self._asking[name] = asyncio.create_task(self._refresh(name))
            task.add_done_callback(lambda _: self._asking.pop(name, None))
        return task

    async def _refresh(self, name: str) -> None:
        known = name in self._known
        try:
            async with asyncio.timeout(TIME_MAX), self._slots:
                page = await self._get(self._url.replace("{user}", name))
            answer = _answer(page)
        except (FetchError, TimeoutError) as error:
            if time.monotonic() - self._complained >= COMPLAINT:
                self._complained = time.monotonic()
                why = str(error) or "too many requests at once"
                log.warning("the keys URL, asked for %s: %s", name, why)
            answer = replace(self._find(name), retry_at=time.time() + RETRY)
        self._put(name, answer, known=known and bool(answer.keys))

    def _put(self, name: str, answer: Answer, *, known: bool) -> None:
        self._tried.pop(name, None)
        if self._known.pop(name, None) and not known:
            self._path(name).unlink(missing_ok=True)
        table, most = (self._known, KNOWN) if known else (self._tried, TRIED)
        table[name] = answer
        if len(table) > most:
            oldest, _ = table.popitem(last=False)
            if known:
                self._path(oldest).unlink(missing_ok=True)
        if known:
            self._save(name, answer)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _save(self, name: str, answer: Answer) -> None:
        kept = {
            "url": self._url,
            "fetched_at": answer.fetched_at,
            "expires_at": answer.expires_at,
            "keys": sorted(map(line_of, answer.keys)),
        }
        try:
            write_whole(self._path(name), json.dumps(kept, indent=1).encode(), 0o600)
        except OSError as error:
            log.warning("the published keys of %s cannot be kept: %s", name, error)

    def _load(self) -> None:
        """What was kept, unless it is of another site; a broken file is as good as none."""
        for path in sorted(self._folder.glob("*.json"))[:KNOWN]:
            try:
                kept = json.loads(path.read_bytes())
                if kept["url"] != self._url or not valid_name(path.stem):
                    continue
                self._known[path.stem] = Answer(
                    frozenset(blob_of(*line.split()) for line in kept["keys"]),
                    float(kept["fetched_at"]),
                    float(kept["expires_at"]),
                )
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                log.warning("%s cannot be used: %s", path, error)


def _fresh(answer: Answer) -> bool:
    return answer.fetched_at <= time.time() < answer.expires_at


def _due(answer: Answer) -> bool:
    return not _fresh(answer) and time.time() >= answer.retry_at


def _answer(page: Page) -> Answer:
    """What a page says. FetchError where that is nothing."""
    now = time.time()
    if page.status in GONE:
        return Answer(fetched_at=now, expires_at=now + NOBODY_AGE)
    if page.status != 200:
        raise FetchError(f"it answers {page.status}")
    keys: set[bytes] = set()
    lines = page.body.decode(errors="replace").split("\n")
    for line in lines:
        words = line.split(None, 2)
        if len(words) > 1 and len(keys) < KEYS_MAX:
            with contextlib.suppress(ValueError):
                keys.add(blob_of(words[0], words[1]))
    if not keys and page.body.strip():
        raise FetchError("it answers with something else than public keys")
    age = DEFAULT_AGE if page.max_age is None else min(max(page.max_age, AGE[0]), AGE[1])
    return Answer(frozenset(keys), now, now + age)
