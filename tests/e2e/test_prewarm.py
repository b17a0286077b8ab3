"""Commands that the operator names have a sandbox that waits, without any run."""

from __future__ import annotations

import time

import httpx
import pytest

from tests.e2e.service_lab import HELLO, PATIENCE, Service


def warm(service: Service) -> int:
    said = httpx.get(f"{service.url}/metrics", timeout=PATIENCE)
    (line,) = (x for x in said.text.splitlines() if x.startswith("cmdsvc_sandboxes_warm "))
    return int(float(line.split()[1]))


def test_one_waits_from_the_start_on(own_service: Service):
    own_service.start()
    own_service.create("hello", HELLO).ok()
    assert own_service.stop() == 0
    own_service.settings = {
        **own_service.settings,
        "CMDSVC_WARM_COMMANDS": "alice/hello, alice/nothing",
    }
    before = len(own_service.log)
    own_service.start()
    until = time.monotonic() + PATIENCE
    while warm(own_service) != 1:
        assert time.monotonic() < until, own_service.log
        time.sleep(0.05)
    assert own_service.ssh("hello").ok().text == "hello\n"
    assert own_service.stop() == 0
    log = own_service.log[before:]
    (line,) = (x for x in log.splitlines() if "no sandbox waits for" in x)
    assert "alice/nothing: there is no such command" in line


@pytest.mark.any_engine
def test_what_is_no_command_is_one_clear_line(own_service: Service):
    said = own_service.cli("serve", CMDSVC_WARM_COMMANDS="hello")
    assert said.status == 64
    assert said.err.decode().startswith("cmdsvc: CMDSVC_WARM_COMMANDS: 'hello' is not OWNER/NAME")
    assert said.err.count(b"\n") == 1
