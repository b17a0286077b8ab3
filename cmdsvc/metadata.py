"""What a script says about itself: a comment block of TOML, in the manner of PEP 723; pure.

Every error is a DataError that names the line of the upload, counted from 1; the lines of an
upload are counted from 0 where an index is handed over.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from cmdsvc import cron
from cmdsvc.errors import DataError
from cmdsvc.model import Limits, Network

MAX_METADATA = 8192
"""Bytes between the lines that open and close the block."""
MAX_METADATA_LINES = 100
MAX_DESCRIPTION = 200
"""Characters."""
MAX_ACCEPT_ENV = 64
"""Names."""
MAX_ORIGINS = 32
MAX_QUOTED = 128
"""Characters of an upload that an error repeats."""


def valid_description(text: str) -> bool:
    return text.isprintable() and len(text) <= MAX_DESCRIPTION


class Response(StrEnum):
    """How a reply over HTTP is made of what the script writes."""

    PLAIN = "plain"
    """It is the body."""
    CGI = "cgi"
    """Header fields, a blank line, the body (RFC 3875 section 6)."""


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
"""What a script can take over HTTP."""


@dataclass(frozen=True, slots=True)
class Http:
    """The table [http]: the script over HTTP."""

    response: Response = Response.PLAIN
    methods: tuple[str, ...] = ("GET", "HEAD", "POST")
    cors: tuple[str, ...] = ()
    """Origins whose pages may call it; ("*",) for all."""
    public: bool = False
    """Whether it is for those too who say nothing of who they are."""
    content_type: str = "text/plain; charset=utf-8"
    """Of a plain reply."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a script says about itself; None where it says nothing."""

    description: str = ""
    timeout: float | None = None
    """Seconds."""
    memory: int | None = None
    """Bytes."""
    cpus: float | None = None
    pids: int | None = None
    network: Network | None = None
    accept_env: tuple[str, ...] = ()
    """Names of the variables that a caller may set."""
    keep_output: bool = False
    """Whether what a run writes is kept, for `:logs`, although somebody reads it."""
    git_receive: bool = False
    """Whether it takes a git push."""
    http: Http = Http()
    schedule: str | None = None
    """When it runs by itself: five fields of crontab(5), or @daily and its kind, in UTC."""


def limits_of(metadata: Metadata, default: Limits) -> Limits:
    """The limits of a run: `default`, the operator's, which metadata can only lower."""
    return Limits(
        timeout=min(metadata.timeout or default.timeout, default.timeout),
        memory=min(metadata.memory or default.memory, default.memory),
        cpus=min(metadata.cpus or default.cpus, default.cpus),
        pids=min(metadata.pids or default.pids, default.pids),
        disk=default.disk,
    )


_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)(ms|s|m|h|d|)")
_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"([0-9]{1,15})([KMGT]?)", re.IGNORECASE)


def parse_duration(text: str) -> float:
    """Seconds: "30s", "5m", "1.5h", "1d", "500ms", or a plain number of them; may be zero.

    Raises ValueError.
    """
    if match := _DURATION.fullmatch(text):
        return float(match[1]) * _SECONDS[match[2]]
    raise ValueError("expected a duration such as 500ms, 30s, 5m or 1h")


def parse_size(text: str) -> int:
    """Bytes: "64K", "256M", "1G", "1T" (powers of 1024), or a plain number of them; may be zero.

    Raises ValueError.
    """
    if match := _SIZE.fullmatch(text):
        return int(match[1]) << 10 * " KMGT".index(match[2].upper() or " ")
    raise ValueError("expected a size such as 64K, 256M or 1G")


def line_error(index: int, what: str, hint: str = "") -> DataError:
    """What is wrong with the line that `index` counts from 0."""
    return DataError(f"line {index + 1}: {what}", hint)


def quote(word: str) -> str:
    """`word` as an error shows it: in quotes, printable, not too long."""
    return repr(word if len(word) <= MAX_QUOTED else f"{word[:MAX_QUOTED]}...")


@dataclass(frozen=True, slots=True)
class Block:
    """Where the metadata stand in an upload, and what is written there."""

    first: int
    """Index of the line that opens it."""
    last: int
    """Index of the line that closes it."""
    content: tuple[bytes, ...]
    """The lines between, without their leaders."""


_OPENING = re.compile(rb"(#|//|--|;) /// cmd[ \t]*")


