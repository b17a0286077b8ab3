"""What is the Docker engine's own: images, containers, networks, and where the engine is."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import docker
import pytest
import pytest_asyncio

from cmdsvc.engine import Sources
from cmdsvc.engine.docker import DockerEngine, bridge_name
from cmdsvc.engine.docker.images import reference, repository
from cmdsvc.errors import BusyError, DataError, EngineError
from cmdsvc.model import Network, Outcome, Terminal
from cmdsvc.recipe import Recipe
from tests.engine import dockerlab
from tests.engine.dockerlab import MB, PATIENCE, Lab, end, line

if TYPE_CHECKING:
    from tests.kit import Kit, Server

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(
    host: str, kit: Kit, mirror: Server, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Lab]:
    async with dockerlab.lab(host, tmp_path_factory.mktemp("docker"), kit, mirror) as made:
        yield made


# ---- layers


async def test_a_layer_is_an_image_of_the_instances(lab: Lab) -> None:
    recipe = lab.layer("hello-noarch")
    await lab.engine.build(recipe, lambda _: None)
    image = lab.client.images.get(f"{repository(lab.settings.instance)}:{recipe.digest[:24]}")
    assert image.labels["cmdsvc.digest"] == recipe.digest
    assert image.labels["cmdsvc.instance"] == lab.settings.instance


async def test_a_layer_that_was_removed_behind_our_back(lab: Lab) -> None:
    recipe = lab.layer("uuidgen")
    await lab.engine.build(recipe, lambda _: None)
    lab.client.images.remove(f"{repository(lab.settings.instance)}:{recipe.digest[:24]}")
    with pytest.raises(LookupError):
        await lab.start("true", recipe=recipe)
    assert not await lab.engine.has(recipe)
    await lab.engine.build(recipe, lambda _: None)
    assert await lab.engine.has(recipe)


async def test_a_build_leaves_no_container(lab: Lab) -> None:
    with pytest.raises(DataError):
        await lab.engine.build(lab.layer("broken-postinst"), lambda _: None)
    await gone(lab)


async def test_progress_is_printable_lines(lab: Lab) -> None:
    lines: list[str] = []
    await lab.engine.build(lab.layer("hello-noarch", "uuidgen"), lines.append)
    assert any("Installing" in text for text in lines)
    assert all(text.isprintable() and text for text in lines)


@pytest.mark.parametrize(
    ("source", "tag", "image"),
    [
        ("alpine", "", "alpine:latest"),
        ("alpine", "3.22", "alpine:3.22"),
        ("host:5000/a/debian", "12", "host:5000/a/debian:12"),
        ("debian:12-slim", "", "debian:12-slim"),
        ("debian:12-slim", "12-slim", "debian:12-slim"),
        ("a/b@sha256:" + "0" * 64, "", "a/b@sha256:" + "0" * 64),
    ],
)
async def test_which_image_a_base_is(source: str, tag: str, image: str) -> None:
    assert reference("base", tag, source) == image


@pytest.mark.parametrize(
    ("source", "tag"),
    [
        ("debian:12", "11"),
        ("a@sha256:00", "3"),
        ("alpine", "a/b"),
        ("alpine", "x@sha256:00"),
        ("alpine", "3\n"),
        ("alpine", "-x"),
    ],
)
async def test_a_tag_that_the_base_is_not(source: str, tag: str) -> None:
    with pytest.raises(DataError):
        reference("base", tag, source)


async def test_an_image_whose_registry_is_down(lab: Lab, host: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        source = f"127.0.0.1:{taken.getsockname()[1]}/alpine"
        settings = dataclasses.replace(
            lab.settings,
            data_dir=tmp_path,
            instance="test-down",
            sources=Sources({"alpine": source}),
        )
        engine = DockerEngine(settings, host)
        try:
            await engine.open()
            with pytest.raises(BusyError, match="cannot be fetched"):
                await engine.pull("alpine", "3.22", lambda _: None)
            with pytest.raises(BusyError):
                await engine.build(Recipe("alpine", "", (), source), lambda _: None)
            with pytest.raises(DataError, match="no base"):
                await engine.pull("plan9", "", lambda _: None)
        finally:
            await engine.aclose()


async def test_an_image_that_is_none(lab: Lab, host: str, tmp_path: Path) -> None:
    """The registry is there and does not have it."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        known = head.startswith(b"GET /v2/ ")
        body = (
            b"{}"
            if known
            else b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}'
        )
        status = b"200 OK" if known else b"404 Not Found"
        writer.write(
            b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
            b"Connection: close\r\n\r\n%s" % (status, len(body), body)
        )
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    source = f"127.0.0.1:{server.sockets[0].getsockname()[1]}/alpine"
    engine = DockerEngine(
        dataclasses.replace(lab.settings, data_dir=tmp_path, instance="test-none"), host
    )
    try:
        await engine.open()
        with pytest.raises(DataError, match="cannot be had"):
            await engine.build(Recipe("alpine", "9", (), source), lambda _: None)
    finally:
        server.close()
        await engine.aclose()


