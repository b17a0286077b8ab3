"""Package layers: made once, shared, or refused in the package manager's words."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from cmdsvc.engine import Sources
from cmdsvc.errors import BusyError, CmdError, DataError
from cmdsvc.recipe import Recipe
from tests.contracts import engine_host as host
from tests.contracts.engine_lab import Lab, Progress, kit_sources

if TYPE_CHECKING:
    from tests.kit import Kit, Server

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(loop_scope="session")
async def unharmed(lab: Lab) -> AsyncIterator[None]:
    """Whatever the case does to the engine's builds: nothing half-made is left behind."""
    files, traces = host.tree(lab.settings.data_dir), lab.traces()
    yield
    await host.gone(lambda: lab.left_by_a_build(traces))
    # A socket is there while a container that is to wait is made.
    await host.gone(lambda: host.tree(lab.settings.data_dir) - files)
    assert (await lab.run("echo alive")).ok() == b"alive\n"


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """A port of the loopback that is nobody's, and stays so."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


async def test_packages_are_there(lab: Lab) -> None:
    recipe, progress = lab.layer("bash", "jq"), Progress()
    await lab.engine.build(recipe, progress)
    assert await lab.engine.has(recipe)
    script = b'#!/bin/bash\nset -o pipefail; echo "${BASH_VERSION:0:1}"; jq -r .ip "$@"\n'
    result = await lab.run(script, stdin=b'{"ip": "203.0.113.7"}', recipe=recipe)
    assert result.lines[1] == "203.0.113.7", result
    result = await lab.run(None, argv=(b"jq", b"-c", b".a"), stdin=b'{"a":[1]}', recipe=recipe)
    assert result.ok() == b"[1]\n"


async def test_progress_is_the_package_managers_own(lab: Lab) -> None:
    progress = Progress()
    await lab.engine.build(lab.layer("whois"), progress)
    assert "Installing whois" in progress


async def test_a_layer_is_here_only_once_it_is_built(lab: Lab) -> None:
    recipe = lab.layer("hello-noarch")
    assert not await lab.engine.has(recipe)
    await lab.engine.build(recipe, Progress())
    assert await lab.engine.has(recipe)
    assert not await lab.engine.has(lab.layer("hello-noarch", "uuidgen"))
    result = await lab.run(None, argv=(b"hello-noarch",), recipe=recipe)
    assert result.ok() == b"hello\n"
    assert (await lab.run(None, argv=(b"hello-noarch",))).status == 127, "it is in the base too"


async def test_a_layer_is_built_once(lab: Lab, mirror: Server) -> None:
    recipe = lab.layer("uuidgen")
    await lab.engine.build(recipe, Progress())
    asked = mirror.requests.total()
    progress = Progress()
    await lab.engine.build(recipe, progress)
    assert mirror.requests.total() == asked


async def test_two_builds_of_one_recipe_at_once(lab: Lab, mirror: Server) -> None:
    recipe = lab.layer("libqrencode-tools")
    before = {path: n for path, n in mirror.requests.items() if "qrencode" in path}
    await asyncio.gather(*(lab.engine.build(recipe, Progress()) for _ in range(3)))
    after = {path: n for path, n in mirror.requests.items() if "qrencode" in path}
    assert sum(after.values()) - sum(before.values()) == 1
    result = await lab.run(None, argv=(b"qrencode", b"-t", b"UTF8", b"x"), recipe=recipe)
    assert len(result.ok()) > 100


async def test_one_of_two_builders_gives_up(lab: Lab) -> None:
    """It takes only itself away."""
    recipe = lab.layer("hello-noarch", "jq")
    first = asyncio.create_task(lab.engine.build(recipe, Progress()))
    second = asyncio.create_task(lab.engine.build(recipe, Progress()))
    await asyncio.sleep(0)
    first.cancel()
    await second
    with contextlib.suppress(asyncio.CancelledError):
        await first
    assert await lab.engine.has(recipe)


async def test_two_recipes_at_once(lab: Lab) -> None:
    recipes = [lab.layer("jq"), lab.layer("bash")]
    await asyncio.gather(*(lab.engine.build(recipe, Progress()) for recipe in recipes))
    programs = [(b"jq", b"-n", b"1"), (b"bash", b"-c", b"echo 1")]
    for recipe, argv in zip(recipes, programs, strict=True):
        assert (await lab.run(None, argv=argv, recipe=recipe)).ok() == b"1\n"


async def test_a_pinned_version(lab: Lab) -> None:
    recipe = lab.layer("hello-noarch=1.0-r0")
    await lab.engine.build(recipe, Progress())
    assert (await lab.run(None, argv=(b"hello-noarch",), recipe=recipe)).status == 0
    with pytest.raises(DataError, match="hello-noarch"):
        await lab.engine.build(lab.layer("hello-noarch=9.9-r0"), Progress())


async def test_other_owners_and_modes(lab: Lab) -> None:
    """What a package sets, a run sees."""
    if why := await lab.shortcoming("one user"):
        pytest.skip(why)
    recipe = lab.layer("owned-files")
    await lab.engine.build(recipe, Progress())
    script = "stat -c '%a %U %n' /var/lib/owned /usr/bin/owned-suid"
    result = await lab.run(script, recipe=recipe)
    assert result.stderr == b""
    assert [line.split()[::2] for line in result.lines] == [
        ["2770", "/var/lib/owned"],
        ["4755", "/usr/bin/owned-suid"],
    ]


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("no-such-package-at-all", "no-such-package-at-all"),
        ("broken-postinst", "broken-postinst"),
        ("broken-preinst", "broken-preinst"),
        ("needs-missing", "no-such-package"),
        ("conflicts-busybox", "conflicts"),
        ("badhash", "badhash"),
    ],
)
async def test_a_package_that_cannot_be_had(
    lab: Lab, unharmed: None, package: str, words: str
) -> None:
    recipe = lab.layer("hello-noarch", package)
    with pytest.raises(DataError) as caught:
        await lab.engine.build(recipe, Progress())
    assert words in str(caught.value)
    assert not await lab.engine.has(recipe)
    with pytest.raises(LookupError):
        await lab.engine.start(lab.invocation("true", recipe=recipe))


@pytest.mark.parametrize(
    "name", ["; touch /tmp/x", "$(exit 1)", "--allow-untrusted", "-h", "a\nb", "../../etc", "é"]
)
async def test_a_name_that_is_none(lab: Lab, unharmed: None, name: str) -> None:
    """A script cannot have it; should one reach an engine all the same, it is a name, no more."""
    with pytest.raises(CmdError):
        await lab.engine.build(lab.layer(name), Progress())
    assert not await lab.engine.has(lab.layer(name))


async def test_a_package_that_is_listed_but_not_there(lab: Lab, unharmed: None) -> None:
    with pytest.raises(BusyError):
        await lab.engine.build(lab.layer("not-there"), Progress())


async def test_a_repository_signed_by_a_stranger(
    lab: Lab, kit: Kit, mirror: Server, place: Path
) -> None:
    sources = kit_sources(kit, mirror.url, "main", "unknown")
    async with lab.another(place, sources=sources) as own:
        with pytest.raises(DataError) as caught:
            await own.engine.build(own.layer("stranger"), Progress())
        assert not await own.engine.has(own.layer("stranger"))
    assert "UNTRUSTED" in str(caught.value) or "stranger" in str(caught.value)
    assert own.traces() == {}


async def test_keys_are_those_of_the_operator(
    lab: Lab, kit: Kit, mirror: Server, place: Path
) -> None:
    """Without the key that it is signed by, a repository is refused."""
    sources = kit_sources(kit, mirror.url, "main", "community", keys=False)
    async with lab.another(place, sources=sources) as own:
        with pytest.raises(DataError):
            await own.engine.build(own.layer("jq"), Progress())


async def test_a_repository_that_is_down(lab: Lab, kit: Kit, place: Path) -> None:
    with closed_port() as port:
        sources = kit_sources(kit, f"http://127.0.0.1:{port}", "main", "community")
        async with lab.another(place, sources=sources) as own:
            with pytest.raises(BusyError) as caught:
                await own.engine.build(own.layer("jq"), Progress())
            assert not await own.engine.has(own.layer("jq"))
    assert own.traces() == {}
    assert "cannot be reached" in str(caught.value)
    assert "no such package" not in str(caught.value)


@pytest.mark.parametrize("fault", ["_500", "_trunc"])
async def test_a_repository_that_fails(
    lab: Lab, kit: Kit, mirror: Server, place: Path, fault: str
) -> None:
    sources = kit_sources(kit, f"{mirror.url}/{fault}", "main", "community")
    async with lab.another(place, sources=sources) as own:
        with pytest.raises(BusyError) as caught:
            await own.engine.build(own.layer("jq"), Progress())
        assert not await own.engine.has(own.layer("jq"))
    assert "no such package" not in str(caught.value)


async def test_a_repository_that_hangs(lab: Lab, kit: Kit, mirror: Server, place: Path) -> None:
    sources = kit_sources(kit, f"{mirror.url}/_hang", "main")
    async with lab.another(place, sources=sources, build_timeout=4) as own:
        await own.engine.pull("alpine", "", Progress())
        before = time.monotonic()
        with pytest.raises(BusyError):
            await own.engine.build(own.layer("jq"), Progress())
        assert time.monotonic() - before < 4 + 10
        assert not await own.engine.has(own.layer("jq"))
    assert own.traces() == {}


async def test_a_package_that_hangs(lab: Lab, place: Path) -> None:
    async with lab.another(place, build_timeout=6) as own:
        files, traces = host.tree(place), own.traces()
        before = time.monotonic()
        with pytest.raises(BusyError):
            await own.engine.build(own.layer("slow-postinst"), Progress())
        assert time.monotonic() - before < 6 + 10
        await host.gone(lambda: own.left_by_a_build(traces))
        assert not [n for n in host.tree(place) - files if "tmp" in n.lower()]
        assert not await own.engine.has(own.layer("slow-postinst"))
    assert own.traces() == {}


async def test_a_cancelled_build_leaves_nothing(lab: Lab, unharmed: None) -> None:
    progress, recipe = Progress(), lab.layer("slow-postinst")
    building = asyncio.create_task(lab.engine.build(recipe, progress))
    await progress.saw("slow-postinst")
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    assert not await lab.engine.has(recipe)


async def test_a_build_can_be_tried_again(lab: Lab, kit: Kit, mirror: Server, place: Path) -> None:
    """The same recipe, once its source is back: a failure is not remembered."""
    instance = f"test-{secrets.token_hex(6)}"
    with closed_port() as port:
        down = kit_sources(kit, f"http://127.0.0.1:{port}", "main", "community")
        async with lab.another(place, sources=down, instance=instance) as own:
            with pytest.raises(BusyError):
                await own.engine.build(own.layer("jq"), Progress())
    async with lab.another(place, instance=instance) as own:
        await own.engine.build(own.layer("jq"), Progress())
        recipe = own.layer("jq")
        assert (await own.run(None, argv=(b"jq", b"-n", b"1"), recipe=recipe)).ok() == b"1\n"


async def test_a_base_that_is_another_than_its_tag_says(lab: Lab, unharmed: None) -> None:
    with pytest.raises(DataError) as caught:
        await lab.engine.build(lab.layer(tag="3.1"), Progress())
    assert "3.1" in str(caught.value)


async def test_a_base_by_its_right_tag(lab: Lab) -> None:
    recipe = lab.layer(tag="3.23")
    await lab.engine.build(recipe, Progress())
    assert (await lab.run("cat /etc/alpine-release", recipe=recipe)).ok().startswith(b"3.23")


async def test_a_base_is_fetched_again(lab: Lab, place: Path) -> None:
    async with lab.another(place) as own:
        for _ in range(2):
            await own.engine.pull("alpine", "", Progress())
        await own.engine.build(own.recipe, Progress())
        await own.engine.pull("alpine", "", Progress())
        assert await own.engine.has(own.recipe)
        assert (await own.run("echo here")).ok() == b"here\n"
        with pytest.raises(DataError):
            await own.engine.pull("alpine", "3.1", Progress())
        with pytest.raises(CmdError):
            await own.engine.pull("no-such-base", "", Progress())
    assert own.traces() == {}


async def test_a_base_that_is_not_there(lab: Lab, place: Path) -> None:
    missing = str(place.parent / "missing.tar")
    sources = Sources(bases={"alpine": missing})
    async with lab.another(place, sources=sources) as own:
        with pytest.raises(CmdError):
            await own.engine.build(Recipe("alpine", "", (), missing), Progress())
    assert own.traces() == {}


async def test_a_base_that_is_no_archive(lab: Lab, place: Path) -> None:
    rubbish = place.parent / "rubbish.tar"
    rubbish.write_bytes(b"not an archive" * 1000)
    sources = Sources(bases={"alpine": str(rubbish)})
    async with lab.another(place, sources=sources) as own:
        with pytest.raises(CmdError):
            await own.engine.build(Recipe("alpine", "", (), str(rubbish)), Progress())
    assert own.traces() == {}
