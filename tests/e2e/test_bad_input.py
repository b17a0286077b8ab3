"""What bad input gets: a status, one line that says why and what to do, and nothing kept."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.service_lab import HELLO, Service
from tests.kit import Server

pytestmark = pytest.mark.any_engine

BODY = "#!/bin/sh\ntrue\n"


def names(service: Service) -> set[str]:
    return {line.split("\t")[0] for line in service.ssh(":ls").ok().lines}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("", ["empty"]),
        ("\n\n\n", ["#!cmd"]),
        ("echo hello\n", ["line 1", "#!cmd"]),
        ("#!/bin/sh\necho hello\n", ["line 1", "#!cmd"]),
        ("#!cmd\n" + BODY, ["base"]),
        ("#!cmd windows\n" + BODY, ["windows", "alpine"]),
        ("#!cmd alpine\n", ["line"]),
        ("#!cmd alpine\necho no shebang\n", ["line 2", "#!/bin/sh"]),
        ("#!cmd alpine jq;id\n" + BODY, ["jq;id"]),
        ("#!cmd alpine $(id)\n" + BODY, ["$(id)"]),
        ("#!cmd alpine -jq\n" + BODY, ["-jq"]),
        ("#!cmd alpine --root=/\n" + BODY, ["--root=/"]),
        ("#!cmd alpine j\x0bq\n" + BODY, ["line 1"]),
        ("#!cmd alpine\n#!/bin/sh\na\0b\n", ["NUL"]),
        ("#!cmd alpine\n#!/bin/sh\n# /// cmd\n# timeot = '1s'\n# ///\n", ["line 4", "timeot"]),
        (
            "#!cmd alpine\n#!/bin/sh\n# /// cmd\n# memory = '1T'\n# ///\ntrue\n",
            ["line 4", "memory"],
        ),
        ("#!cmd alpine\n#!/bin/bash\necho hi\n", ["/bin/bash", "package bash"]),
        ("#!cmd alpine\n#!/usr/bin/env python3\n1\n", ["python3"]),
        ("#!cmd alpine\n#!frobnicate\n", ["frobnicate"]),
        ("#!cmd alpine no-such-package\n" + BODY, ["no-such-package"]),
        ("#!cmd alpine needs-missing\n" + BODY, ["no-such-package"]),
        ("#!cmd alpine broken-postinst\n" + BODY, ["broken-postinst"]),
    ],
)
def test_a_source_that_cannot_be_used_is_65_and_stores_nothing(
    service: Service, name: str, source: str, words: list[str]
):
    service.create(name, source).failed(65, ":create", *words)
    assert name not in names(service)


def test_the_package_managers_own_words_are_shown(service: Service, name: str):
    said = service.create(name, "#!cmd alpine no-such-package\n" + BODY)
    assert b"no-such-package (no such package)" in said.err


def test_a_source_over_the_limit(service: Service, name: str):
    source = HELLO + b"#" * (2 << 20)
    service.create(name, source).failed(65, "1048576")
    assert name not in names(service)


def test_a_package_name_with_a_newline_is_a_shebang_that_is_none(service: Service, name: str):
    service.create(name, "#!cmd alpine jq\nbash\n" + BODY).failed(65, "line 2")


@pytest.mark.parametrize(
    "bad", ["a/b/c", "..", "../x", "UPPER", "x" * 300, "a\x07b", "-x", ".x", "", "ü", "a b", "a\nb"]
)
def test_a_name_that_is_none_is_64(service: Service, bad: str):
    service.ssh(":create", "--", bad, stdin=HELLO).failed(64, ":create")
    if not bad.startswith("-"):
        service.ssh(bad).failed(64, ": ", "; ")


def test_no_name_at_all_is_named(service: Service):
    assert service.ssh("").failed(64).err.startswith(b"cmdsvc: '': ")


@pytest.mark.parametrize("words", [("-d", "text", "NAME", "-"), ("NAME", "-d", "text", "-")])
def test_options_stand_where_they_like(service: Service, name: str, words: tuple[str, ...]):
    given = [name if word == "NAME" else word for word in words]
    service.ssh(":create", *given, stdin=HELLO).ok()
    listed = {line.split("\t")[0]: line for line in service.ssh(":ls").ok().lines}
    assert listed[name].endswith("\ttext")
    assert service.ssh(":access", name, "-j", "ls").ok().out == b"[]\n"


@pytest.mark.parametrize("text", ["x" * 201, "a\nb", "a\x1b[2Jb"])
def test_a_description_is_one_short_line(service: Service, name: str, text: str):
    service.ssh(":create", "-d", text, name, stdin=HELLO).failed(64, "description")
    service.ssh(name).failed(127)


def test_nobody_creates_in_anothers_name(service: Service, name: str):
    service.ssh(":create", f"bob/{name}", stdin=HELLO).failed(64)
    service.ssh(":create", f"cmd/{name}", stdin=HELLO).failed(64)


def test_what_exists_is_73(service: Service, name: str):
    service.create(name, HELLO).ok()
    service.create(name, HELLO.replace(b"hello", b"other")).failed(73, name)
    assert service.ssh(name).ok().out == b"hello\n"


def test_two_who_create_one_name_at_once(service: Service, name: str):
    """One wins, the other is told; what is stored is the winner's, whole."""
    clients = [service.popen(":create", name) for _ in range(2)]
    for i, client in enumerate(clients):
        assert client.stdin is not None
        client.stdin.write(HELLO.replace(b"hello", b"by %d" % i))
        client.stdin.flush()
    with ThreadPoolExecutor() as pool:
        said = list(pool.map(lambda client: client.communicate(timeout=60), clients))
    statuses = [client.returncode for client in clients]
    assert sorted(statuses) == [0, 73], said
    winner = statuses.index(0)
    assert service.ssh(name).ok().out == b"by %d\n" % winner


