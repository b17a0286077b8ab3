"""Who gets in, with the real ssh client and ssh-keygen: keys, published keys, certificates."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import transcript
from tests.e2e.service_lab import PATIENCE, Said, Service, elsewhere
from tests.keysite import KeySite
from tests.ssh.keygen import certify, keygen, pair, public
from tests.ssh.skagent import PRESENT, VERIFIED, Agent, SecurityKey

pytestmark = pytest.mark.any_engine

ROOT = Path(__file__).parents[2]
REFUSED = 255
"""The ssh client's exit status where it did not get in."""


def who(said: Said) -> tuple[str, str]:
    """The user and the way, as :whoami -j has them."""
    found = json.loads(said.ok().out)[0]
    return found["name"], found["via"]


def whoami(service: Service, user: str, key: Path, *options: str) -> tuple[str, str] | None:
    """Who that is; None for nobody. Each time from another address: failed logins are limited."""
    bind = ("-o", f"BindAddress={elsewhere()}")
    said = service.ssh(":whoami", "-j", user=user, key=key, options=(*options, *bind))
    return None if said.status == REFUSED else who(said)


def fingerprint(path: Path) -> str:
    return keygen("-l", "-f", path).split()[1]


def add_line(service: Service, name: str, line: str) -> None:
    """To a user's file, as an operator's editor would; it counts within seconds."""
    path = service.home / "keys" / "users" / f"{name}.pub"
    text = path.read_text() if path.exists() else ""
    path.write_text(f"{text}{line.rstrip()}\n")