# ---- runs


async def test_the_container_of_a_run(lab: Lab) -> None:
    job = await lab.start("echo ready; sleep 60", network=Network.INTERNET)
    try:
        await line(job)
        (container,) = [lab.client.containers.get(found) for found in lab.containers()]
        made = container.attrs["HostConfig"]
        assert container.attrs["Config"]["User"] == "65534:65534"
        assert made["ReadonlyRootfs"]
        assert made["CapDrop"] == ["ALL"]
        assert made["SecurityOpt"][0] == "no-new-privileges"
        assert (made["Memory"], made["MemorySwap"]) == (64 * MB, 64 * MB)
        assert made["NanoCpus"] == 10**9
        assert made["LogConfig"]["Type"] == "none"
        assert not made["Privileged"]
        assert not made["Binds"]
        assert "cmdsvc.run" in container.labels
    finally:
        await job.aclose()
    await gone(lab)


async def test_the_network_of_runs(lab: Lab) -> None:
    assert (await lab.run("echo x", network=Network.INTERNET))[1] == Outcome(0)
    name = f"{repository(lab.settings.instance)}-net"
    options = lab.client.networks.get(name).attrs["Options"]
    assert options["com.docker.network.bridge.enable_icc"] == "false"
    bridge = options["com.docker.network.bridge.name"]
    assert bridge == bridge_name(lab.settings.instance)
    assert len(bridge) <= 15
    await gone(lab)
    lab.client.networks.get(name).remove()
    assert (await lab.run("echo x", network=Network.INTERNET))[1] == Outcome(0)


@pytest.mark.parametrize("how", ["kill", "remove"])
async def test_a_run_that_somebody_ends_through_the_engine(lab: Lab, how: str) -> None:
    job = await lab.start("echo ready; sleep 60")
    try:
        async with asyncio.timeout(PATIENCE):
            output = job.output()
            assert await anext(output) == (1, b"ready\n")
            (container,) = [lab.client.containers.get(found) for found in lab.containers()]
            await asyncio.to_thread(
                container.kill if how == "kill" else lambda: container.remove(force=True)
            )
            assert [piece async for piece in output] == []
            with pytest.raises(EngineError, match="ended the run"):
                await job.wait()
    finally:
        await job.aclose()
    await gone(lab)


@pytest.mark.parametrize("name", ["ABRT", "SEGV", "FPE", "ILL"])
async def test_signals_that_the_init_does_not_pass_on(lab: Lab, name: str) -> None:
    script = f"trap 'echo trapped; exit 7' {name}; echo ready; while :; do sleep 60 & wait; done"
    job = await lab.start(script)
    try:
        async with asyncio.timeout(PATIENCE):
            output = job.output()
            assert await anext(output) == (1, b"ready\n")
            await job.signal(name)
            assert b"".join([data async for _, data in output]) == b"trapped\n"
            assert await job.wait() == Outcome(7)
    finally:
        await job.aclose()


