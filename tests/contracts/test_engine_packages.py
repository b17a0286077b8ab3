"""Packages that builds have fetched: each once, checked each time, out of reach of runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cmdsvc.engine.packages import CACHE, CACHE_MOST
from cmdsvc.errors import DataError
from tests.contracts.engine_lab import Lab, Progress

if TYPE_CHECKING:
    from tests.kit import Server

pytestmark = pytest.mark.asyncio(loop_scope="session")


def kept(lab: Lab) -> Path:
    """The folder in which they stay."""
    if lab.name == "bubblewrap":
        return lab.settings.data_dir / "store/packages"
    import docker

    from cmdsvc.engine.docker.images import repository

    client = docker.DockerClient(base_url=lab.docker_host)
    try:
        volume = client.volumes.get(f"{repository(lab.settings.instance)}-packages")
        return Path(volume.attrs["Mountpoint"])
    finally:
        client.close()


def only(lab: Lab, package: str) -> Path:
    (found,) = kept(lab).glob(f"{package}-*.apk")
    return found


def fetched(mirror: Server, package: str) -> int:
    """How often."""
    paths = [path for path in mirror.requests if path.rpartition("/")[2].startswith(f"{package}-")]
    return sum(mirror.requests[path] for path in paths)


async def test_packages_of_several_layers_are_fetched_once(own: Lab, mirror: Server) -> None:
    jq, bash = fetched(mirror, "jq"), fetched(mirror, "bash")
    await own.engine.build(own.layer("jq"), Progress())
    both, progress = own.layer("bash", "jq"), Progress()
    await own.engine.build(both, progress)
    assert "Installing jq" in progress
    assert (fetched(mirror, "jq"), fetched(mirror, "bash")) == (jq + 1, bash + 1)
    assert (await own.run("bash -c 'jq -n 1'", recipe=both)).ok() == b"1\n"


async def test_nothing_of_it_is_in_a_layer(own: Lab) -> None:
    recipe = own.layer("jq")
    await own.engine.build(recipe, Progress())
    assert only(own, "jq").stat().st_size > 1 << 16
    result = await own.run(f"ls -A {CACHE}; ls -A /etc/apk | grep cache; :", recipe=recipe)
    assert result.ok() == b""


async def test_one_that_was_damaged_is_fetched_again(own: Lab, mirror: Server) -> None:
    await own.engine.build(own.layer("jq"), Progress())
    whole = only(own, "jq").read_bytes()
    before = fetched(mirror, "jq")
    middle = len(whole) // 2
    damaged = (whole[:middle] + bytes(64) + whole[middle + 64 :], b"garbage", b"")
    for number, content in enumerate(damaged, 1):
        only(own, "jq").write_bytes(content)
        recipe = own.layer("jq", *("bash", "whois", "hello-noarch")[:number])
        await own.engine.build(recipe, Progress())
        assert (await own.run("jq -n 1", recipe=recipe)).ok() == b"1\n"
        assert fetched(mirror, "jq") == before + number
        assert only(own, "jq").read_bytes() == whole


async def test_a_build_that_failed_leaves_none(own: Lab) -> None:
    await own.engine.build(own.layer("hello-noarch"), Progress())
    for package in ("badhash", "broken-postinst"):
        with pytest.raises(DataError, match=package):
            await own.engine.build(own.layer("jq", package), Progress())
    assert [file.name.partition("-1.0")[0] for file in kept(own).iterdir()] == ["hello-noarch"]


async def test_the_oldest_go(own: Lab) -> None:
    await own.engine.build(own.layer("hello-noarch"), Progress())
    old = kept(own) / "old-1.0-r0.01234567.apk"
    with old.open("wb") as file:
        file.truncate(CACHE_MOST)
    os.utime(old, (0, 0))
    await own.engine.build(own.layer("whois"), Progress())
    assert not old.exists()
    assert only(own, "whois").exists()
    assert only(own, "hello-noarch").exists()


async def test_they_go_with_all_the_rest(own: Lab, mirror: Server) -> None:
    await own.engine.build(own.layer("whois"), Progress())
    before = fetched(mirror, "whois")
    await own.engine.purge()
    await own.engine.build(own.layer("whois"), Progress())
    assert fetched(mirror, "whois") == before + 1
