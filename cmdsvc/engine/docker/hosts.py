"""Where a Docker engine is, as the Docker command line spells it."""

from __future__ import annotations

import os
from typing import Final
from urllib.parse import urlsplit

from cmdsvc.errors import EngineError

DEFAULT_HOST: Final = "unix:///var/run/docker.sock"


def find_host(host: str | None) -> str:
    """`host`, or what the Docker command line would use."""
    return host or os.environ.get("DOCKER_HOST") or DEFAULT_HOST


def check_host(host: str) -> None:
    """EngineError where `host` is of a kind that cannot be used, and why."""
    kind, _, rest = host.partition("://")
    if kind not in ("unix", "tcp", "ssh") or not rest:
        raise EngineError(
            f"DOCKER_HOST is {host!r}, which is not understood",
            "use unix://PATH, tcp://HOST:PORT or ssh://[USER@]HOST",
        )
    if kind == "tcp" and os.environ.get("DOCKER_TLS_VERIFY"):
        raise EngineError(
            "DOCKER_TLS_VERIFY is set: over TLS a run's input cannot be ended apart from its output",
            "use DOCKER_HOST=ssh://[USER@]HOST",
        )


def ssh_command(host: str) -> list[str]:
    """As the Docker command line does it: `docker system dial-stdio` joins stdio to the socket."""
    address = urlsplit(host)
    user = ["-l", address.username] if address.username else []
    port = ["-p", str(address.port)] if address.port else []
    name = address.hostname or ""
    return ["ssh", "-T", "-o", "ConnectTimeout=20", "-o", "BatchMode=yes", *user, *port, "--",
            name, "docker", "system", "dial-stdio"]  # fmt: skip
