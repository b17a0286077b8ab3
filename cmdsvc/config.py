"""The operator's settings: environment variables `CMDSVC_*`, or the same keys in `cmdsvc.toml`.

The environment wins. Only `app` and `cli` read this; everything else is given values.
"""

from __future__ import annotations

import ipaddress
import json
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from cmdsvc.engine.firewall import Destination
from cmdsvc.errors import CmdError, UsageError
from cmdsvc.metadata import parse_duration, parse_size
from cmdsvc.model import READY_MADE, Limits, valid_name, valid_user

PREFIX = "CMDSVC_"
FILE = "cmdsvc.toml"
STORE = "cmdsvc.db"
"""In the data folder, where no database URL says otherwise."""


def _words(value: Any) -> Any:
    return (
        tuple(filter(None, (w.strip() for w in value.split(","))))
        if isinstance(value, str)
        else value
    )


def _user_names(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if not valid_user(name):
            raise ValueError(f"{name!r} is not a user name")
    return names


def _names_or_all(names: tuple[str, ...]) -> tuple[str, ...]:
    _user_names(tuple(name for name in names if name != "*"))
    return names


def _command_names(words: tuple[str, ...]) -> tuple[str, ...]:
    for word in words:
        owner, _, name = word.partition("/")
        if not valid_name(name) or not (valid_user(owner) or owner == READY_MADE):
            raise ValueError(f"{word!r} is not OWNER/NAME of a command, as in {READY_MADE}/echo")
    return words


def _keys_url(url: str) -> str:
    from cmdsvc.ssh.fetching import secure  # noqa: PLC0415 - most who read settings need no HTTP

    if not url:
        return url
    scheme, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    if "{user}" not in path or "{" in scheme + host:
        raise ValueError("write {user} into its path, as in https://github.com/{user}.keys")
    if not secure(url):
        raise ValueError("it has to be https: who changes it on its way gets in")
    return url


def _destinations(words: tuple[str, ...]) -> tuple[str, ...]:
    for word in words:
        Destination.parse(word)
    return words


def _networks(words: tuple[str, ...]) -> tuple[str, ...]:
    for word in words:
        try:
            ipaddress.ip_network(word, strict=False)
        except ValueError:
            raise ValueError(f"{word!r} is not an address or a network (10.0.0.0/8)") from None
    return words


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    name = host[1:-1] if bracketed else host
    numeric = port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535
    if not name or not numeric or (":" in name) != bracketed:
        raise ValueError("write HOST:PORT, such as 127.0.0.1:2222 or [::]:22")
    return text


Duration = Annotated[float, BeforeValidator(lambda v: parse_duration(str(v))), Field(gt=0)]
Size = Annotated[int, BeforeValidator(lambda v: parse_size(str(v))), Field(gt=0)]
Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)]
Names = Annotated[Words, AfterValidator(_user_names)]
NamesOrAll = Annotated[Words, AfterValidator(_names_or_all)]
CommandNames = Annotated[Words, AfterValidator(_command_names)]
Paths = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_words)]
KeysUrl = Annotated[str, AfterValidator(_keys_url)]
Destinations = Annotated[Words, AfterValidator(_destinations)]
Address = Annotated[str, AfterValidator(_address)]
Networks = Annotated[Words, AfterValidator(_networks)]


