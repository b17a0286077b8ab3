"""Real proxies before the server, as docs/http.md has them set up."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.availability import unavailable
from tests.e2e.service_lab import PATIENCE

PAGE = Path(__file__).parents[2] / "docs" / "http.md"
NAME = "cmd.example.org"
"""The service's name on the page."""

NGINX = """\
daemon off;
user {user};
pid {folder}/nginx.pid;
error_log {folder}/proxy.log;
events {{}}
http {{
access_log off;
client_body_temp_path {folder}/body;
proxy_temp_path {folder}/proxy;
fastcgi_temp_path {folder}/fastcgi;
uwsgi_temp_path {folder}/uwsgi;
scgi_temp_path {folder}/scgi;
{page}
}}
"""
CADDY = """\
{{
    admin off
    auto_https disable_redirects
}}
{page}
"""


@dataclass(frozen=True)
class Certificate:
    """A new one for localhost."""

    path: Path
    key: Path

    @classmethod
    def make(cls, folder: Path) -> Certificate:
        made = cls(folder / "tls.crt", folder / "tls.key")
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
             "-nodes", "-days", "2", "-subj", "/CN=localhost",
             "-addext", "subjectAltName=DNS:localhost", "-keyout", made.key, "-out", made.path],
            check=True, capture_output=True,
        )  # fmt: skip
        return made

    @property
    def trusted(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.path)


@dataclass(frozen=True)
class Proxy:
    port: int
    certificate: Certificate
    cuts: bool
    """Whether it cuts off what was cut off."""

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"


def nginx(folder: Path, port: int, server: str, certificate: Certificate) -> list[str]:
    page = _shown(
        "nginx",
        ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        (f"server_name {NAME};", "server_name localhost;"),
        (f"/etc/ssl/{NAME}.crt", str(certificate.path)),
        (f"/etc/ssl/private/{NAME}.key", str(certificate.key)),
        ("http://127.0.0.1:8022", server),
    )
    config = folder / "nginx.conf"
    user = pwd.getpwuid(os.getuid()).pw_name
    config.write_text(NGINX.format(folder=folder, user=user, page=page))
    return [_program("nginx"), "-p", str(folder), "-c", str(config), "-e", f"{folder}/proxy.log"]


def caddy(folder: Path, port: int, server: str, certificate: Certificate) -> list[str]:
    page = _shown(
        "caddy",
        (
            f"{NAME} {{",
            "\n    ".join(
                [
                    f"https://localhost:{port} {{",
                    "bind 127.0.0.1",
                    f"tls {certificate.path} {certificate.key}",
                ]
            ),
        ),
        ("127.0.0.1:8022", server.removeprefix("http://")),
    )
    config = folder / "Caddyfile"
    config.write_text(CADDY.format(page=page))
    return [_program("caddy"), "run", "--adapter", "caddyfile", "--config", str(config)]


PROXIES: dict[str, Callable[[Path, int, str, Certificate], list[str]]] = {
    "nginx": nginx,
    "caddy": caddy,
}


@contextlib.contextmanager
def standing_before(server: str, kind: str, folder: Path) -> Iterator[Proxy]:
    """One of PROXIES, with TLS, before the server's URL."""
    certificate = Certificate.make(folder)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = PROXIES[kind](folder, port, server, certificate)
    home = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, **home}, stdout=log, stderr=log)
    try:
        _wait(process, port, folder)
        yield Proxy(port, certificate, cuts=kind != "caddy" or _caddy_version() >= (2, 8))
    finally:
        process.terminate()
        process.wait(PATIENCE)


def _caddy_version() -> tuple[int, ...]:
    said = subprocess.run([_program("caddy"), "version"], check=True, capture_output=True)
    match = re.match(r"v?([0-9]+)\.([0-9]+)", said.stdout.decode())
    assert match, said
    return tuple(map(int, match.groups()))


def _wait(process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < end
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)


def _shown(language: str, *changes: tuple[str, str]) -> str:
    """What the page shows, with what belongs to this machine."""
    match = re.search(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert match, language
    text = match[1]
    for before, after in changes:
        assert before in text, before
        text = text.replace(before, after)
    return text


def _program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        unavailable(f"there is no {name}")
    return found
