"""What a site publishes: fetched within bounds, kept for a while, and when the site is down."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest

from cmdsvc.ssh import fetching, published
from cmdsvc.ssh.blobs import line_of
from cmdsvc.ssh.fetching import FetchError, Page, fetch, secure
from cmdsvc.ssh.published import Published
from tests.fakes import soon, turns
from tests.keysite import KeySite

KEY, OTHER = (
    asyncssh.generate_private_key("ssh-ed25519").convert_to_public().public_data for _ in "ab"
)
FAULTS = [
    "500",
    "403",
    "429",
    "204",
    "garbage",
    "huge",
    "endless header",
    "no http",
    "cut off",
    "never",
    "slow",
    "redirects",
    "elsewhere",
]


@pytest.fixture
def site() -> Iterator[KeySite]:
    with KeySite({"ann": f"{line_of(KEY)}\n", "nokeys": ""}) as site:
        yield site


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fetching, "TIME_MAX", 0.5)


class Clock:
    """What `published` takes for the module time."""

    def __init__(self) -> None:
        self.passed = 0.0

    def time(self) -> float:
        return 1e9 + self.passed

    def monotonic(self) -> float:
        return self.passed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(published, "time", clock)
    return clock


def of(site: KeySite, folder: Path, *names: str, stale: float = 1000.0) -> Published:
    return Published(site.url, names or ("*",), folder, stale)


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestFetching:
    @pytest.mark.parametrize(
        ("url", "good"),
        [
            ("https://github.com/ann.keys", True),
            ("https://git.example.org:8443/ann.keys", True),
            ("http://127.0.0.1:80/x", True),
            ("http://[::1]/x", True),
            ("http://localhost/x", True),
            ("http://github.com/ann.keys", False),
            ("http://127.0.0.1.example.org/x", False),
            ("http://127.0.0.1@example.org/x", False),
            ("http://localhost.example.org/x", False),
            ("ftp://github.com/ann.keys", False),
            ("file:///etc/passwd", False),
            ("https:///x", False),
            ("https://a:b/x", False),
            ("https://a/\r\nX: y", False),
            ("https://[::1/x", False),
            ("", False),
        ],
    )
    def test_what_cannot_be_forged(self, url: str, good: bool):
        assert secure(url) is good

    async def test_a_page(self, site: KeySite):
        site.cache_control = "public, max-age=77"
        page = await fetch(site.url.replace("{user}", "ann"))
        assert page == Page(200, f"{line_of(KEY)}\n".encode(), 77)
        assert (await fetch(site.url)).status == 404

    async def test_a_redirect(self, site: KeySite):
        site.fault = "moved"
        assert (await fetch(site.url.replace("{user}", "ann"))).status == 200
        assert site.requests == ["/ann.keys", "/moved/ann.keys"]

    @pytest.mark.parametrize("fault", [f for f in FAULTS if not f.isdecimal() and f != "garbage"])
    async def test_faults(self, fault: str, site: KeySite):
        site.fault = fault
        with pytest.raises(FetchError) as caught:
            await soon(fetch(site.url.replace("{user}", "ann")))
        assert str(caught.value)
        assert len(site.requests) <= 4

    async def test_nobody_there(self, site: KeySite):
        site.stop()
        with pytest.raises(FetchError):
            await fetch(site.url)

    async def test_a_certificate_that_is_none(self, site: KeySite):
        with pytest.raises(FetchError):
            await soon(fetch(site.url.replace("http:", "https:")))


class TestPublished:
    async def test_only_for_the_names_it_is_for(self, site: KeySite, tmp_path: Path):
        site.pages |= dict.fromkeys(("bob", "cmd", "public", "cmd_x", "Ann"), line_of(KEY))
        some = of(site, tmp_path, "ann")
        assert await some.keys("ann") == {KEY}
        assert await some.keys("bob") == frozenset()
        every = of(site, tmp_path)
        for name in ("cmd", "public", "cmd_x", "Ann", "../ann", "a/b", "a?b", "", "a\nb"):
            assert await every.keys(name) == frozenset()
        assert await every.keys("bob") == {KEY}
        assert await Published("", ("*",), tmp_path, 1).keys("ann") == frozenset()
        assert site.requests == ["/ann.keys", "/bob.keys"]

    async def test_keeps_what_looks_like_keys(
        self, site: KeySite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        site.pages["ann"] = "\n".join(
            [
                "# ann's",
                "ssh-ed25519 AAAA",
                "ssh-ed25519 " + line_of(KEY).split()[1][:-8],
                "ssh-rsa " + line_of(KEY).split()[1],
                f'command="x" {line_of(OTHER)}',
                f"{line_of(KEY)} ann@home\r",
                "\0\udcff".encode(errors="replace").decode(),
            ]
        )
        assert await of(site, tmp_path).keys("ann") == {KEY}
        monkeypatch.setattr(published, "KEYS_MAX", 1)
        site.pages["bob"] = f"{line_of(KEY)}\n{line_of(OTHER)}\n"
        assert await of(site, tmp_path).keys("bob") == {KEY}

    @pytest.mark.parametrize(
        ("said", "seconds"),
        [
            (None, 300),
            ("no-store", 300),
            ("max-age=0, private, must-revalidate", 60),
            ("max-age=100", 100),
            ("max-age=999999999", 3600),
            ("max-age=-5", 300),
        ],
    )
    async def test_how_long_it_counts(
        self, said: str | None, seconds: int, site: KeySite, tmp_path: Path, clock: Clock
    ):
        site.cache_control = said
        found = of(site, tmp_path)
        assert await found.keys("ann") == {KEY}
        site.pages["ann"] = line_of(OTHER)
        clock.passed += seconds - 1
        assert await found.keys("ann") == {KEY}
        clock.passed += 2
        assert await found.keys("ann") == {OTHER}
        assert len(site.requests) == 2

    async def test_nobody_and_no_keys_are_remembered_too(
        self, site: KeySite, tmp_path: Path, clock: Clock
    ):
        found = of(site, tmp_path)
        for _ in range(3):
            assert await found.keys("zoe") == frozenset()
            assert await found.keys("nokeys") == frozenset()
        assert site.requests == ["/zoe.keys", "/nokeys.keys"]
        site.pages["zoe"] = line_of(KEY)
        clock.passed += published.NOBODY_AGE + 1
        assert await found.keys("zoe") == {KEY}

    @pytest.mark.parametrize("fault", [*FAULTS, "down"])
    async def test_a_site_at_fault(
        self,
        fault: str,
        site: KeySite,
        tmp_path: Path,
        clock: Clock,
        caplog: pytest.LogCaptureFixture,
    ):
        found = of(site, tmp_path)
        assert await found.keys("ann") == {KEY}
        site.fault = fault
        if fault == "down":
            site.stop()
        clock.passed += 301
        with caplog.at_level(logging.WARNING):
            assert await soon(found.keys("ann")) == {KEY}
            assert await soon(found.keys("zoe")) == frozenset()
            count = len(site.requests)
            assert await soon(found.keys("ann")) == {KEY}  # not asked again so soon
            assert await soon(found.keys("zoe")) == frozenset()
        assert len(site.requests) == count
        assert [m.split(":")[0] for m in caplog.messages] == ["the keys URL, asked for ann"]
        clock.passed += 1000
        assert await soon(found.keys("ann")) == frozenset()  # for too long
        site.fault = ""
        if fault == "down":
            site.start()
        clock.passed += published.RETRY
        assert await found.keys("ann") == {KEY}

    async def test_one_that_is_gone_there_is_gone_here(
        self, site: KeySite, tmp_path: Path, clock: Clock
    ):
        found = of(site, tmp_path)
        await found.keys("ann")
        found.proved("ann")
        assert listed(tmp_path) == ["ann.json"]
        assert found.holds("ann", KEY)
        del site.pages["ann"]
        clock.passed += 301
        assert await found.keys("ann") == frozenset()
        assert listed(tmp_path) == []

    async def test_a_restart_while_the_site_is_down(
        self, site: KeySite, tmp_path: Path, clock: Clock
    ):
        folder = tmp_path / "published"
        found = of(site, folder)
        await found.keys("ann")
        await found.keys("nokeys")
        found.proved("ann")
        site.stop()
        for seconds, keys in ((0, {KEY}), (301, {KEY}), (700, frozenset())):
            clock.passed += seconds
            assert await of(site, folder).keys("ann") == keys
        assert (folder / "ann.json").stat().st_mode & 0o777 == 0o600

    async def test_what_was_kept_of_another_site_or_is_broken(
        self, site: KeySite, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ):
        found = of(site, tmp_path)
        await found.keys("ann")
        found.proved("ann")
        kept = (tmp_path / "ann.json").read_text()
        for name, text in {
            "bob": kept[:30],
            "cy": "[]",
            "dan": json.dumps({**json.loads(kept), "keys": ["x"]}),
            "eve": json.dumps({**json.loads(kept), "keys": 7}),
            "Fay": kept,
            "gus": json.dumps({**json.loads(kept), "fetched_at": "x"}),
        }.items():
            (tmp_path / f"{name}.json").write_text(text)
        site.stop()
        with caplog.at_level(logging.WARNING):
            again = of(site, tmp_path)
        assert len(caplog.messages) == 5
        assert await again.keys("ann") == {KEY}
        for name in ("bob", "cy", "dan", "eve", "gus"):
            assert await again.keys(name) == frozenset()
        elsewhere = Published(f"{site.url}?x", ("*",), tmp_path, 1000)
        assert await elsewhere.keys("ann") == frozenset()

    async def test_a_clock_that_was_set_back(self, site: KeySite, tmp_path: Path, clock: Clock):
        found = of(site, tmp_path)
        await found.keys("ann")
        site.stop()
        clock.passed -= 5000
        assert await found.keys("ann") == frozenset()

    async def test_many_who_ask_at_once_are_one_request(self, tmp_path: Path):
        asked: list[str] = []
        go = asyncio.Event()

        async def get(url: str) -> Page:
            asked.append(url)
            await go.wait()
            return Page(200, line_of(KEY).encode())

        found = Published("http://127.0.0.1/{user}", ("*",), tmp_path, 1, get)
        askers = [asyncio.create_task(found.keys("ann")) for _ in range(20)]
        await turns()
        askers[0].cancel()  # goes away; the others still get their answer
        await turns()
        go.set()
        assert await soon(asyncio.gather(*askers[1:])) == [{KEY}] * 19
        assert len(asked) == 1

    async def test_requests_at_once_are_bounded_and_names_too(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        asked: list[str] = []

        async def never(url: str) -> Page:
            asked.append(url)
            await asyncio.Event().wait()
            raise AssertionError

        monkeypatch.setattr(published, "TIME_MAX", 0.2)
        found = Published("http://127.0.0.1/{user}", ("*",), tmp_path, 1, never)
        askers = [asyncio.create_task(found.keys(f"u{n}")) for n in range(200)]
        await turns()
        assert len(asked) == published.AT_ONCE
        assert sum(task.done() for task in askers) == 200 - published.WAITING
        assert await soon(asyncio.gather(*askers)) == [frozenset()] * 200
        await found.aclose()

    async def test_closing_ends_what_is_going_on(self, tmp_path: Path):
        async def never(url: str) -> Page:
            await asyncio.Event().wait()
            raise AssertionError

        found = Published("http://127.0.0.1/{user}", ("*",), tmp_path, 1, never)
        asker = asyncio.create_task(found.keys("ann"))
        await turns()
        await soon(found.aclose())
        with pytest.raises(asyncio.CancelledError):
            await asker

    async def test_names_kept_are_bounded_and_strangers_push_out_nobody(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        asked: list[str] = []

        async def get(url: str) -> Page:
            asked.append(url.rpartition("/")[2])
            return Page(200, line_of(KEY).encode())

        monkeypatch.setattr(published, "TRIED", 3)
        monkeypatch.setattr(published, "KNOWN", 2)
        found = Published("http://127.0.0.1/{user}", ("*",), tmp_path, 1, get)
        for name in ("ann", "bob"):
            await found.keys(name)
            found.proved(name)
        for number in range(10):
            await found.keys(f"u{number}")
        asked.clear()
        for name in ("ann", "bob", "u9", "u8", "u7"):
            await found.keys(name)
        assert asked == []
        await found.keys("u0")
        assert asked == ["u0"]
        found.proved("u0")
        assert listed(tmp_path) == ["bob.json", "u0.json"]

    async def test_an_open_connection_counts_while_the_key_does(
        self, site: KeySite, tmp_path: Path, clock: Clock
    ):
        found = of(site, tmp_path, "ann")
        await found.keys("ann")
        found.proved("ann")
        site.pages["ann"] = line_of(OTHER)
        clock.passed += 301
        assert found.holds("ann", KEY)  # and asks, in the background
        assert await found.keys("ann") == {OTHER}
        assert not found.holds("ann", KEY)
        assert found.holds("ann", OTHER)
        assert not found.holds("bob", OTHER)
        assert len(site.requests) == 2

    async def test_whose_a_key_is(self, site: KeySite, tmp_path: Path):
        found = of(site, tmp_path)
        await found.keys("ann")
        assert found.owner(KEY) == "ann"
        assert found.owner(OTHER) is None

    async def test_a_folder_that_cannot_be_written(
        self, site: KeySite, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ):
        (tmp_path / "file").write_text("")
        found = of(site, tmp_path / "file")
        await found.keys("ann")
        found.proved("ann")
        assert "cannot be kept" in caplog.text
        assert await found.keys("ann") == {KEY}


async def test_time_is_real_seconds_of_the_epoch(site: KeySite, tmp_path: Path):
    found = of(site, tmp_path)
    await found.keys("ann")
    found.proved("ann")
    kept = json.loads((tmp_path / "ann.json").read_text())
    assert abs(kept["fetched_at"] - time.time()) < 60
