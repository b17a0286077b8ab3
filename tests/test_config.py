"""The operator's settings: what each means, which wins, what is said of a wrong one."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from cmdsvc.config import Settings, add_operator, load, split_address
from cmdsvc.errors import CmdError, UsageError
from cmdsvc.model import Limits


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and no variables of ours."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.upper().startswith("CMDSVC_"):
            monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch):
    """Sets variables by the settings' names."""

    def put(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(f"CMDSVC_{name.upper()}", value)

    return put


def wrong() -> str:
    """The one line that `load` fails with."""
    with pytest.raises(UsageError) as caught:
        load()
    assert caught.value.hint
    line = str(caught.value)
    assert line.isprintable()
    assert caught.value.what in line  # nothing had to be mended
    return line


DEFAULTS: dict[str, Any] = {
    "ssh_listen": "127.0.0.1:2222",
    "http_listen": "127.0.0.1:8022",
    "data_dir": Path("var"),
    "keys_dir": Path("keys"),
    "database_url": None,
    "engine": "auto",
    "operators": (),
    "log": "text",
    "keys_url": "",
    "keys_url_users": (),
    "keys_url_stale": 86400.0,
    "user_ca_keys": (),
    "revoked_keys": None,
    "base_alpine": "alpine",
    "base_debian": "debian",
    "base_ubuntu": "ubuntu",
    "alpine_mirror": "",
    "apk_keys": None,
    "docker_runtime": None,
    "imports": ("*",),
    "network_allow": (),
    "timeout": 600.0,
    "memory": 512 << 20,
    "cpus": 1.0,
    "pids": 256,
    "disk": 512 << 20,
    "warm": 20,
    "warm_commands": (),
    "max_runs": 100,
    "max_runs_per_user": 50,
    "queue_wait": 2.0,
    "max_source": 1 << 20,
    "max_commands": 1000,
    "max_stored": 256 << 20,
    "output_max": 1 << 20,
    "outputs_keep": 1 << 30,
    "runs_keep": 30 * 86400.0,
    "max_body": 25 << 20,
    "tls_cert": None,
    "tls_key": None,
    "metrics_token": SecretStr(""),
    "trusted_proxies": (),
    "max_connections": 1000,
    "login_timeout": 30.0,
    "max_waiting": 1000,
    "catch_up": 3600.0,
    "deliveries_keep": 7 * 86400.0,
    "build_timeout": 300.0,
    "drain": 30.0,
}

# Setting, as written, what it means: each setting once at least.
MEANINGS: list[tuple[str, str, Any]] = [
    ("ssh_listen", "0.0.0.0:22", "0.0.0.0:22"),
    ("ssh_listen", "cmd.example.com:0", "cmd.example.com:0"),
    ("ssh_listen", "[::]:22", "[::]:22"),
    ("ssh_listen", "[fe80::1%eth0]:65535", "[fe80::1%eth0]:65535"),
    ("data_dir", "/srv/cmdsvc", Path("/srv/cmdsvc")),
    ("keys_dir", "../keys", Path("../keys")),
    ("database_url", "sqlite+aiosqlite:////srv/x.db", "sqlite+aiosqlite:////srv/x.db"),
    ("engine", "docker", "docker"),
    ("engine", "bubblewrap", "bubblewrap"),
    ("operators", "ann", ("ann",)),
    ("operators", " ann, bob,,c.d-e_f ,", ("ann", "bob", "c.d-e_f")),
    ("log", "json", "json"),
    ("keys_url", "https://github.com/{user}.keys", "https://github.com/{user}.keys"),
    ("keys_url", "http://[::1]:80/x/{user}", "http://[::1]:80/x/{user}"),
    ("keys_url_users", "ann, bob", ("ann", "bob")),
    ("keys_url_users", "*", ("*",)),
    ("keys_url_stale", "2d", 172800.0),
    ("user_ca_keys", "/srv/a.pub, b.pub", (Path("/srv/a.pub"), Path("b.pub"))),
    ("revoked_keys", "/srv/revoked", Path("/srv/revoked")),
    ("base_alpine", "alpine:3.20", "alpine:3.20"),
    ("base_debian", "/srv/debian.tar.zst", "/srv/debian.tar.zst"),
    ("base_ubuntu", "https://example.com/u.tar.gz", "https://example.com/u.tar.gz"),
    ("alpine_mirror", "http://a/x  http://b/y", "http://a/x  http://b/y"),
    ("apk_keys", "/srv/keys", Path("/srv/keys")),
    ("docker_runtime", "runsc", "runsc"),
    ("imports", "alpine, ghcr.io/me/*", ("alpine", "ghcr.io/me/*")),
    ("imports", "-", ("-",)),
    ("network_allow", "10.1.2.3", ("10.1.2.3",)),
    ("network_allow", "10.1.2.3:80, 192.168.0.1", ("10.1.2.3:80", "192.168.0.1")),
    ("timeout", "1.5h", 5400.0),
    ("timeout", "90", 90.0),
    ("memory", "2G", 2 << 30),
    ("memory", "64m", 64 << 20),
    ("cpus", "0.5", 0.5),
    ("pids", "32", 32),
    ("disk", "1T", 1 << 40),
    ("warm", "0", 0),
    ("warm_commands", "ann/x, cmd/echo,b.c/d-e_f", ("ann/x", "cmd/echo", "b.c/d-e_f")),
    ("max_runs", "7", 7),
    ("max_runs_per_user", "8", 8),
    ("queue_wait", "0", 0.0),
    ("queue_wait", "500ms", 0.5),
    ("max_source", "64K", 64 << 10),
    ("max_commands", "10", 10),
    ("max_stored", "1G", 1 << 30),
    ("output_max", "64K", 64 << 10),
    ("outputs_keep", "10M", 10 << 20),
    ("runs_keep", "7d", 7 * 86400.0),
    ("max_connections", "9", 9),
    ("login_timeout", "500ms", 0.5),
    ("http_listen", "0.0.0.0:80", "0.0.0.0:80"),
    ("max_body", "1G", 1 << 30),
    ("tls_cert", "/etc/tls/cert.pem", Path("/etc/tls/cert.pem")),
    ("tls_key", "/etc/tls/key.pem", Path("/etc/tls/key.pem")),
    ("metrics_token", "s3cr3t", SecretStr("s3cr3t")),
    ("trusted_proxies", "10.0.0.1, fd00::/8", ("10.0.0.1", "fd00::/8")),
    ("max_waiting", "5", 5),
    ("catch_up", "0", 0.0),
    ("catch_up", "10m", 600.0),
    ("deliveries_keep", "1d", 86400.0),
    ("build_timeout", "1d", 86400.0),
    ("drain", "2m", 120.0),
]


def test_defaults():
    assert load().model_dump() == DEFAULTS


def test_every_setting_is_tried():
    assert {name for name, _, _ in MEANINGS} == set(Settings.model_fields)


@pytest.mark.parametrize(("name", "text", "value"), MEANINGS)
def test_in_the_environment(name: str, text: str, value: Any, env):
    env(**{name: text})
    assert load().model_dump() == DEFAULTS | {name: value}


@pytest.mark.parametrize(("name", "text", "value"), MEANINGS)
def test_in_the_file(name: str, text: str, value: Any, home: Path):
    (home / "cmdsvc.toml").write_text(f'{name} = "{text}"\n')
    assert load().model_dump() == DEFAULTS | {name: value}


def test_the_files_own_types(home: Path):
    (home / "cmdsvc.toml").write_text(
        'operators = ["ann", "bob"]\nnetwork_allow = ["10.0.0.1:53"]\n'
        "timeout = 90\ndrain = 0.5\nmemory = 16777216\ncpus = 2\npids = 9\n"
    )
    assert load().model_dump() == DEFAULTS | {
        "operators": ("ann", "bob"),
        "network_allow": ("10.0.0.1:53",),
        "timeout": 90.0,
        "drain": 0.5,
        "memory": 16 << 20,
        "cpus": 2.0,
        "pids": 9,
    }


def test_the_environment_wins(home: Path, env):
    (home / "cmdsvc.toml").write_text('timeout = "7m"\noperators = ["ann"]\npids = 5\n')
    env(timeout="8m", operators="bob", pids="")
    settings = load()
    assert settings.timeout == 480
    assert settings.operators == ("bob",)
    assert settings.pids == 5  # an empty variable is none


def test_what_is_not_a_setting_in_the_environment_is_somebody_elses(env):
    env(demo="1", timeot="5s")
    assert load().model_dump() == DEFAULTS


def test_settings_stay_as_they_are():
    settings = load()
    with pytest.raises(ValueError, match="frozen"):
        settings.timeout = 1.0


ADDRESS = "write HOST:PORT, such as 127.0.0.1:2222 or [::]:22"


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        *(
            ("ssh_listen", text, ADDRESS)
            for text in [
                "2222", ":2222", "localhost", "localhost:", "localhost:ssh", "localhost:65536",
                "localhost:-1", "localhost:²", f"localhost:{'9' * 5000}", "::1:22", "::1", "[::1]",
                "[]:22", "[::1]22", "[localhost]:22", "[::1:22",
            ]
        ),
        ("engine", "podman", "'auto', 'docker' or 'bubblewrap'"),
        ("log", "xml", "'text' or 'json'"),
        ("keys_url", "https://github.com/ann.keys", "write {user} into its path"),
        ("keys_url", "https://{user}.example.org/keys", "write {user} into its path"),
        ("keys_url", "https://{user}@example.org/{user}", "write {user} into its path"),
        ("keys_url", "http://github.com/{user}.keys", "it has to be https"),
        ("keys_url", "file:///srv/{user}", "it has to be https"),
        ("keys_url_users", "ann,*,Bob", "'Bob' is not a user name"),
        ("operators", "ann,Bob", "'Bob' is not a user name"),
        ("operators", "cmd", "'cmd' is not a user name"),
        ("operators", "ann\nbob", "is not a user name"),
        *(
            ("warm_commands", f"ann/x,{word}", "is not OWNER/NAME of a command")
            for word in ("x", "/x", "ann/", "ann/x/y", "Ann/x", "public/x", "ann/:ls", "ann x")
        ),
        ("network_allow", "10.0.0.0/8", "10.0.0.0/8"),
        ("network_allow", "10.0.0.1,example.com", "example.com"),
        ("network_allow", "10.0.0.1:0", "write ADDRESS or ADDRESS:PORT"),
        ("network_allow", "::1", "write ADDRESS or ADDRESS:PORT"),
        *(
            (name, text, "expected a duration such as")
            for name in ("timeout", "login_timeout", "build_timeout", "drain", "queue_wait",
                         "runs_keep")
            for text in ("soon", "-1s", "1h30m", "inf", "true")
        ),
        *(
            (name, text, "expected a size such as")
            for name in ("memory", "disk", "max_source", "max_stored", "output_max",
                         "outputs_keep")
            for text in ("lots", "-1M", "1.5G", "1MiB")
        ),
        *(
            (name, "0", "greater than 0")
            for name in ("timeout", "login_timeout", "build_timeout", "drain", "memory", "disk",
                         "max_source", "cpus", "pids", "max_runs", "max_runs_per_user",
                         "max_connections", "max_commands", "max_stored", "output_max",
                         "outputs_keep", "runs_keep")
        ),
        *(("cpus", text, "Input should be") for text in ("one", "-1", "nan", "inf", "1025")),
        *(
            (name, text, "Input should be")
            for name in ("pids", "max_runs", "max_runs_per_user", "max_connections",
                         "max_commands")
            for text in ("many", "-1", "1.5")
        ),
        ("pids", "4194305", "less than or equal to 4194304"),
    ],
)  # fmt: skip
def test_what_is_wrong(name: str, text: str, says: str, env):
    env(**{name: text})
    line = wrong()
    assert line.startswith(f"CMDSVC_{name.upper()}: ")
    assert says in line
    assert "docs/operating.md" in line
    assert len(line) < 300


