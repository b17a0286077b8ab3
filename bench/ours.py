"""Our server, as `cmdsvc serve` starts it, one per engine."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

from bench.measure import BenchError, Client
from tests import dockerd
from tests.e2e.service_lab import Service
from tests.kit import Kit

USER = "alice"


class Ours:
    def __init__(self, service: Service, engine: str) -> None:
        self.engine = engine
        self._service = service
        self.client = Client(service.home, service.port, USER, service.key(USER))

    @property
    def pid(self) -> int:
        if self._service.process is None:
            raise BenchError(f"the {self.engine} server is not running")
        return self._service.process.pid

    @property
    def url(self) -> str:
        return self._service.url

    @property
    def warm(self) -> int:
        """Sandboxes that wait, as the service's figures say it."""
        with urlopen(f"{self.url}/metrics") as reply:
            found = re.search(rb"^cmdsvc_sandboxes_warm (\d+)", reply.read(), re.MULTILINE)
        if found is None:
            raise BenchError("how many sandboxes wait is not among the figures")
        return int(found[1])

    @property
    def database(self) -> Path:
        return self._service.home / "var" / "cmdsvc.db"

    def ask(self, *words: str, stdin: bytes = b"") -> str:
        """What a builtin prints. BenchError where it fails."""
        said = self._service.ssh(*words, stdin=stdin, user=USER)
        if said.status:
            raise BenchError(f"{self.engine}: {words[0]}: {said.err.decode()[-500:]}")
        return said.text.strip()

    def create(self, name: str, body: str) -> None:
        said = self._service.create(name, f"#!cmd alpine\n{body}", USER)
        if said.status:
            raise BenchError(f"{self.engine}: :create {name}: {said.err.decode()[-500:]}")


@contextmanager
def server(
    folder: Path,
    engine: str,
    kit: Kit,
    host: str = "",
    module: Sequence[str] = (),
    **more: str,
) -> Iterator[Ours]:
    """A server on a free loopback port; `host` is the Docker engine's, `more` are settings.

    `module`, with its arguments, in the place of cmdsvc itself.
    """
    folder.mkdir(mode=0o700)
    settings = {
        "CMDSVC_ENGINE": engine,
        "CMDSVC_BASE_ALPINE": str(kit.base),
        **({"DOCKER_HOST": host} if host else {}),
        **more,
    }
    service = Service(folder, settings)
    try:
        service.add_user(USER)
        service.start(*module)
        yield Ours(service, engine)
    except AssertionError as error:
        raise BenchError(f"the {engine} server does not start: {error}") from error
    finally:
        if service.process is not None:
            service.stop()
        instance = folder / "var" / "instance"
        if host and instance.exists():
            dockerd.purge(host, instance.read_text().strip())