def test_an_unknown_builtin_is_64_with_a_hint(service: Service):
    service.ssh(":crate", "x").failed(64, ":crate", "did you mean :create?")
    service.ssh(":frobnicate").failed(64)
    service.ssh(":create").failed(64, "NAME")
    service.ssh(":ls", "--wrong").failed(64)


def test_an_unknown_command_is_127_with_a_hint(service: Service, name: str):
    service.create(name, HELLO).ok()
    service.ssh(f"{name}x").failed(127, f"did you mean {name}?")
    service.ssh("frobnicate-the-gizmo").failed(127)
    service.ssh(":source", f"{name}x").failed(127, f"did you mean {name}?")


def test_a_failed_build_leaves_the_old_version(service: Service, name: str):
    service.create(name, HELLO).ok()
    service.ssh(":edit", name, stdin=b"#!cmd alpine no-such-package\n#!/bin/sh\ntrue\n").failed(65)
    assert service.ssh(name).ok().out == b"hello\n"
    assert service.ssh(":source", name).ok().out == HELLO


@pytest.mark.parametrize("verb", [":create", ":edit"])
def test_an_upload_that_is_cut_off_stores_nothing(service: Service, name: str, verb: str):
    if verb == ":edit":
        service.create(name, HELLO).ok()
    client = service.popen(verb, name)
    assert client.stdin is not None
    client.stdin.write(HELLO.replace(b"hello", b"cut off"))
    client.stdin.flush()
    # Another session on the server after the bytes were sent: they have arrived by then, or never.
    service.ssh(":whoami").ok()
    client.kill()
    client.communicate()
    if verb == ":edit":
        assert service.ssh(":source", name).ok().out == HELLO
    else:
        assert name not in names(service)
        service.ssh(name).failed(127)


def test_a_wrong_key_and_none_at_all(service: Service):
    stranger = service.key("stranger")
    assert service.ssh(":whoami", key=stranger).status == 255
    nobody = service.ssh(":whoami", options=("-o", "PubkeyAuthentication=no"))
    assert nobody.status == 255
    assert b"Permission denied" in nobody.err


def test_port_forwarding_and_subsystems_are_refused(service: Service):
    said = service.ssh(":whoami", options=("-W", "127.0.0.1:1", "-T"))
    assert said.status == 255
    said = service.raw("sftp", options=("-s",))
    assert said.status != 0
    assert said.out == b""


def test_a_command_line_that_is_not_utf_8_is_refused(service: Service):
    done = subprocess.run(
        [*(word.encode() for word in service.command_line()), b"echo \xff"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert done.stdout == b""


def test_a_broken_repository_is_75_and_not_no_such_package(
    own_service: Service, mirror: Server, name: str
):
    own_service.settings = {
        **own_service.settings,
        "CMDSVC_ALPINE_MIRROR": "http://127.0.0.1:1/main http://127.0.0.1:1/community",
    }
    own_service.start()
    said = own_service.create(name, "#!cmd alpine jq\n" + BODY).failed(75, ":create")
    assert b"no such package" not in said.err.splitlines()[-1]
    assert own_service.ssh(":ls").ok().out == b""


def test_a_repository_that_hangs_is_75_within_the_time_limit(
    own_service: Service, mirror: Server, name: str
):
    own_service.settings = {
        **own_service.settings,
        "CMDSVC_ALPINE_MIRROR": f"{mirror.url}/_hang/main {mirror.url}/_hang/community",
        "CMDSVC_BUILD_TIMEOUT": "3s",
    }
    own_service.start()
    own_service.create(name, "#!cmd alpine jq\n" + BODY).failed(75, ":create")
    assert own_service.ssh(":ls").ok().out == b""
