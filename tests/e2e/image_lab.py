"""Images for the tests of `:import`: built for real, on the kit's Alpine."""

from __future__ import annotations

import io
import secrets
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import docker

from tests import dockerd
from tests.availability import unavailable
from tests.e2e.service_lab import Service
from tests.kit import Kit

PROGRAM = r"""
#include <stdio.h>
#include <unistd.h>
int main(int argc, char **argv) {
    char data[4096];
    ssize_t size;
    for (int i = 1; i < argc; i++) printf("<%s>", argv[i]);
    fflush(stdout);
    while ((size = read(0, data, sizeof data)) > 0)
        if (write(1, data, size) != size) return 2;
    return argc;
}
"""
"""Prints its arguments, then its stdin; its status is the count of its words."""


class Images:
    """Makes images under names that nothing else has, and removes them in the end."""

    def __init__(self, client: docker.DockerClient, kit: Kit) -> None:
        self.client = client
        self._prefix = f"t{secrets.token_hex(5)}"
        self._names: list[str] = []
        self._base = self.name("base")
        repository, _, tag = self._base.partition(":")
        client.api.import_image_from_file(str(kit.base), repository=repository, tag=tag)

    def name(self, what: str, tag: str = "1") -> str:
        """A new image's name, of which `what` is part."""
        name = f"{self._prefix}/{what}:{tag}"
        self._names.append(name)
        return name

    def build(
        self, what: str, *lines: str, files: Mapping[str, bytes] | None = None, base: str = ""
    ) -> str:
        """Makes `PREFIX/what:1` of these lines of a Dockerfile; returns its name."""
        name = self.name(what)
        dockerfile = "\n".join([f"FROM {base or self._base}", *lines, ""])
        context = io.BytesIO()
        with tarfile.open(fileobj=context, mode="w") as archive:
            for path, data in {"Dockerfile": dockerfile.encode(), **(files or {})}.items():
                member = tarfile.TarInfo(path)
                member.size, member.mode = len(data), 0o755
                archive.addfile(member, io.BytesIO(data))
        context.seek(0)
        image, _ = self.client.images.build(
            fileobj=context, custom_context=True, tag=name, network_mode="none", rm=True
        )
        self._names.append(image.id)  # its name may be given to another one
        return name

    def remove(self, *names: str) -> None:
        for name in names:
            with suppress(docker.errors.APIError):
                self.client.images.remove(name, force=True)

    def push(self, name: str, target: str) -> str:
        """Pushes it as `target`, where it is not here any more then; returns what pins it there."""
        repository, _, tag = target.rpartition(":")
        self.client.images.get(name).tag(repository, tag)
        said = self.client.images.push(repository, tag)
        assert '"error"' not in said, said
        pinned = next(
            pinned
            for pinned in self.client.images.get(target).attrs["RepoDigests"]
            if pinned.startswith(f"{repository}@")
        )
        self.remove(target, pinned)
        return str(pinned)

    def close(self) -> None:
        self.remove(*reversed(self._names))


@contextmanager
def images(host: str, kit: Kit) -> Iterator[Images]:
    client = docker.DockerClient(base_url=host, version="auto")
    try:
        made = Images(client, kit)
        try:
            yield made
        finally:
            made.close()
    finally:
        client.close()


def static_program(folder: Path) -> bytes:
    """PROGRAM, which needs no library. FileNotFoundError where there is no compiler."""
    (folder / "program.c").write_text(PROGRAM)
    subprocess.run(
        ["gcc", "-O1", "-static", "-o", folder / "program", folder / "program.c"], check=True
    )
    return (folder / "program").read_bytes()


def serving(kit: Kit, home: Path, host: str = "", **settings: str) -> Iterator[Service]:
    """A server on the Docker engine, that at `host`, for alice, who is its operator, and bob."""
    with ExitStack() as stack:
        try:
            host = host or stack.enter_context(dockerd.docker_host())
        except dockerd.NoDockerError as error:
            unavailable(str(error))
        service = Service(
            home,
            {
                "CMDSVC_ENGINE": "docker",
                "DOCKER_HOST": host,
                "CMDSVC_BASE_ALPINE": str(kit.base),
                "CMDSVC_DISK": "64M",
                "CMDSVC_OPERATORS": "alice",
                **settings,
            },
        )
        service.add_user("alice")
        service.add_user("bob")
        service.start()
        try:
            yield service
        finally:
            assert service.stop() == 0, service.log
            dockerd.purge(host, (home / "var" / "instance").read_text())