def find_block(lines: Sequence[bytes], start: int) -> Block | None:
    """The metadata block among `lines`, from index `start` on, if there is one.

    Raises DataError where it is not closed, or where there are two.
    """
    block: Block | None = None
    index = start
    while index < len(lines):
        line = lines[index]
        if b" /// cmd" in line and (opening := _OPENING.fullmatch(line)):
            if block:
                raise line_error(
                    index, f"a second metadata block, after that of line {block.first + 1}"
                )
            block = _read_block(lines, index, opening[1])
            index = block.last
        index += 1
    return block


def _read_block(lines: Sequence[bytes], first: int, leader: bytes) -> Block:
    content: list[bytes] = []
    for index in range(first + 1, len(lines)):
        line = lines[index]
        if line.rstrip(b" \t") == leader + b" ///":
            return Block(first, index, tuple(content))
        if line != leader and not line.startswith(leader + b" "):
            break
        content.append(line[len(leader) + 1 :])
    mark = leader.decode()
    raise line_error(
        first,
        "the metadata block is not closed",
        f"begin each of its lines with '{mark} ', and end it with '{mark} ///'",
    )


def read(block: Block, limits: Limits | None) -> Metadata:
    """What the block says. Raises DataError, also for what is above `limits`; None: no bounds."""
    ceilings: Mapping[str, float] = asdict(limits) if limits else {}
    fields: dict[str, Any] = {}
    for key, value in _toml(block).items():
        try:
            if key == "http":
                fields[key] = _http(value, block)
            else:
                fields[key] = _value(key, value, ceilings.get(key, math.inf))
        except ValueError as error:
            raise line_error(_line_of(key, block), f"{quote(key)}: {error}") from None
    return Metadata(**fields)


def _http(table: object, block: Block) -> Http:
    if not isinstance(table, dict):
        raise ValueError("expected a table, [http]")  # noqa: TRY004 - the caller's word for it
    fields: dict[str, Any] = {}
    for key, value in table.items():
        try:
            fields[key] = _http_value(key, value)
        except ValueError as error:
            line = re.compile(rb"[ \t]*" + re.escape(key.encode()) + rb"[ \t]*=")
            begin = _line_of("http", block) - block.first - 1
            found = (i for i in range(begin, len(block.content)) if line.match(block.content[i]))
            index = block.first + 1 + next(found, begin)
            raise line_error(index, f"{quote('http.' + key)}: {error}") from None
    return Http(**fields)


_ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?")
_CONTENT_TYPE = re.compile(
    r"[\w!#$&^.+-]{1,64}/[\w!#$&^.+-]{1,64}(; ?[\w!#$&^.+-]+=[\w!#$&^.+-]+){0,4}", re.ASCII
)


def _http_value(key: str, value: object) -> object:
    match key, value:
        case "response", "plain" | "cgi":
            return Response(value)
        case "response", _:
            raise ValueError('expected "plain" or "cgi"')
        case "methods", [*words] if words and all(word in METHODS for word in words):
            return tuple(dict.fromkeys(words))
        case "methods", _:
            raise ValueError(f"expected a list of {', '.join(METHODS)}")
        case "cors", bool():
            return ("*",) if value else ()
        case "cors", [*words] if len(words) <= MAX_ORIGINS and all(map(_is_origin, words)):
            return tuple(words)
        case "cors", _:
            raise ValueError(
                f'expected true, or a list of at most {MAX_ORIGINS} origins like "https://example.org"'
            )
        case "public", bool():
            return value
        case "public", _:
            raise ValueError("expected true or false")
        case "content_type", str() if _CONTENT_TYPE.fullmatch(value):
            return value
        case "content_type", _:
            raise ValueError('expected a media type such as "application/json"')
    raise ValueError("unknown key; there are content_type, cors, methods, public, response")


def _is_origin(word: object) -> bool:
    return isinstance(word, str) and (word == "*" or _ORIGIN.fullmatch(word) is not None)


def _toml(block: Block) -> dict[str, Any]:
    if len(block.content) > MAX_METADATA_LINES or sum(map(len, block.content)) > MAX_METADATA:
        raise line_error(
            block.first,
            f"more metadata than {MAX_METADATA_LINES} lines or {MAX_METADATA} bytes",
        )
    lines = []
    for index, line in enumerate(block.content, block.first + 1):
        try:
            lines.append(line.decode())
        except UnicodeDecodeError:
            raise line_error(index, "the metadata is not UTF-8") from None
    try:
        return tomllib.loads("\n".join([*lines, ""]))
    except RecursionError:
        raise line_error(block.first, "the metadata is nested too deeply") from None
    except ValueError as error:  # its subclass TOMLDecodeError, and what int() says of a huge one
        what, _, place = str(error).rpartition(" (at ")
        number = re.match(r"line ([0-9]+)", place)
        index = block.first + int(number[1]) if number else _line_of(None, block)
        raise line_error(index, f"the metadata is not TOML: {(what or place)[:200]}") from None


