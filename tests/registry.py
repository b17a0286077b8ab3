"""A real image registry for tests, on this machine's loopback."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONFIG = """\
version: 0.1
log: {{level: info}}
storage:
  filesystem: {{rootdirectory: {folder}/data}}
  delete: {{enabled: true}}
http: {{addr: "127.0.0.1:{port}"}}
"""


class NoRegistryError(RuntimeError):
    """None can be started here; the message says why."""


class Registry:
    """A docker-registry with its data in a folder of the test's. Once started it keeps its port."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("docker-registry") is None:
            raise NoRegistryError("no registry (apt-get install docker-registry)")
        self._folder = folder
        self._port = 0
        self._process: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        """HOST:PORT, as the names of its images begin."""
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        """It listens on return."""
        config = self._folder / "config.yml"
        config.write_text(CONFIG.format(folder=self._folder, port=self._port))
        with (self._folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                ["docker-registry", "serve", config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.PIPE,
                text=True,
            )
        assert self._process.stderr is not None
        said = []
        for line in self._process.stderr:
            said.append(line)
            if found := re.search(r"listening on 127\.0\.0\.1:(\d+)", line):
                self._port = int(found[1])
                return
        self.stop()
        raise NoRegistryError("".join(said))

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


@contextmanager
def registry(folder: Path) -> Iterator[Registry]:
    one = Registry(folder)
    try:
        one.start()
        yield one
    finally:
        one.stop()
