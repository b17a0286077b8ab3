"""`:import`: which image becomes a command, what pins it, and what keeps it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from tests.availability import unavailable
from tests.e2e.image_lab import Images, images, serving
from tests.e2e.service_lab import HELLO, Service
from tests.kit import Kit
from tests.registry import NoRegistryError, Registry, registry

pytestmark = pytest.mark.docker

SAYS = 'ENTRYPOINT ["/bin/echo", "{}"]'


@pytest.fixture(scope="module")
def served(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    yield from serving(kit, tmp_path_factory.mktemp("import"))


@pytest.fixture(scope="module")
def made(served: Service, kit: Kit) -> Iterator[Images]:
    with images(served.settings["DOCKER_HOST"], kit) as found:
        yield found


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    try:
        with registry(tmp_path_factory.mktemp("registry")) as one:
            yield one
    except NoRegistryError as error:
        unavailable(str(error))


def layers(served: Service) -> list[str]:
    return [
        line.split("\t")[0]
        for line in served.ssh(":system", "df").ok().lines
        if line.split("\t")[1] == "layer"
    ]


class TestOfThisEngine:
    def test_it_runs_what_was_there_at_that_moment(self, served: Service, made: Images, name: str):
        image = made.build("local", SAYS.format("one"))
        said = served.ssh(":import", name, image, "-d", "says one").ok()
        assert said.err.endswith(f"created {name}\n".encode())
        assert said.out == b""
        id_ = made.client.images.get(image).id
        assert served.ssh(":source", name).ok().text == f"#!cmd {image[:-2]}@{id_}\n"
        assert f"{name}\t1\t" in served.ssh(":ls").ok().text
        assert "says one" in served.ssh(":ls").ok().text
        made.build("local", SAYS.format("two"))
        assert served.ssh(name).ok().out == b"one\n"
        served.ssh(":import", f"{name}2", image).ok()
        assert served.ssh(f"{name}2").ok().out == b"two\n"

    def test_its_metadata_are_edited_like_any_others(
        self, served: Service, made: Images, name: str
    ):
        served.ssh(":import", name, made.build("edited", 'ENTRYPOINT ["/bin/sleep"]')).ok()
        source = served.ssh(":source", name).ok().out
        block = b'# /// cmd\n# timeout = "1s"\n# description = "short"\n# ///\n'
        served.ssh(":edit", name, stdin=source + block).ok()
        served.ssh(name, "100").failed(124)
        assert "\tshort" in served.ssh(":ls").ok().text
        served.ssh(":apply", name, stdin=source + block).ok()
        served.ssh(":rollback", name).ok()
        assert served.ssh(":source", name).ok().out == source
        assert served.ssh(name, "0").ok().out == b""
        served.ssh(":edit", name, stdin=source + b"#!/bin/sh\necho no\n").failed(65, "line 2")
        served.ssh(":edit", name, stdin=source.strip() + b" jq\n").failed(65, "line 1", "packages")
        listed = served.ssh(":history", name).ok().lines
        assert len({line.split("\t")[3] for line in listed}) == 1  # one layer

    def test_its_name_is_needed_not_only_its_id(self, served: Service, made: Images, name: str):
        image = made.build("secret", SAYS.format("secret"))
        id_ = made.client.images.get(image).id
        for text in (f"{made.name('other')[:-2]}@{id_}", f"127.0.0.1:9/x@{id_}"):
            said = served.ssh(":create", name, stdin=f"#!cmd {text}\n".encode())
            assert said.status in {65, 75}, said
        short = id_.removeprefix("sha256:")[:12]
        assert served.ssh(":import", name, f"127.0.0.1:9/{short}").status == 75
        served.ssh(name).failed(127)

    def test_one_that_says_nothing_to_run(self, served: Service, made: Images, name: str):
        image = made.build("nothing", "ENTRYPOINT []", "CMD []")
        served.ssh(":import", name, image).failed(65, "entry point")
        served.ssh(":source", name).failed(127)

    @pytest.mark.parametrize("volume", ["/proc", "/dev/x", "/", "relative", "/a/../sys"])
    def test_one_with_a_volume_that_cannot_be(
        self, volume: str, served: Service, made: Images, name: str
    ):
        image = made.build("volume", SAYS.format("x"), f"VOLUME {volume}")
        served.ssh(":import", name, image).failed(65, "volume")

    def test_one_with_too_many_volumes(self, served: Service, made: Images, name: str):
        volumes = [f"VOLUME /v{number}" for number in range(17)]
        image = made.build("volumes", SAYS.format("x"), *volumes)
        served.ssh(":import", name, image).failed(65, "17 volumes")


class TestRefused:
    @pytest.mark.parametrize(
        "image",
        [
            "",
            "Upper",
            "-x",
            "a b",
            "a//b",
            "../x",
            "x?fromSrc=y",
            "x%2Fy",
            "x#y",
            "x\n",
            "é",
            "x:",
            "x:-a",
            "x@sha256:12",
            "x" * 300,
            "http://127.0.0.1/x",
            "x@sha512:" + "a" * 128,
        ],
    )
    def test_what_cannot_be_a_name(self, image: str, served: Service, name: str):
        served.ssh(":import", name, "--", image).failed(64, "cannot be the name")
        served.create(name, f"#!cmd {image}@sha256:{'a' * 64}\n").failed(65)

    def test_without_an_image(self, served: Service, name: str):
        served.ssh(":import", name).failed(64)
        served.ssh(":import").failed(64)
        assert b"example" in served.ssh(":import", "--help").ok().out

    def test_an_image_that_is_not_there(self, served: Service, held: Registry, name: str):
        for image in (f"{held.address}/none/here", f"{held.address}/none@sha256:{'a' * 64}"):
            served.ssh(":import", name, image).failed(65, "none")
        served.ssh(":source", name).failed(127)

    def test_a_registry_out_of_reach(self, served: Service, name: str):
        for image in ("127.0.0.1:9/x", f"127.0.0.1:9/x@sha256:{'a' * 64}"):
            served.ssh(":import", name, image).failed(75, "127.0.0.1:9")

    def test_layers_of_others(self, served: Service, made: Images, name: str):
        served.create(name, HELLO).ok()
        ours = next(
            tag
            for image in made.client.images.list()
            for tag in image.tags
            if tag.startswith("cmdsvc-") and "-base:" not in tag
        )
        served.ssh(":import", f"{name}2", ours).failed(65, "layer")
        served.ssh(":import", f"{name}2", f"docker.io/library/{ours}").failed(65, "layer")

    def test_who_may_not_and_what_is_there(self, served: Service, made: Images, name: str):
        image = made.build("gate", SAYS.format("x"))
        served.create(name, HELLO).ok()
        served.ssh(":import", name, image).failed(73, "exists")
        served.ssh(":import", "UP", image).failed(64)
        served.ssh(":import", "bob/x", image).failed(64)
        served.ssh(":import", f"{name}2", image, "-d", "two\nlines").failed(64)
        token = served.ssh(":tokens", "new").ok().text.strip()
        served.ssh(":import", f"{name}2", image, user=token).failed(77)

    def test_what_the_operator_does_not_want(
        self, kit: Kit, served: Service, made: Images, name: str, tmp_path: Path
    ):
        good = made.build("good", SAYS.format("good"))
        bad = made.build("bad", SAYS.format("bad"))
        patterns = f"{good[:-2]}, ghcr.io/*"
        host = served.settings["DOCKER_HOST"]
        for service in serving(kit, tmp_path, host, CMDSVC_IMPORTS=patterns):
            service.ssh(":import", name, good).ok()
            service.ssh(":import", f"{name}2", f"docker.io/{good}").ok()
            for image in (bad, f"docker.io/{bad}", "alpine", f"127.0.0.1:9/{good}", "ghcr.iox/a"):
                service.ssh(":import", "x", image).failed(65, "CMDSVC_IMPORTS")
            id_ = made.client.images.get(bad).id
            service.create("x", f"#!cmd {bad[:-2]}@{id_}\n").failed(65, "CMDSVC_IMPORTS")
            service.create("x", f"#!cmd {good[:-2]}@{id_}\n").failed(75)  # not under that name


class TestOfARegistry:
    @pytest.fixture
    def two(self, made: Images, held: Registry, name: str) -> tuple[str, str, str]:
        """An image's name, and what pins its first and its second state; the registry has the
        second."""
        image = f"{held.address}/{made.name(name)}"
        first = made.push(made.build("first", SAYS.format("one")), image)
        second = made.push(made.build("second", SAYS.format("two")), image)
        made.remove(made.name("first"), made.name("second"))
        return image, first, second

    def test_its_digest_is_what_it_stays(
        self, served: Service, made: Images, held: Registry, name: str
    ):
        image = f"{held.address}/{made.name('moved')}"
        first = made.push(made.build("v1", SAYS.format("one")), image)
        served.ssh(":import", name, image).ok()
        assert served.ssh(":source", name).ok().text == f"#!cmd {first}\n"
        second = made.push(made.build("v2", SAYS.format("two")), image)
        assert served.ssh(name, "x").ok().out == b"one x\n"
        served.ssh(":import", f"{name}2", image).ok()
        assert served.ssh(":source", f"{name}2").ok().text == f"#!cmd {second}\n"
        assert served.ssh(f"{name}2").ok().out == b"two\n"
        assert served.ssh(name).ok().out == b"one\n"
        with pytest.raises(docker.errors.ImageNotFound):  # nobody's names were moved
            made.client.images.get(image)

    def test_it_is_fetched_again_where_it_is_gone(
        self, served: Service, made: Images, two: tuple[str, str, str], name: str
    ):
        _, first, _ = two
        served.ssh(":import", name, first).ok()
        layer = served.ssh(":history", name).ok().lines[0].split("\t")[3]
        tags = [tag for image in made.client.images.list() for tag in image.tags]
        mine = [tag for tag in tags if f":{layer}" in tag]
        assert mine
        made.remove(*mine, first)
        assert served.ssh(name).ok().out == b"one\n"

    def test_and_not_where_its_registry_is_down(
        self, served: Service, made: Images, two: tuple[str, str, str], held: Registry, name: str
    ):
        image, _, second = two
        served.ssh(":import", name, image).ok()
        made.client.images.pull(image.rpartition(":")[0], tag="1")
        held.stop()
        try:
            assert served.ssh(name).ok().out == b"two\n"
            served.ssh(":import", f"{name}2", image).ok()  # it is here, under that name
            assert served.ssh(":source", f"{name}2").ok().text == f"#!cmd {second}\n"
            made.remove(image, second)
            assert served.ssh(":import", f"{name}3", image).status == 75
        finally:
            held.start()

    def test_a_prune_keeps_it_as_long_as_a_version_needs_it(
        self, served: Service, made: Images, two: tuple[str, str, str], name: str
    ):
        _, first, _ = two
        served.ssh(":import", name, first).ok()
        layer = served.ssh(":history", name).ok().lines[0].split("\t")[3]
        served.ssh(":edit", name, stdin=HELLO).ok()
        served.ssh(":system", "prune").ok()
        assert any(found.startswith(layer) for found in layers(served))
        served.ssh(":rollback", name, "1").ok()
        assert served.ssh(name).ok().out == b"one\n"
        served.ssh(":delete", name).ok()
        assert any(layer in line for line in served.ssh(":system", "prune").ok().lines)
        assert not any(found.startswith(layer) for found in layers(served))
        with pytest.raises(docker.errors.ImageNotFound):  # it was here for us alone
            made.client.images.get(first)

    def test_a_prune_leaves_others_images_alone(self, served: Service, made: Images, name: str):
        image = made.build("kept", SAYS.format("kept"))
        served.ssh(":import", name, image).ok()
        served.ssh(":delete", name).ok()
        served.ssh(":system", "prune").ok()
        assert made.client.images.get(image).tags == [image]


def test_an_instance_on_bubblewrap_refuses_it(tmp_path: Path, kit: Kit, name: str):
    service = Service(
        tmp_path, {"CMDSVC_ENGINE": "bubblewrap", "CMDSVC_BASE_ALPINE": str(kit.base)}
    )
    service.add_user("alice")
    service.start()
    try:
        service.ssh(":import", name, "alpine").failed(65, "bubblewrap", "#!cmd alpine")
        service.create(name, f"#!cmd alpine@sha256:{'a' * 64}\n").failed(65, "bubblewrap")
        service.ssh(":import", name, "Nope").failed(64)
        service.ssh(name).failed(127)
    finally:
        assert service.stop() == 0