async def test_the_keys_that_detach_are_the_runs(lab: Lab) -> None:
    script = "stty raw -echo; printf .; head -c 4 | od -An -tx1; echo end"
    job = await lab.start(script, terminal=Terminal("xterm", 80, 24))
    try:
        async with asyncio.timeout(PATIENCE):
            output = job.output()
            assert await anext(output) == (1, b".")
            await job.send(b"\x10\x11\x10\x11")
            told = b"".join([data async for _, data in output])
            assert told.split() == [b"10", b"11", b"10", b"11", b"end"]
    finally:
        await job.aclose()


async def test_a_script_that_is_longer_than_usual(lab: Lab) -> None:
    body = b"#!/bin/sh\nwc -c <$0\nexit\n" + b"#" * (5 * MB)
    out, outcome = await lab.run(body)
    assert (int(out), outcome) == (len(body), Outcome(0))


async def test_what_another_server_of_the_instance_left(lab: Lab, host: str) -> None:
    image = f"{repository(lab.settings.instance)}:{lab.recipe.digest[:24]}"
    made = {"image": image, "command": ["sleep", "60"], "detach": True}
    mine = lab.client.containers.run(**made, labels={"cmdsvc.instance": lab.settings.instance})
    other = lab.client.containers.run(**made, labels={"cmdsvc.instance": "another"})
    engine = DockerEngine(lab.settings, host)
    try:
        await engine.open()
        with pytest.raises(docker.errors.NotFound):
            mine.reload()
        other.reload()
        assert other.status == "running"
    finally:
        other.remove(force=True)
        await engine.aclose()


async def test_purged_it_is_as_new(host: str, kit: Kit, mirror: Server, tmp_path: Path) -> None:
    async with dockerlab.lab(host, tmp_path, kit, mirror) as own:
        await own.run("true", network=Network.INTERNET)
        await own.engine.aclose()
        again = DockerEngine(own.settings, host)
        await again.open()
        try:
            await again.purge()
            assert not await again.has(own.recipe)
            names = [tag for image in own.client.images.list() for tag in image.tags]
            assert not [name for name in names if own.settings.instance in name]
            assert not own.client.networks.list(names=[f"{repository(own.settings.instance)}-net"])
        finally:
            await again.aclose()


# ---- where the engine is


async def test_a_runtime_that_the_engine_does_not_know(lab: Lab, host: str) -> None:
    engine = DockerEngine(dataclasses.replace(lab.settings, docker_runtime="kata-x"), host)
    try:
        errors = [f for f in await engine.check() if f.level == "error"]
        assert "kata-x" in errors[0].what
        await engine.open()
        with pytest.raises(EngineError, match="kata-x"):
            await Lab(engine, lab.client, lab.settings, lab.recipe).run("true")
    finally:
        await engine.aclose()


async def test_nobody_is_there(lab: Lab, tmp_path: Path) -> None:
    engine = DockerEngine(lab.settings, f"unix://{tmp_path}/none.sock")
    (finding,) = await engine.check()
    assert (finding.level, finding.hint) == ("error", "start it, or set DOCKER_HOST to where it is")
    with pytest.raises(EngineError, match="cannot be reached"):
        await engine.open()
    await engine.aclose()


@pytest.mark.skipif(shutil.which("docker") is None, reason="no Docker command line")
async def test_an_engine_behind_ssh(
    lab: Lab, host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a program in ssh's place that runs the command here."""
    ssh = tmp_path / "ssh"
    ssh.write_text(
        f'#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done; shift 2\nDOCKER_HOST={host} exec "$@"\n'
    )
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    engine = DockerEngine(lab.settings, "ssh://me@there")
    far = Lab(engine, lab.client, lab.settings, lab.recipe)
    try:
        await engine.open()
        job = await far.start("cat; echo end")
        try:
            async with asyncio.timeout(PATIENCE):
                await job.send(b"x" * 100_000)
                await job.send_eof()
                out, outcome = await end(job)
        finally:
            await job.aclose()
        assert (out, outcome) == (b"x" * 100_000 + b"end\n", Outcome(0))
    finally:
        await engine.aclose()


async def gone(lab: Lab) -> None:
    """Waits until no container is left, which is removed behind the callers' backs."""
    async with asyncio.timeout(PATIENCE):
        while await asyncio.to_thread(lab.containers):  # noqa: ASYNC110 - the engine's to say
            await asyncio.sleep(0.02)