def _line_of(key: str | None, block: Block) -> int:
    """The index of the line on which the top-level `key` begins, or else what is not TOML."""
    start = 0
    for end in range(1, len(block.content) + 1):
        try:
            statement = tomllib.loads(b"\n".join(block.content[start:end]).decode())
        except (ValueError, RecursionError):
            continue  # it goes on over the next line, or is wrong
        if key in statement:
            break
        start = end
    return block.first + 1 + start


def _value(key: str, value: object, ceiling: float) -> object:
    if number := _NUMBERS.get(key):
        return number.read(value, ceiling)
    match key, value:
        case "description", str() if valid_description(value):
            return value
        case "description", _:
            raise ValueError(f"expected one line of at most {MAX_DESCRIPTION} characters")
        case "network", "internet" | "none":
            return Network(value)
        case "network", _:
            raise ValueError('expected "internet" or "none"')
        case "accept_env", list() if len(value) <= MAX_ACCEPT_ENV:
            return tuple(dict.fromkeys(_variable(name) for name in value))
        case "accept_env", _:
            raise ValueError(f"expected a list of at most {MAX_ACCEPT_ENV} names")
        case "keep_output" | "git_receive", bool():
            return value
        case "keep_output" | "git_receive", _:
            raise ValueError("expected true or false")
        case "schedule", str():
            return cron.parse(value).expression
        case "schedule", _:
            raise ValueError('expected an expression of crontab(5), such as "0 4 * * *"')
    known = [
        *("description", "network", "accept_env", "keep_output", "git_receive", "http", "schedule"),
        *_NUMBERS,
    ]
    raise ValueError(f"unknown key; there are {', '.join(sorted(known))}")


VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
"""The name of an environment variable; always matched whole."""
# What the service sets, and what makes a loader or a shell run something else.
RESERVED = re.compile(
    r"CMD_.*|SSH_.*|LD_.*|CMDSVC_.*|PATH|HOME|USER|LOGNAME|SHELL|PWD|OLDPWD|REMOTE_ADDR|"
    r"SERVER_SOFTWARE|IFS|ENV|BASH_ENV|BASHOPTS|SHELLOPTS|PS4|GCONV_PATH|GLIBC_TUNABLES"
)


def _variable(name: object) -> str:
    match name:
        case str() if RESERVED.fullmatch(name):
            raise ValueError(f"{quote(name)} is not for a caller to set")
        case str() if VARIABLE.fullmatch(name):
            return name
    raise ValueError("expected names of variables: letters, digits and _")


@dataclass(frozen=True, slots=True)
class _Number:
    expected: str
    low: float
    high: float
    spell: Callable[[float], str]
    parse: Callable[[str], float] | None = None
    """Reads the text form, where there is one."""
    whole: bool = False

    def read(self, value: object, ceiling: float) -> float:
        match value:
            case str() if self.parse:
                number = self.parse(value)
            case float() if not self.whole:
                number = value
            case int() if not isinstance(value, bool):
                number = value
            case _:
                raise ValueError(f"expected {self.expected}")
        if not self.low <= number <= self.high:  # nor is NaN
            bounds = f"from {self.spell(self.low)} to {self.spell(self.high)}"
            raise ValueError(f"out of range; it can be {bounds}")
        if number > ceiling:
            raise ValueError(f"above this server's limit; at most {self.spell(ceiling)}")
        return number


def _spell_duration(value: float) -> str:
    unit = next((u for u in "dhm" if value % _SECONDS[u] == 0), "s")
    return f"{value / _SECONDS[unit]:g}{unit}"


def _spell_size(value: float) -> str:
    power = next((p for p in (4, 3, 2, 1) if value % (1 << 10 * p) == 0), 0)
    return f"{int(value) >> 10 * power}{' KMGT'[power].strip()}"


# The least memory and cpus are what a Docker engine takes; the most are beyond any machine.
_NUMBERS: Mapping[str, _Number] = {
    "timeout": _Number(
        'a duration such as "30s"', 0.001, 366 * 86400, _spell_duration, parse_duration
    ),
    "memory": _Number(
        'a size such as "256M"', 6 << 20, 1 << 50, _spell_size, parse_size, whole=True
    ),
    "cpus": _Number("a number", 0.01, 4096, str),
    "pids": _Number("a whole number", 1, 1 << 22, str, whole=True),
}