def wait_for(condition, seconds: float = 10.0) -> None:
    """Until it holds: what counts from the next look at a file."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("identity")


@pytest.fixture(scope="module")
def ca(folder: Path) -> Path:
    return pair(folder / "ca")


@pytest.fixture(scope="module")
def key(folder: Path) -> Path:
    return pair(folder / "key")


@pytest.fixture(scope="module")
def trusting(
    settings: dict[str, str], tmp_path_factory: pytest.TempPathFactory, folder: Path, ca: Path
) -> Iterator[Service]:
    """A server that trusts two CAs; nobody has a key there yet."""
    other = public(pair(folder / "second-ca", "ecdsa"))
    (folder / "revoked").write_text("# none yet\n")
    service = Service(
        tmp_path_factory.mktemp("trusting"),
        {
            **settings,
            "CMDSVC_USER_CA_KEYS": f"{public(ca)}, {other}",
            "CMDSVC_REVOKED_KEYS": str(folder / "revoked"),
            "CMDSVC_OPERATORS": "olga",
            "CMDSVC_LOG": "json",
        },
    )
    (service.home / "keys" / "users").mkdir(parents=True)
    service.start()
    try:
        yield service
    finally:
        assert service.stop() == 0, service.log


class TestKeysFolder:
    """Each line of a keys file, as its options say."""

    @pytest.fixture
    def place(self, trusting: Service, folder: Path) -> tuple[Service, Path]:
        return trusting, folder

    def login(self, place: tuple[Service, Path], name: str, options: str, *words: str) -> Said:
        """As a user with one key, whose line has these options."""
        service, folder = place
        key = pair(folder / name)
        add_line(service, name, f"{options} {public(key).read_text()}".strip())
        add_line(service, "zed", public(pair(folder / f"{name}-mark")).read_text())
        mark = folder / f"{name}-mark"
        wait_for(lambda: whoami(service, "x", mark) == ("zed", "key"))
        return service.ssh(*words, user="x", key=key)

    @pytest.mark.parametrize(
        ("name", "options", "gets_in"),
        [
            ("o1", 'from="127.0.0.1"', True),
            ("o2", 'from="127.0.0.0/8,!127.0.0.1"', False),
            ("o3", 'from="192.0.2.0/24"', False),
            ("o4", 'expiry-time="20200101"', False),
            ("o5", 'expiry-time="29990101Z"', True),
            ("o6", "restrict", True),
            ("o7", "verify-required", False),
            ("o8", "no-such-option", False),
            ("o9", "cert-authority", False),
        ],
    )
    def test_options(self, place: tuple[Service, Path], name: str, options: str, gets_in: bool):
        said = self.login(place, name, options, ":whoami", "-j")
        if gets_in:
            assert who(said) == (name, "key")
        else:
            assert said.status == REFUSED

    def test_a_command_that_runs_instead(self, place: tuple[Service, Path]):
        said = self.login(place, "o10", 'command=":whoami"', ":delete", "everything")
        assert said.ok().text.startswith("o10\tkey\t")

    def test_no_terminal(self, place: tuple[Service, Path]):
        service, folder = place
        self.login(place, "o11", "no-pty", ":whoami").ok()
        said = service.ssh(":whoami", user="x", key=folder / "o11", options=("-tt",))
        assert b"\r\n" not in said.out
        said = service.ssh(":whoami", user="x", key=folder / "o11-mark", options=("-tt",))
        assert b"\r\n" in said.ok().out

    def test_another_file_gone_and_its_connections_have_no_new_session(
        self, place: tuple[Service, Path]
    ):
        service, folder = place
        self.login(place, "o12", "", ":whoami").ok()
        control = ("-o", f"ControlPath={folder}/control")
        key = folder / "o12"
        service.ssh(
            ":whoami",
            user="x",
            key=key,
            options=(*control, "-o", "ControlMaster=yes", "-o", "ControlPersist=60"),
        ).ok()
        try:
            assert service.ssh(":whoami", user="x", key=key, options=control).ok()
            (service.home / "keys" / "users" / "o12.pub").unlink()
            wait_for(lambda: whoami(service, "x", key) is None)
            shared = service.ssh(":whoami", user="x", key=key, options=control)
            assert shared.status == REFUSED
            assert b"refused by peer" in shared.err
        finally:
            subprocess.run(
                ["ssh", *control, "-O", "exit", "127.0.0.1"], capture_output=True, check=True
            )


class TestKeysBuiltin:
    def test_the_life_of_a_key(self, own_service: Service, tmp_path: Path):
        service = own_service
        service.add_user("bob")
        service.start()
        first, second = service.key("alice"), pair(tmp_path / "second", "ecdsa")
        text = public(second).read_bytes()
        assert service.ssh(":keys", "add", stdin=b"# a comment\n" + text).ok().err == b"1 new key\n"
        assert service.ssh(":keys", "add", stdin=text).ok().err == b"0 new keys\n"
        assert whoami(service, "x", second) == ("alice", "key")
        listed = json.loads(service.ssh(":keys", "-j").ok().out)
        assert [(key["name"], key["via"], key["type"]) for key in listed] == [
            (fingerprint(public(first)), "key", "ssh-ed25519"),
            (fingerprint(public(second)), "key", "ecdsa-sha2-nistp256"),
        ]
        assert [key["comment"] for key in listed] == ["alice", "second"]
        lines = service.ssh(":keys").ok().lines
        assert [line.split("\t")[0] for line in lines] == [key["name"] for key in listed]
        mine = listed[0]["name"]
        service.ssh(":keys", "rm", mine, key=second).ok()
        assert whoami(service, "alice", first) is None
        service.ssh(":keys", "rm", listed[1]["name"], key=second).failed(77, "last key")
        service.ssh(":keys", "rm", mine, key=second).failed(127, "no key")
        for words in (("rm",), ("ls", mine), ("add", mine), ("frob",)):
            service.ssh(":keys", *words, key=second).failed(64)
        service.ssh(":keys", "add", key=second).failed(64, "no public key")
        service.ssh(":keys", "add", key=second, stdin=b"garbage").failed(64, "not a public key")
        service.ssh(":keys", "add", key=second, stdin=b"no-pty " + text).failed(64)
        service.ssh(":keys", "add", key=second, stdin=second.read_bytes()).failed(64)
        bobs = public(service.key("bob")).read_bytes()
        service.ssh(":keys", "add", key=second, stdin=bobs).failed(73, "another user's")
        assert whoami(service, "alice", service.key("bob")) == ("bob", "key")
        assert service.stop() == 0
        database = sqlite3.connect(f"file:{service.home}/var/cmdsvc.db?mode=ro", uri=True)
        try:
            entries = database.execute(
                "select user, action, detail from entries where action like 'key-%' order by id"
            ).fetchall()
        finally:
            database.close()
        assert entries == [
            ("alice", "key-add", listed[1]["name"]),
            ("alice", "key-rm", mine),
        ]

    def test_one_that_is_revoked_is_no_other_key(self, own_service: Service, tmp_path: Path):
        second = pair(tmp_path / "second")
        (tmp_path / "revoked").write_text(public(second).read_text())
        own_service.settings = {
            **own_service.settings,
            "CMDSVC_REVOKED_KEYS": str(tmp_path / "revoked"),
        }
        own_service.start()
        own_service.ssh(":keys", "add", stdin=public(second).read_bytes()).ok()
        mine = fingerprint(public(own_service.key("alice")))
        own_service.ssh(":keys", "rm", mine).failed(77, "last key")
        assert whoami(own_service, "alice", second) is None


class TestPublished:
    @pytest.fixture
    def site(self) -> Iterator[KeySite]:
        with KeySite() as site:
            yield site

    @pytest.fixture
    def gitter(self, own_service: Service, site: KeySite) -> Service:
        """A server that takes what the site publishes for alice, gail and gus."""
        own_service.settings = {
            **own_service.settings,
            "CMDSVC_KEYS_URL": site.url,
            "CMDSVC_KEYS_URL_USERS": "alice,gail,gus",
        }
        for name in ("gail", "gus", "gert"):
            site.pages[name] = public(own_service.key(name)).read_text()
        return own_service

    def test_for_the_names_that_may_only(self, gitter: Service, site: KeySite):
        gitter.start()
        gail = gitter.key("gail")
        assert whoami(gitter, "gail", gail) == ("gail", "published")
        assert whoami(gitter, "gus", gail) is None
        assert whoami(gitter, "gert", gitter.key("gert")) is None
        assert whoami(gitter, "nobody", gail) is None
        assert "/gert.keys" not in site.requests
        listed = json.loads(gitter.ssh(":keys", "-j", user="gail").ok().out)
        assert [(key["name"], key["via"]) for key in listed] == [
            (fingerprint(public(gail)), "published")
        ]
        gitter.ssh(":keys", "rm", listed[0]["name"], user="gail").failed(127)

    def test_a_key_in_the_folder_wins(self, gitter: Service, site: KeySite):
        site.pages["gail"] += public(gitter.key("alice")).read_text()
        gitter.start()
        assert whoami(gitter, "gail", gitter.key("alice")) == ("alice", "key")

    def test_nobody_can_take_for_himself_what_is_published_for_another(self, gitter: Service):
        gitter.start()
        gail = gitter.key("gail")
        assert whoami(gitter, "gail", gail) == ("gail", "published")
        stolen = public(gail).read_bytes()
        gitter.ssh(":keys", "add", stdin=stolen).failed(73, "another user's")
        gitter.ssh(":keys", "add", user="gail", stdin=stolen).ok()
        assert whoami(gitter, "x", gail) == ("gail", "key")

    def test_the_site_goes_down_and_the_server_starts_anew(self, gitter: Service, site: KeySite):
        gitter.start()
        gail = gitter.key("gail")
        assert whoami(gitter, "gail", gail) == ("gail", "published")
        site.stop()
        assert gitter.stop() == 0
        gitter.start()
        assert whoami(gitter, "gail", gail) == ("gail", "published")
        assert whoami(gitter, "gus", gitter.key("gus")) is None
        assert gitter.stop() == 0
        kept = gitter.home / "var" / "published" / "gail.json"
        content = json.loads(kept.read_text())
        for back, expected in ((23 * 3600, ("gail", "published")), (25 * 3600, None)):
            moment = time.time() - back
            kept.write_text(json.dumps({**content, "fetched_at": moment, "expires_at": moment}))
            gitter.start()
            assert whoami(gitter, "gail", gail) == expected
            assert gitter.stop() == 0

    def test_a_site_that_never_answers_stops_nobody_else(self, gitter: Service, site: KeySite):
        site.fault = "never"
        gitter.start()
        waiting = gitter.popen(":whoami", user="gail")
        try:
            wait_for(lambda: site.requests == ["/gail.keys"])
            begin = time.monotonic()
            assert whoami(gitter, "alice", gitter.key("alice")) == ("alice", "key")
            assert time.monotonic() - begin < 4
            assert waiting.poll() is None
            assert waiting.wait(PATIENCE) == REFUSED
        finally:
            waiting.kill()
            waiting.communicate()

    @pytest.mark.parametrize("fault", ["500", "garbage", "huge", "down"])
    def test_a_site_at_fault_lets_nobody_in_and_harms_nothing(
        self, fault: str, gitter: Service, site: KeySite
    ):
        site.fault = fault
        if fault == "down":
            site.stop()
        gitter.start()
        assert whoami(gitter, "gail", gitter.key("gail")) is None
        assert whoami(gitter, "alice", gitter.key("alice")) == ("alice", "key")
        assert "the keys URL, asked for gail" in gitter.log


class TestCertificates:
    """Of users who have no key in the keys folder."""

    @pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
    def test_its_user_is_the_claimed_name(
        self, kind: str, trusting: Service, ca: Path, tmp_path: Path
    ):
        key = pair(tmp_path / "key", kind)
        certify(ca, key, principals="ann,olga")
        assert whoami(trusting, "ann", key) == ("ann", "certificate")
        said = json.loads(trusting.ssh(":whoami", "-j", user="olga", key=key).ok().out)[0]
        assert said["operator"] is True
        assert said["key"] == fingerprint(public(key))
        listed = json.loads(trusting.ssh(":keys", "-j", user="ann", key=key).ok().out)
        assert [(k["name"], k["via"]) for k in listed] == [(said["key"], "certificate")]

    def test_another_ca_of_the_list(self, trusting: Service, folder: Path, key: Path):
        certify(folder / "second-ca", key)
        assert whoami(trusting, "ann", key) == ("ann", "certificate")

    @pytest.mark.parametrize(
        ("options", "principals", "says"),
        [
            (["-V", "-2h:-1h"], "ann", "expired"),
            (["-V", "+1h:+2h"], "ann", "not valid yet"),
            ([], "bob", "the user is not among its principals"),
            ([], None, "the user is not among its principals"),
            (["-O", "source-address=192.0.2.0/24"], "ann", "not to be used from this address"),
            (["-O", "critical:x@example.org=1"], "ann", "x@example.org is not known here"),
            (["-O", "verify-required"], "ann", "only a security key"),
        ],
    )
    @pytest.mark.usefixtures("ca", "key")
    def test_what_does_not_count(
        self,
        options: list[str],
        principals: str | None,
        says: str,
        trusting: Service,
        folder: Path,
    ):
        ca, key = folder / "ca", folder / "key"
        certify(ca, key, *options, principals=principals, identity=f"id of {says}")
        assert whoami(trusting, "ann", key) is None
        last = json.loads(trusting.log.splitlines()[-1])
        assert says in last["message"]
        assert (last["claimed"], last["id"]) == ("ann", f"id of {says}")

    @pytest.mark.parametrize("name", ["cmd", "public", "Ann", "../ann"])
    def test_names_that_are_nobodys(self, name: str, trusting: Service, ca: Path, key: Path):
        certify(ca, key, principals=name)
        assert whoami(trusting, name, key) is None

    def test_another_ca(self, trusting: Service, key: Path, tmp_path: Path):
        certify(pair(tmp_path / "stranger"), key)
        assert whoami(trusting, "ann", key) is None

    def test_a_key_that_is_not_the_certificates(
        self, trusting: Service, ca: Path, key: Path, tmp_path: Path
    ):
        path = certify(ca, key)
        other = pair(tmp_path / "other")
        (tmp_path / "other-cert.pub").write_bytes(path.read_bytes())
        assert whoami(trusting, "ann", other) is None

    def test_where_it_may_be_used(self, trusting: Service, ca: Path, key: Path):
        certify(ca, key, "-O", "source-address=127.0.0.0/8,192.0.2.1/32")
        assert whoami(trusting, "ann", key) == ("ann", "certificate")

    @pytest.mark.parametrize("words", [(":delete", "everything"), ("",), (":whoami", "-j")])
    def test_a_command_that_runs_instead(
        self, words: tuple[str, ...], trusting: Service, ca: Path, key: Path
    ):
        certify(ca, key, "-O", "force-command=:whoami")
        said = trusting.raw(" ".join(words), user="ann", key=key).ok()
        assert said.text.startswith("ann\tcertificate\t")

    def test_no_terminal_without_the_right_to_one(self, trusting: Service, ca: Path, key: Path):
        for option, terminal in (("clear", False), ("no-pty", False), ("permit-pty", True)):
            certify(ca, key, "-O", option)
            said = trusting.ssh(":whoami", user="ann", key=key, options=("-tt",))
            assert (b"\r\n" in said.out) is terminal

    def test_revoked(self, trusting: Service, folder: Path, ca: Path, tmp_path: Path):
        """By key, by serial, by key id, by CA: each lets the others in."""
        keys = {name: pair(tmp_path / name) for name in ("lost", "serial", "id", "fine")}
        for number, (name, key) in enumerate(keys.items(), 7):
            certify(ca, key, "-z", str(number), identity=f"{name} of ann")
        revoked = folder / "revoked"

        def admitted() -> set[str]:
            return {name for name, key in keys.items() if whoami(trusting, "ann", key)}

        def revoke(*words: str | Path, spec: str = "") -> None:
            """As an operator does: written elsewhere, then put in place."""
            (tmp_path / "spec").write_text(spec)
            keygen("-k", "-f", tmp_path / "krl", *words, tmp_path / "spec")
            (tmp_path / "krl").replace(revoked)

        try:
            assert admitted() == set(keys)
            revoke("-s", public(ca), public(keys["lost"]), spec="serial: 8\nid: id of ann\n")
            wait_for(lambda: whoami(trusting, "ann", keys["lost"]) is None)
            assert admitted() == {"fine"}
            revoked.write_text(public(ca).read_text())
            wait_for(lambda: whoami(trusting, "ann", keys["fine"]) is None)
            assert admitted() == set()
            revoked.write_text("rubbish\n")
            wait_for(lambda: not admitted() and "nobody can log in" in trusting.log)
        finally:
            revoked.write_text("")
        wait_for(lambda: admitted() == set(keys))

    def test_a_connection_ends_to_be_of_use_with_its_certificate(
        self, trusting: Service, ca: Path, key: Path, tmp_path: Path
    ):
        moment = time.time()
        ends = time.strftime("%Y%m%d%H%M%S", time.localtime(moment + 4))
        certify(ca, key, "-V", f"-1m:{ends}")
        control = ("-o", f"ControlPath={tmp_path}/control")
        trusting.ssh(
            ":whoami",
            user="ann",
            key=key,
            options=(*control, "-o", "ControlMaster=yes", "-o", "ControlPersist=60"),
        ).ok()
        try:
            wait_for(
                lambda: (
                    trusting.ssh(":whoami", user="ann", key=key, options=control).status == REFUSED
                )
            )
            assert time.time() >= moment + 3
        finally:
            subprocess.run(
                ["ssh", *control, "-O", "exit", "127.0.0.1"], capture_output=True, check=True
            )

    def test_start_and_check_say_what_is_wrong(self, trusting: Service, folder: Path):
        said = trusting.cli("check")
        assert "user certificates of 2 CA keys" in said.text
        assert "0 entries in" in said.text
        (folder / "bad").write_text("rubbish\n")
        for name in ("CMDSVC_USER_CA_KEYS", "CMDSVC_REVOKED_KEYS"):
            setting = {name: str(folder / "bad"), "CMDSVC_DATA_DIR": str(folder / "elsewhere")}
            checked = trusting.cli("check", **setting)
            assert checked.status == 1
            assert re.search(f"error.*not a public key.*{name}", checked.text)
            trusting.cli("serve", **setting).failed(64, "not a public key", name)


class TestSettings:
    @pytest.mark.parametrize(
        "url",
        [
            "http://git.example.org/{user}.keys",
            "https://git.example.org/keys",
            "https://{user}.example.org/keys",
            "{user}",
        ],
    )
    def test_a_keys_url_that_is_none(self, url: str, own_service: Service):
        said = own_service.cli("serve", CMDSVC_KEYS_URL=url)
        said.failed(64, "CMDSVC_KEYS_URL")

    def test_check(self, own_service: Service):
        url = "https://github.com/{user}.keys"
        said = own_service.cli("check", CMDSVC_KEYS_URL=url)
        assert "the keys URL counts for nobody" in said.text
        said = own_service.cli("check", CMDSVC_KEYS_URL_USERS="ann")
        assert "there is no keys URL" in said.text
        said = own_service.cli(
            "check", CMDSVC_KEYS_URL=url, CMDSVC_KEYS_URL_USERS="*", CMDSVC_OPERATORS="olga"
        )
        assert "who has the name olga" in said.text
        said = own_service.cli("check", CMDSVC_KEYS_URL_USERS="Ann")
        assert "CMDSVC_KEYS_URL_USERS" in said.text
        assert said.status == 1


class TestSecurityKeys:
    """Made of software, behind an agent; the client is the real one."""

    @pytest.fixture(params=["sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com"])
    def agent(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Agent]:
        with Agent(tmp_path / "agent", SecurityKey(request.param)) as agent:
            yield agent

    def login(self, service: Service, agent: Agent, flags: int, certificate: Path | None) -> bool:
        """Whether ann gets in, with what the key says of its user."""
        agent.key.flags = flags
        line = service.command_line(
            "-o",
            f"CertificateFile={certificate or 'none'}",
            user="ann",
            key=agent.key.write(agent.path.with_name("sk.pub")),
        )
        line[line.index("IdentityAgent=none")] = f"IdentityAgent={agent.path}"
        done = subprocess.run(
            [*line, ":whoami"], capture_output=True, timeout=PATIENCE, check=False
        )
        assert done.returncode in {0, REFUSED}
        return done.returncode == 0

    @pytest.mark.parametrize(
        ("options", "flags", "gets_in"),
        [
            ("", PRESENT, True),
            ("", PRESENT | VERIFIED, True),
            ("", 0, False),
            ("no-touch-required", 0, False),
            ("verify-required", PRESENT, False),
            ("verify-required", VERIFIED, False),
            ("verify-required", PRESENT | VERIFIED, True),
        ],
    )
    def test_in_the_keys_folder(
        self, options: str, flags: int, gets_in: bool, trusting: Service, agent: Agent
    ):
        path = trusting.home / "keys" / "users" / "ann.pub"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = agent.key.write(agent.path.with_name("sk.pub")).read_text()
        mark = agent.path.with_name("mark")
        path.write_text(f"{options} {text}{public(pair(mark)).read_text()}")
        wait_for(lambda: whoami(trusting, "x", mark) == ("ann", "key"))
        assert self.login(trusting, agent, flags, None) is gets_in
        path.unlink()

    @pytest.mark.parametrize(
        ("options", "flags", "gets_in"),
        [
            ((), PRESENT, True),
            ((), 0, False),
            (("-O", "no-touch-required"), 0, False),
            (("-O", "verify-required"), PRESENT, False),
            (("-O", "verify-required"), PRESENT | VERIFIED, True),
        ],
    )
    def test_with_a_certificate(  # noqa: PLR0917 - fixtures
        self,
        options: tuple[str, ...],
        flags: int,
        gets_in: bool,
        trusting: Service,
        folder: Path,
        agent: Agent,
    ):
        agent.key.write(agent.path.with_name("sk.pub"))
        certificate = certify(folder / "ca", agent.path.with_name("sk"), *options)
        assert self.login(trusting, agent, flags, certificate) is gets_in


def test_the_page_shows_what_happens(own_service: Service, tmp_path: Path):
    page = (ROOT / "docs" / "identity.md").read_text()
    before, after = page.split("Then no file in `keys/users`")
    own, making = before.split("## Lines with options")
    folder = tmp_path / "page"
    folder.mkdir()
    pair(folder / "laptop")
    assert transcript.run(making, own_service, folder) == 2
    (folder / "revoked.krl").write_text("")
    own_service.settings = {
        **own_service.settings,
        "CMDSVC_USER_CA_KEYS": str(folder / "user_ca.pub"),
        "CMDSVC_REVOKED_KEYS": str(folder / "revoked.krl"),
    }
    own_service.start()
    assert transcript.run(own, own_service, folder) == 5
    # Her client would go on to her own key, and get in as alice: from here on it has a stranger's.
    mine = own_service.home / "id_alice"
    mine.unlink()
    public(mine).unlink()
    pair(mine)
    assert transcript.run(after, own_service, folder) == 8