class Settings(BaseSettings):
    """What is in force. Durations are seconds, sizes are bytes; both may be written "10m", "512M"."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, toml_file=FILE, frozen=True, extra="forbid", env_ignore_empty=True
    )

    ssh_listen: Address = "127.0.0.1:2222"
    http_listen: Address = "127.0.0.1:8022"
    data_dir: Path = Path("var")
    keys_dir: Path = Path("keys")
    database_url: str | None = None
    engine: Literal["auto", "docker", "bubblewrap"] = "auto"
    operators: Names = ()
    log: Literal["text", "json"] = "text"

    keys_url: KeysUrl = ""
    """Where the public keys of `{user}` are published; "" for nowhere."""
    keys_url_users: NamesOrAll = ()
    keys_url_stale: Duration = 86400.0
    """How long what was published counts while the site is down."""
    user_ca_keys: Paths = ()
    """Files of the public keys of CAs whose user certificates count."""
    revoked_keys: Path | None = None

    base_alpine: str = "alpine"
    base_debian: str = "debian"
    base_ubuntu: str = "ubuntu"
    alpine_mirror: str = ""
    apk_keys: Path | None = None
    docker_runtime: str | None = None
    imports: Words = ("*",)
    """Patterns of what the images are called that `:import` takes."""
    network_allow: Destinations = ()

    timeout: Duration = 600.0
    memory: Annotated[Size, Field(ge=6 << 20)] = 512 << 20
    cpus: Annotated[float, Field(gt=0, le=1024)] = 1.0
    pids: Annotated[int, Field(gt=0, le=1 << 22)] = 256
    disk: Size = 512 << 20

    warm: Annotated[int, Field(ge=0, le=1000)] = 20
    """Sandboxes at most that are made ahead of runs."""
    warm_commands: CommandNames = ()
    """Of these one always is."""
    max_runs: Annotated[int, Field(gt=0)] = 100
    max_runs_per_user: Annotated[int, Field(gt=0)] = 50
    queue_wait: Annotated[float, BeforeValidator(lambda v: parse_duration(str(v))), Field(ge=0)] = (
        2.0
    )
    """How long a run above one of the two waits for its turn."""
    max_commands: Annotated[int, Field(gt=0)] = 1000
    """Of one user."""
    max_stored: Size = 256 << 20
    """Bytes of source in all versions of one user's commands."""
    output_max: Size = 1 << 20
    """Bytes of one run's output that are kept: its beginning and its end."""
    outputs_keep: Size = 1 << 30
    """Bytes of kept output in all."""
    runs_keep: Duration = 30 * 86400.0
    """How long the records of runs are kept."""
    max_source: Size = 1 << 20
    max_body: Size = 25 << 20
    """Bytes of a request over HTTP."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    """Of HTTP, as PEM; both or none."""
    metrics_token: SecretStr = SecretStr("")
    """Who wants the figures has to say it; "" where nobody has to."""
    trusted_proxies: Networks = ()
    """Addresses and networks of proxies that say truly who their client is."""
    max_connections: Annotated[int, Field(gt=0)] = 1000
    """TCP connections at once, by SSH and by HTTP.

    Of those by SSH at most a tenth (but 40) may be before the login's end, half of them from one
    address.
    """
    login_timeout: Duration = 30.0
    max_waiting: Annotated[int, Field(gt=0)] = 1000
    """Deliveries of one command that have not ended."""
    catch_up: Annotated[float, BeforeValidator(lambda v: parse_duration(str(v))), Field(ge=0)] = (
        3600.0
    )
    """How late what a schedule says runs nevertheless, where the server was down."""
    deliveries_keep: Duration = 7 * 86400.0
    """How long a delivery is kept that has ended."""
    build_timeout: Duration = 300.0
    drain: Duration = 30.0

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @property
    def limits(self) -> Limits:
        return Limits(self.timeout, self.memory, self.cpus, self.pids, self.disk)

    @property
    def bases(self) -> dict[str, str]:
        return {
            "alpine": self.base_alpine,
            "debian": self.base_debian,
            "ubuntu": self.base_ubuntu,
        }

    @property
    def alpine_mirrors(self) -> tuple[str, ...]:
        """Repository URLs: one URL stands for its `main` and `community`, several for themselves."""
        urls = self.alpine_mirror.split()
        if len(urls) == 1:
            return tuple(f"{urls[0].rstrip('/')}/{part}" for part in ("main", "community"))
        return tuple(urls)

    @property
    def url(self) -> str:
        """The database's, by default a file in the data folder."""
        return self.database_url or f"sqlite+aiosqlite:///{self.data_dir.absolute()}/{STORE}"


def split_address(address: str) -> tuple[str, int]:
    """Host (an IPv6 address without its brackets) and port."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def load() -> Settings:
    """The settings in force. UsageError names what is wrong, each variable by its name."""
    try:
        return Settings()
    except ValidationError as error:
        wrong = "; ".join(
            f"{PREFIX}{str(e['loc'][0]).upper()}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors()
        )
        raise UsageError(wrong, "see docs/operating.md, or `cmdsvc check`") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{FILE} cannot be read: {error}", "mend it or remove it") from None


def add_operator(settings: Settings, name: str) -> str:
    """Puts `name` among the operators in `cmdsvc.toml`; returns what was done, in words.

    Raises CmdError where the file cannot be written.
    """
    if name in settings.operators:
        return f"{name} is an operator already"
    if os.environ.get(f"{PREFIX}OPERATORS"):
        return f"set {PREFIX}OPERATORS={','.join([*settings.operators, name])}: it is set, and wins over {FILE}"
    path = Path(FILE)
    line = f"operators = {json.dumps([*settings.operators, name])}\n"
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        path.write_text(_with_operators(text, line), encoding="utf-8")
    except OSError as error:
        raise CmdError(f"{FILE} cannot be changed: {error}", f"put this in: {line}") from None
    return f"{name} is an operator, by {FILE}; restart the server"


def _with_operators(text: str, line: str) -> str:
    """The TOML `text` with `line` instead of what sets the operators, or at its beginning."""
    lines = text.splitlines(keepends=True)
    start = 0
    for end in range(1, len(lines) + 1):
        statement = "".join(lines[start:end])
        if statement.lstrip().startswith("["):  # a table: keys from here on are its own
            break
        try:
            keys = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:  # it goes on over the next line
            continue
        if "operators" in keys:
            return "".join([*lines[:start], line, *lines[end:]])
        start = end
    return line + text
