"""The offline kit against the real apk, with signature checks on."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import tests.kit
from tests.kit import Kit, KitError, Server, alpine_base, apk, build, caching, debian, debs

TOP = Path(__file__).parent.parent
AS_ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not AS_ROOT, reason="needs root")
NULL = "touch /dev/null"
"""The tree has no devices, and some programs want to open one before all else."""


@pytest.fixture(scope="module")
def kit() -> Kit:
    return build()


@pytest.fixture
def server(kit: Kit) -> Iterator[Server]:
    with Server(kit) as server:
        yield server


def unpack(tarball: Path, root: Path) -> None:
    with tarfile.open(tarball) as tar:
        tar.extraction_filter = lambda member, _: member  # Debian 12's Python has no filter=
        tar.extractall(root)


class Alpine:
    """The base, unpacked, with the kit's key added: what the service does with its settings."""

    def __init__(self, kit: Kit, root: Path) -> None:
        self.root = root
        unpack(kit.base, root)
        for key in kit.keys.iterdir():
            shutil.copy(key, root / "etc/apk/keys")

    def add(
        self, *names: str, mirrors: tuple[str, ...], options: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        command = [*alpine_base.on_host(self.root, "sbin/apk"), "--root", str(self.root)]
        command += ["--no-cache", "--repositories-file", os.devnull, *options]
        command += [word for mirror in mirrors for word in ("--repository", mirror)]
        if not AS_ROOT:
            command.append("--usermode")
        command += ["add", *names]
        return subprocess.run(command, check=False, capture_output=True, text=True)

    def fails(self, *names: str, mirrors: tuple[str, ...], options: tuple[str, ...] = ()) -> str:
        done = self.add(*names, mirrors=mirrors, options=options)
        assert done.returncode != 0, done.stdout
        return done.stdout + done.stderr

    def sh(self, script: str) -> str:
        """What the script prints, run in the tree with this machine's network."""
        into = ["chroot", str(self.root), "/bin/sh", "-euc", script]
        if not AS_ROOT:
            into = ["unshare", "--map-root-user", *into]
        done = subprocess.run(into, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def alpine(kit: Kit) -> Iterator[Alpine]:
    with tempfile.TemporaryDirectory() as name:
        yield Alpine(kit, Path(name))


def mirror(server: Server, fault: str = "") -> tuple[str, ...]:
    return f"{server.url}{fault}/main", f"{server.url}{fault}/community"


# What it makes


def test_the_base_is_like_the_official_one(kit: Kit) -> None:
    with tarfile.open(kit.base) as tar:
        entries = {entry.name.removeprefix("./"): entry for entry in tar}

        def text(path: str) -> str:
            content = tar.extractfile(entries[path])
            assert content
            return content.read().decode()

        repositories = text("etc/apk/repositories").split()
        shadow = text("etc/shadow")
        installed = text("lib/apk/db/installed")
    assert [url.rpartition("/")[2] for url in repositories] == ["main", "community"]
    assert all(url.startswith("https://") for url in repositories)
    keys = [name for name in entries if name.startswith("etc/apk/keys/")]
    assert keys
    assert all(name.startswith("etc/apk/keys/alpine-devel@") for name in keys)
    assert shadow.startswith("root:*:")
    assert installed.count("\nP:") == 16
    assert entries["bin/ls"].linkname == "/bin/busybox"
    assert {entry.uid for entry in entries.values()} == {0}
    assert {name for name, entry in entries.items() if entry.gid} == {"etc/shadow"}
    assert not any(entry.isdev() for entry in entries.values())
    modes = {name: entries[name].mode for name in ("tmp", "root", "var/empty", "etc/shadow")}
    assert modes == {"tmp": 0o1777, "root": 0o700, "var/empty": 0o555, "etc/shadow": 0o640}


def test_only_the_public_key_is_given_away(kit: Kit) -> None:
    (key,) = kit.keys.iterdir()
    assert key.name.endswith(".rsa.pub")
    assert key.read_text().startswith("-----BEGIN PUBLIC KEY-----")
    (private,) = (kit.keys.parent / "private").iterdir()
    assert private.stat().st_mode & 0o777 == 0o600
    served = b"".join(path.read_bytes() for path in kit.repo.rglob("*") if path.is_file())
    assert b"PRIVATE KEY" not in served


def test_a_package_index_lists_what_is_there(kit: Kit) -> None:
    for name in ("main", "community", "unknown"):
        shelf = kit.repo / name / apk.ARCH
        with tarfile.open(shelf / "APKINDEX.tar.gz", ignore_zeros=True) as tar:
            index = tar.extractfile("APKINDEX")
            assert index
            entries = [
                dict(line.split(":", 1) for line in block.splitlines())
                for block in index.read().decode().strip().split("\n\n")
            ]
        listed = {f"{entry['P']}-{entry['V']}.apk": int(entry["S"]) for entry in entries}
        assert listed == {path.name: path.stat().st_size for path in shelf.glob("*.apk")}


# What installs


def test_bash_curl_and_jq_install_and_work(alpine: Alpine, server: Server) -> None:
    done = alpine.add("bash", "curl", "jq", mirrors=mirror(server))
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    fetch = f"curl -fsS {server.url}/json | jq -r .ip"
    assert alpine.sh(f"bash -c 'set -o pipefail; {fetch}'") == "203.0.113.7\n"
    assert "/bin/bash" in alpine.sh("cat /etc/shells").split()
    assert server.requests["/main/x86_64/APKINDEX.tar.gz"] == 1


@pytest.mark.parametrize(
    ("package", "script", "says"),
    [
        ("hello-noarch", "hello-noarch", "hello"),
        ("libqrencode-tools", "qrencode -t ASCII -o - hello", "####"),
        ("whois", "whois --version", "Version"),
        ("git", f"{NULL}; git init -q --bare r; git-receive-pack --advertise-refs r", "report"),
        ("openssh-client", f"{NULL}; ssh-keygen -qN '' -f k; ssh-keygen -lf k.pub", "SHA256:"),
        ("uuidgen", "uuidgen --sha1 --namespace @dns --name x", "-5"),
        ("ca-certificates", "wc -l /etc/ssl/certs/ca-certificates.crt", "ca-certificates.crt"),
        ("bigzeros", "stat -c %s /usr/share/bigzeros/zeros", str(300 << 20)),
    ],
)
def test_installs(package: str, script: str, says: str, alpine: Alpine, server: Server) -> None:
    done = alpine.add(package, mirrors=mirror(server))
    assert done.returncode == 0, done.stderr
    assert says in alpine.sh(script)


def test_every_package_of_main_installs(alpine: Alpine, server: Server, kit: Kit) -> None:
    names = [path.name.rsplit("-", 2)[0] for path in kit.repo.glob("main/x86_64/*.apk")]
    done = alpine.add(*names, mirrors=mirror(server))
    assert done.returncode == 0, done.stderr
    assert len(names) == 50


@pytest.mark.root
@needs_root
def test_owners_and_modes_are_kept(alpine: Alpine, server: Server) -> None:
    done = alpine.add("owned-files", mirrors=mirror(server))
    assert done.returncode == 0, done.stderr
    stat = "stat -c '%n %u:%g %a' owned owned/kept /usr/bin/owned-suid; stat -c %U:%G owned/made"
    assert alpine.sh(f"cd /var/lib; {stat}").splitlines() == [
        "owned 65534:42 2770",
        "owned/kept 100:42 640",
        "/usr/bin/owned-suid 0:0 4755",
        "owned:owned",
    ]


# What does not install


def test_an_unknown_key_is_refused(alpine: Alpine, server: Server) -> None:
    said = alpine.fails("stranger", mirrors=(f"{server.url}/unknown",))
    assert "UNTRUSTED signature" in said
    trusted = alpine.add(
        "stranger", mirrors=(f"{server.url}/unknown",), options=("--allow-untrusted",)
    )
    assert trusted.returncode == 0, "its key alone is what is wrong with it"


def test_the_key_is_needed(alpine: Alpine, server: Server, kit: Kit) -> None:
    for key in kit.keys.iterdir():
        (alpine.root / "etc/apk/keys" / key.name).unlink()
    assert "UNTRUSTED signature" in alpine.fails("bash", mirrors=mirror(server))


@pytest.mark.parametrize(
    ("package", "says"),
    [
        ("badhash", "badhash-1.0-r0: file format is invalid"),
        ("not-there", "not-there-1.0-r0: HTTP 404"),
        ("broken-postinst", "postinst: I always fail"),
        ("broken-preinst", "preinst: I always fail"),
        ("needs-missing", "no-such-package (no such package)"),
        ("conflicts-busybox", "busybox"),
        ("no-such-tool", "no-such-tool (no such package)"),
    ],
)
def test_fails(package: str, says: str, alpine: Alpine, server: Server) -> None:
    said = alpine.fails(package, mirrors=(*mirror(server), f"{server.url}/broken"))
    assert says in said
    assert "WARNING" not in said
    assert "UNTRUSTED" not in said


# How it serves


def test_an_answer_500_is_a_warning(alpine: Alpine, server: Server) -> None:
    said = alpine.fails("curl", mirrors=mirror(server, "/_500"))
    assert f"WARNING: fetching {server.url}/_500/main" in said
    assert "no such package" in said


def test_packages_can_be_cut_off(alpine: Alpine, server: Server) -> None:
    said = alpine.fails("curl", mirrors=mirror(server, "/_trunc"))
    assert "no such package" not in said
    assert any(path.startswith("/_trunc/main/x86_64/curl-") for path in server.requests)


def test_a_hanging_server_is_given_up(alpine: Alpine, server: Server) -> None:
    said = alpine.fails("curl", mirrors=(mirror(server, "/_hang")[0],), options=("--timeout", "1"))
    assert "WARNING" in said
    assert server.requests["/_hang/main/x86_64/APKINDEX.tar.gz"] == 1


def test_slow_is_slow(server: Server) -> None:
    start = time.monotonic()
    with urllib.request.urlopen(f"{server.url}/_slow/main/x86_64/libcap2-2.78-r0.apk") as answer:
        size = len(answer.read())
    assert time.monotonic() - start > size / tests.kit.server.SLOW_RATE / 2


def test_json(server: Server) -> None:
    with urllib.request.urlopen(f"{server.url}/json?a=b") as answer:
        assert answer.headers["Content-Type"] == "application/json"
        assert json.load(answer) == {"ip": "203.0.113.7", "ok": True, "path": "/json?a=b"}
    assert server.requests == {"/json?a=b": 1}


def test_a_connection_is_kept_for_more_requests(server: Server) -> None:
    with closing(http.client.HTTPConnection(urlsplit(server.url).netloc)) as client:
        for path in ("/json", "/main/x86_64/APKINDEX.tar.gz", "/nowhere", "/json"):
            client.request("GET", path)
            with client.getresponse() as answer:
                answer.read()
            assert answer.status == (404 if path == "/nowhere" else 200)
            connection = client.sock
        assert connection is client.sock


def test_closing_ends_every_thread_at_once(kit: Kit) -> None:
    before = set(threading.enumerate())
    server = Server(kit)
    address = (urlsplit(server.url).hostname, urlsplit(server.url).port)
    clients = []
    for request in ("/_hang/main/", "/_slow/main/x86_64/musl-1.2.5-r23.apk", "/json", ""):
        client = socket.create_connection(address)
        if request:
            client.sendall(f"GET {request} HTTP/1.1\r\nHost: kit\r\n\r\n".encode())
        clients.append(client)
    clients[1].recv(100)
    clients[2].recv(100)
    clients[0].settimeout(0.1)
    with pytest.raises(TimeoutError):
        clients[0].recv(100)

    start = time.monotonic()
    server.close()
    assert time.monotonic() - start < 1
    assert set(threading.enumerate()) == before
    clients[0].settimeout(5)
    assert clients[0].recv(100) == b""
    server.close()
    for client in clients:
        client.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


# Made once


def test_the_second_build_is_the_first(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tests.kit, "_make", lambda _: pytest.fail("made again"))
    assert build() == kit


def test_a_build_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise KitError("no")

    monkeypatch.setattr(tests.kit, "_make", fail)
    with pytest.raises(KitError, match="no"):
        build(tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_what_a_killed_build_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / "made.partial/half").mkdir(parents=True)
    made = caching.keep(tmp_path / "made", lambda folder: (folder / "whole").touch())
    assert [path.name for path in made.iterdir()] == ["whole"]
    assert not (tmp_path / "made.partial").exists()


@pytest.mark.slow
def test_two_builds_at_once_make_one(tmp_path: Path) -> None:
    code = (
        "import logging, pathlib, sys, tests.kit; logging.basicConfig(level=logging.INFO);"
        "print(*tests.kit.build(pathlib.Path(sys.argv[1])).keys.iterdir())"
    )
    builds = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            cwd=TOP,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    (key, said), (other_key, other_said) = [build.communicate() for build in builds]
    assert [build.returncode for build in builds] == [0, 0], said + other_said
    assert key == other_key
    assert (said + other_said).count("making ") == 1
    made = next(path for path in tmp_path.iterdir() if path.is_dir())
    assert {path.name for path in made.iterdir()} == {"base.tar", "repo", "keys", "private"}
    assert {path.name for path in tmp_path.iterdir()} == {made.name, f"{made.name}.lock"}


@pytest.mark.slow
def test_a_missing_library_is_told(tmp_path: Path) -> None:
    unpacked = debs.fetch(["jq", "libc6"], tmp_path)
    with pytest.raises(KitError, match="libjq"):
        unpacked.with_libraries("usr/bin/jq")


# By hand


def run_kit(*words: str) -> str:
    command = [sys.executable, "-m", "tests.kit", *words]
    return subprocess.run(command, cwd=TOP, check=True, stdout=subprocess.PIPE, text=True).stdout


def test_build_and_env_print_where_it_is(kit: Kit) -> None:
    assert run_kit("build").splitlines() == [str(kit.base), str(kit.repo), str(kit.keys)]
    script = f'{run_kit("env")}printf "%s\\n" "$CMDSVC_BASE_ALPINE" "$CMDSVC_APK_KEYS"'
    told = subprocess.run(["sh", "-c", script], check=True, capture_output=True, text=True)
    assert told.stdout.splitlines() == [str(kit.base), str(kit.keys)]


@pytest.mark.parametrize("ends", [signal.SIGTERM, signal.SIGINT])
def test_serve_ends_when_told(kit: Kit, ends: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.kit", "serve"],
        cwd=TOP,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as serving:
        assert serving.stdout
        url = serving.stdout.readline().strip()
        with urllib.request.urlopen(f"{url}/community/x86_64/APKINDEX.tar.gz") as answer:
            assert answer.read()[:2] == b"\x1f\x8b"
        serving.send_signal(ends)
        out, err = serving.communicate(timeout=10)
    assert (serving.returncode, out, err) == (0, "", "")


# Debian


@pytest.fixture(scope="module")
def debian_base() -> Path:
    try:
        return debian()
    except KitError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_the_debian_base_has_apt_and_no_devices(debian_base: Path) -> None:
    with tarfile.open(debian_base) as tar:
        entries = {entry.name.removeprefix("./").rstrip("/"): entry for entry in tar}
        sources = tar.extractfile(entries["etc/apt/sources.list"])
        assert sources
        assert b"\ndeb http" in b"\n" + sources.read()
    assert "usr/bin/apt-get" in entries
    assert entries["dev"].isdir()
    assert not any(entry.isdev() for entry in entries.values())
    assert not entries.keys() & {"etc/hostname", "etc/resolv.conf"}
    assert debian().stat() == debian_base.stat()


@pytest.mark.slow
@pytest.mark.root
@needs_root
def test_the_debian_base_installs_jq(debian_base: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        unpack(debian_base, root)
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
        script = (
            'mount --rbind /dev "$1/dev"; exec chroot "$1" sh -euc "'
            "apt-get -qq update; apt-get -qq install --no-install-recommends jq; echo 1 | jq .+1"
            '"'
        )
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-euc", script, "sh", name],
            check=False,
            capture_output=True,
            text=True,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"},
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "2"
