"""The other base: Debian from a root file-system tarball, with real apt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.availability import unavailable
from tests.e2e.service_lab import Service
from tests.kit import KitError, debian

pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def debian_base() -> Path:
    try:
        return debian()
    except KitError as error:
        unavailable(f"no Debian base: {error}")


@pytest.fixture
def debian_service(own_service: Service, debian_base: Path) -> Iterator[Service]:
    own_service.settings = {**own_service.settings, "CMDSVC_BASE_DEBIAN": str(debian_base)}
    own_service.start()
    return own_service


def test_packages_are_installed_by_apt_and_failures_are_in_its_words(
    debian_service: Service, name: str
):
    made = debian_service.create(name, "#!cmd debian jq\n#!jq\n").ok()
    assert b"jq" in made.err
    assert debian_service.ssh(name, "-c", ".a", stdin=b'{"a": [1]}').ok().out == b"[1]\n"
    debian_service.create(f"{name}x", "#!cmd debian no-such-package\n#!/bin/sh\ntrue\n").failed(
        65, "no-such-package"
    )
    debian_service.create(f"{name}x", "#!cmd debian:nonsuch\n#!/bin/sh\ntrue\n").failed(
        65, "nonsuch"
    )
    debian_service.create(f"{name}y", "#!cmd debian\n#!/bin/bash\necho $BASH_VERSION\n").ok()
    assert debian_service.ssh(f"{name}y").ok().text.startswith("5.")
