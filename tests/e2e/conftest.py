"""The service that the end-to-end tests talk to, one per engine."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.http_lab import Web
from tests.e2e.raw_client import serving
from tests.e2e.service_lab import Service
from tests.kit import Kit, Server


@pytest.fixture(scope="session")
def engine_settings(request: pytest.FixtureRequest, engine_name: str) -> dict[str, str]:
    """What makes the service use that engine."""
    if engine_name == "bubblewrap":
        return {"CMDSVC_ENGINE": "bubblewrap"}
    return {"CMDSVC_ENGINE": "docker", "DOCKER_HOST": request.getfixturevalue("dockerd_host")}


@pytest.fixture(scope="session")
def settings(engine_settings: dict[str, str], kit: Kit, mirror: Server) -> dict[str, str]:
    return {
        **engine_settings,
        "CMDSVC_BASE_ALPINE": str(kit.base),
        "CMDSVC_APK_KEYS": str(kit.keys),
        "CMDSVC_ALPINE_MIRROR": " ".join(
            f"{mirror.url}/{part}" for part in ("main", "community", "broken")
        ),
        "CMDSVC_DISK": "64M",
    }


@pytest.fixture(scope="session")
def service(
    settings: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """One running server for all tests that do not change it; alice and bob may log in."""
    home = tmp_path_factory.mktemp("service")
    home.chmod(0o700)
    service = Service(home, settings, fresh=True)
    service.add_user("alice")
    service.add_user("bob")
    service.start()
    try:
        yield service
    finally:
        assert service.stop() == 0, service.log


@pytest.fixture(scope="module")
def door(
    request: pytest.FixtureRequest,
    kit: Kit,
    mirror: Server,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    """A server on the embedded engine for one module whose clients are hostile."""
    yield from serving(request, kit, mirror, tmp_path_factory.mktemp("door"))


@pytest.fixture
def own_service(settings: dict[str, str], tmp_path: Path) -> Iterator[Service]:
    """A server of the test's own, not started yet."""
    service = Service(tmp_path, dict(settings))
    service.add_user("alice")
    try:
        yield service
    finally:
        if service.process is not None:
            service.stop()


@pytest.fixture
def name() -> str:
    """A command's name that no other test uses."""
    return f"t{secrets.token_hex(6)}"


@pytest.fixture(scope="module")
def web(
    request: pytest.FixtureRequest,
    kit: Kit,
    mirror: Server,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Web]:
    """A server whose `sh` can be run by HTTP, with the module's SETTINGS."""
    settings = getattr(request.module, "SETTINGS", {})
    for service in serving(request, kit, mirror, tmp_path_factory.mktemp("web"), **settings):
        web = Web(service)
        service.ssh(":access", "sh", "grant", web.token).ok()
        with web.client:
            yield web