def test_everything_wrong_is_named(env):
    env(timeout="soon", memory="lots")
    line = wrong()
    assert "CMDSVC_TIMEOUT: expected a duration" in line
    assert "CMDSVC_MEMORY: expected a size" in line


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('timeot = "5s"', "CMDSVC_TIMEOT: "),
        ("timeout = true", "CMDSVC_TIMEOUT: expected a duration"),
        ("memory = 1.5", "CMDSVC_MEMORY: expected a size"),
        ("operators = [1, 2]", "CMDSVC_OPERATORS: Input should be"),
        ("operators = 5", "CMDSVC_OPERATORS: Input should be"),
        ("[limits]\npids = 5", "CMDSVC_LIMITS: "),
        ('"a\\u001b\\nb" = 1', "CMDSVC_A"),
    ],
)
def test_what_is_wrong_in_the_file(text: str, says: str, home: Path):
    (home / "cmdsvc.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        load()
    assert str(caught.value).startswith(says)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("content", [b"timeout = ", b"a = 1\na = 2", b"\xff\xfe", b"\x00"])
def test_a_file_that_is_not_toml(content: bytes, home: Path):
    (home / "cmdsvc.toml").write_bytes(content)
    assert wrong().startswith("cmdsvc.toml cannot be read: ")


def test_a_file_that_cannot_be_read(home: Path):
    (home / "cmdsvc.toml").symlink_to("/proc/self/mem")  # nothing is at its beginning
    assert wrong().startswith("cmdsvc.toml cannot be read: ")


class TestWhatOthersAreGiven:
    def test_limits(self, env):
        env(timeout="1m", memory="64M", cpus="2", pids="9", disk="1G")
        assert load().limits == Limits(60.0, 64 << 20, 2.0, 9, 1 << 30)

    def test_bases(self, env):
        env(base_debian="/srv/debian.tar")
        bases = {"alpine": "alpine", "debian": "/srv/debian.tar", "ubuntu": "ubuntu"}
        assert load().bases == bases

    @pytest.mark.parametrize(
        ("text", "urls"),
        [
            ("", ()),
            ("http://m/alpine", ("http://m/alpine/main", "http://m/alpine/community")),
            (" http://m/v3.20/ ", ("http://m/v3.20/main", "http://m/v3.20/community")),
            ("http://m/a http://n/b", ("http://m/a", "http://n/b")),
            ("http://m/a\thttp://n/b/  http://c", ("http://m/a", "http://n/b/", "http://c")),
        ],
    )
    def test_mirrors(self, text: str, urls: tuple[str, ...], env):
        env(alpine_mirror=text)
        assert load().alpine_mirrors == urls

    def test_database(self, home: Path, env):
        assert load().url == f"sqlite+aiosqlite:///{home}/var/cmdsvc.db"
        env(data_dir="/srv/x")
        assert load().url == "sqlite+aiosqlite:////srv/x/cmdsvc.db"
        env(database_url="postgresql+asyncpg://db/x")
        assert load().url == "postgresql+asyncpg://db/x"

    @pytest.mark.parametrize(
        ("address", "parts"),
        [
            ("127.0.0.1:2222", ("127.0.0.1", 2222)),
            ("localhost:0", ("localhost", 0)),
            ("[::]:22", ("::", 22)),
            ("[fe80::1%eth0]:22", ("fe80::1%eth0", 22)),
        ],
    )
    def test_addresses(self, address: str, parts: tuple[str, int]):
        assert split_address(address) == parts


class TestAddOperator:
    """What the file says afterwards, and how it looks to who wrote it."""

    def add(self, home: Path, text: str, name: str = "ann") -> str:
        """The file after `name` was added to the operators of `text`."""
        path = home / "cmdsvc.toml"
        path.write_text(text)
        before = load()
        said = add_operator(before, name)
        assert said == f"{name} is an operator, by cmdsvc.toml; restart the server"
        expected = before.model_dump() | {"operators": (*before.operators, name)}
        assert load().model_dump() == expected
        return path.read_text()

    def test_without_a_file(self, home: Path):
        add_operator(load(), "ann")
        assert (home / "cmdsvc.toml").read_text() == 'operators = ["ann"]\n'

    def test_without_operators(self, home: Path):
        assert self.add(home, "# ours\npids = 5\n") == 'operators = ["ann"]\n# ours\npids = 5\n'

    @pytest.mark.parametrize(
        "line",
        [
            'operators = ["bob", "cy"]\n',
            'operators=["bob","cy"]\n',
            '"operators" = [\n  "bob", # not ["dan"]\n  "cy",\n]\n',
            "  operators = 'bob,cy' # a string too\n",
            'operators = """bob,cy"""\n',
        ],
    )
    def test_with_operators(self, line: str, home: Path):
        text = self.add(home, f"# ours\n\npids = 5\n{line}\n# more\ntimeout = 9\n")
        wanted = 'operators = ["bob", "cy", "ann"]\n'
        assert text == f"# ours\n\npids = 5\n{wanted}\n# more\ntimeout = 9\n"

    def test_without_a_line_break_at_the_end(self, home: Path):
        assert self.add(home, 'operators = ["bob"]') == 'operators = ["bob", "ann"]\n'
        assert self.add(home, "pids = 5") == 'operators = ["ann"]\npids = 5'

    def test_looks_like_operators_and_is_not(self, home: Path):
        text = '# operators = ["no"]\nbase_alpine = """\noperators = []\n"""\n'
        assert self.add(home, text) == f'operators = ["ann"]\n{text}'

    @pytest.mark.parametrize("table", ["[later]", " [later]", "[[later]]"])
    def test_tables_keep_their_own(self, table: str, home: Path):
        settings = load()
        path = home / "cmdsvc.toml"
        path.write_text(f'pids = 5\n{table}\noperators = ["bob"]\n')
        add_operator(settings, "ann")
        content = tomllib.loads(path.read_text())
        later = {"operators": ["bob"]}
        assert content.pop("later") in (later, [later])
        assert content == {"operators": ["ann"], "pids": 5}

    def test_one_after_the_other(self, home: Path):
        for name in ("ann", "bob", "cy"):
            add_operator(load(), name)
        assert (home / "cmdsvc.toml").read_text() == 'operators = ["ann", "bob", "cy"]\n'

    def test_who_is_one_already(self, home: Path, env):
        env(operators="ann")
        assert add_operator(load(), "ann") == "ann is an operator already"
        assert not (home / "cmdsvc.toml").exists()

    def test_the_variable_would_win(self, home: Path, env):
        env(operators="ann")
        said = add_operator(load(), "bob")
        assert "CMDSVC_OPERATORS=ann,bob" in said
        assert not (home / "cmdsvc.toml").exists()

    def test_a_file_that_cannot_be_written(self, home: Path):
        settings = load()
        (home / "cmdsvc.toml").mkdir()
        with pytest.raises(CmdError, match=r"cmdsvc\.toml cannot be changed") as caught:
            add_operator(settings, "ann")
        assert str(caught.value).endswith('put this in: operators = ["ann"]')
