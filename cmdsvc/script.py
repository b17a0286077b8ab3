"""From an uploaded text to a Script: the `#!cmd` line, the shebang, the metadata; pure.

Every error is a DataError that names the line of the upload, counted from 1.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cmdsvc.errors import DataError
from cmdsvc.model import Limits, Network

MAX_SIZE = 1 << 20
"""Bytes of a source, where the operator has not said otherwise."""
MAX_PACKAGES = 200
MAX_PACKAGE = 128
"""Characters of one package's name and version."""
MAX_SHEBANG = 255
"""Bytes, without the line break: the kernel reads 256 (BINPRM_BUF_SIZE in linux/binfmts.h)."""
MAX_METADATA = 8192
"""Bytes between the lines that open and close the block."""
MAX_METADATA_LINES = 100
MAX_DESCRIPTION = 200
"""Characters."""
MAX_ACCEPT_ENV = 64
"""Names."""


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


@dataclass(frozen=True, slots=True)
class Script:
    """An upload, understood. Exactly one of `body` and `utility` is there.

    What the shebang says is decoded as os.fsdecode does in a UTF-8 locale, so that any bytes
    survive.
    """

    base: str
    tag: str
    """"" where it names none."""
    packages: tuple[str, ...]
    """In the order written, doubles included."""
    interpreter: tuple[str, ...]
    """The shebang's words. The kernel hands all after the first over as one argument."""
    body: bytes | None
    """From the shebang on, to be executed as a file; None in the utility form."""
    utility: tuple[bytes, ...] | None
    """In the utility form the program (absolute, or to be found on PATH) and the arguments that
    go before the caller's."""
    metadata: Metadata
    warnings: tuple[str, ...] = ()
    """What was mended, a line each."""

    @property
    def programs(self) -> tuple[str, ...]:
        """What the image must have for it to run: absolute paths, or names to be found on PATH.

        After `env` its program is among them, where it can be told without doing env's work. To
        be encoded by os.fsencode, as all of the shebang.
        """
        program = _env_program(self.interpreter)
        return (self.interpreter[0], program) if program else self.interpreter[:1]


def parse(
    source: bytes,
    limits: Limits | None = None,
    bases: Collection[str] = ("alpine", "debian", "ubuntu"),
    max_size: int = MAX_SIZE,
) -> Script:
    """What `source` says. Metadata above `limits` is an error; None: any sensible value is fine.

    What was accepted once is best parsed without `limits`, which may be lower now; `limits_of`
    keeps within them. Raises DataError and nothing else, whatever `source` is.
    """
    if len(source) > max_size:
        raise DataError(
            f"the source has {len(source)} bytes, more than the {max_size} allowed",
            "let the script fetch what is large, or read it from stdin",
        )
    text, warnings = _mend(source)
    lines = text.split(b"\n")
    start = next((i for i, line in enumerate(lines) if line.strip()), None)
    if start is None:
        raise DataError("line 1: the source is empty", "begin with '#!cmd alpine'")
    base, tag, packages = _header(start, lines[start], bases)

    block = _find_block(lines, start + 1)
    in_block = range(block.first, block.last + 1) if block else range(0)
    meant = (i for i in range(start + 1, len(lines)) if lines[i].strip() and i not in in_block)
    shebang = next(meant, None)
    if shebang is None:
        raise _bad(start + 1, "there is no script", "go on with a shebang, such as '#!/bin/sh'")
    utility = next(meant, None) is None
    interpreter = _shebang(shebang, lines[shebang], utility=utility)
    return Script(
        base=base,
        tag=tag,
        packages=packages,
        interpreter=interpreter,
        body=None if utility else b"\n".join(lines[shebang:]),
        utility=tuple(_encode(word) for word in interpreter) if utility else None,
        metadata=_metadata(block, limits) if block else Metadata(),
        warnings=warnings,
    )


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


def _bad(index: int, what: str, hint: str = "") -> DataError:
    return DataError(f"line {index + 1}: {what}", hint)


def _encode(word: str) -> bytes:
    return word.encode("utf-8", "surrogateescape")


def _mend(source: bytes) -> tuple[bytes, tuple[str, ...]]:
    if (nul := source.find(b"\0")) >= 0:
        raise _bad(source.count(b"\n", 0, nul), "a NUL byte", "save the script as UTF-8 text")
    warnings = []
    if source.startswith(b"\xef\xbb\xbf"):
        source = source[3:]
        warnings.append("the UTF-8 byte order mark at the beginning was dropped")
    if b"\r\n" in source:
        source = source.replace(b"\r\n", b"\n")
        warnings.append("line ends of Windows (CRLF) were changed to LF")
    return source, tuple(warnings)


_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
# After apk-world(5): name, @tag of a repository, a version constraint. A colon is in what a
# package provides ("cmd:dig"). No slash: apk would take it for a file or an URL.
_APK = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9+._:-]*(?:@[A-Za-z0-9][A-Za-z0-9_.-]*)?"
    r"(?:(?:[<>]=?|[<>]?~|~?=|=~)[0-9][A-Za-z0-9._+~-]*)?"
)
# After apt-get(8) and deb-version(7): name, architecture, version or release.
_APT = re.compile(
    r"[a-z0-9][a-z0-9+.-]*(?::[a-z0-9][a-z0-9-]*)?"
    r"(?:=[0-9][A-Za-z0-9.+:~-]*|/[A-Za-z0-9][A-Za-z0-9.+_-]*)?"
)


def _header(index: int, line: bytes, bases: Collection[str]) -> tuple[str, str, tuple[str, ...]]:
    choice = ", ".join(sorted(bases))
    match line.split(maxsplit=1):
        case [b"#!cmd" | b"#!cmd.io", *_] if line.startswith(b"#!"):
            pass
        case _:
            raise _bad(index, "this is not a '#!cmd' line", "begin with '#!cmd alpine'")
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise _bad(index, "the '#!cmd' line is not UTF-8") from None
    _check_printable(index, text)
    words = text.split()[1:]
    if not words:
        raise _bad(index, "no base is named", f"name one of {choice}, as in '#!cmd alpine'")
    base, colon, tag = words[0].partition(":")
    if base not in bases:
        raise _bad(index, f"unknown base {_quote(base)}", f"use one of {choice}")
    if colon and not _TAG.fullmatch(tag):
        raise _bad(index, f"{_quote(tag)} cannot be a tag", f"write it like '{base}:3.20'")
    packages = tuple(words[1:])
    if len(packages) > MAX_PACKAGES:
        raise _bad(index, f"{len(packages)} packages, more than the {MAX_PACKAGES} allowed")
    pattern = _APK if base == "alpine" else _APT
    for package in packages:
        # apt-get takes a minus at the end for the wish to remove the package.
        if len(package) > MAX_PACKAGE or package.endswith("-") or not pattern.fullmatch(package):
            raise _bad(
                index,
                f"{_quote(package)} cannot be a package of {base}",
                "separate packages by spaces, and spell each as the package manager does",
            )
    return base, tag, packages


def _check_printable(index: int, text: str) -> None:
    if text.isprintable():
        return
    for character in text:
        if not (character.isprintable() or character == "\t" or "\udc80" <= character <= "\udcff"):
            raise _bad(index, f"character U+{ord(character):04X} cannot stand here")


def _quote(word: str) -> str:
    return repr(word if len(word) <= MAX_PACKAGE else f"{word[:MAX_PACKAGE]}...")


def _shebang(index: int, line: bytes, *, utility: bool) -> tuple[str, ...]:
    if not line.startswith(b"#!"):
        raise _bad(index, "this must be a shebang", "put '#!/bin/sh' before it")
    if not utility and len(line) > MAX_SHEBANG:
        raise _bad(index, f"the shebang is longer than {MAX_SHEBANG} bytes")
    text = line[2:].decode("utf-8", "surrogateescape")
    _check_printable(index, text)
    words = tuple(text.split())
    if not words:
        raise _bad(index, "the shebang names no program", "write it like '#!/bin/sh'")
    program = words[0]
    if not program.startswith("/") and ("/" in program or not utility):
        raise _bad(
            index,
            f"{_quote(program)} is not an absolute path",
            f"write it like {_quote('#!/bin/' + (program.rpartition('/')[2] or 'sh'))}",
        )
    if not utility and _is_env(program):
        rest = " ".join(words[1:])
        if not rest:
            raise _bad(index, "env names no program", "write it like '#!/usr/bin/env bash'")
        # The kernel hands over one argument: env would look for a program "bash -e".
        if len(words) > 2 and not _SPLITS.match(words[1]):
            hint = "name the interpreter's path, as in '#!/bin/bash -e', or write env -S"
            raise _bad(index, f"env takes one word here, not {_quote(rest)}", hint)
    return words


_SPLITS = re.compile(r"-[0iv]*S|--split-string(=|$)")
"""The option of env that makes it split what follows into words."""


def _is_env(program: str) -> bool:
    return program.rpartition("/")[2] == "env"


def _env_program(words: Sequence[str]) -> str | None:
    """The program that env runs; None where there is none or only env itself could tell."""
    if not _is_env(words[0]):
        return None
    for word in words[1:]:
        name = _SPLITS.sub("", word, count=1) if word.startswith("-") else word
        if not name or "=" in name:
            continue
        # Options that take a value; quotes, escapes and variables that -S knows.
        return None if name.startswith("-") or re.search(r"[\"'\\$]", name) else name
    return None


@dataclass(frozen=True, slots=True)
class _Block:
    first: int
    """Index of the line that opens it."""
    last: int
    """Index of the line that closes it."""
    content: tuple[bytes, ...]
    """The lines between, without their leaders."""


_OPENING = re.compile(rb"(#|//|--|;) /// cmd[ \t]*")


def _find_block(lines: Sequence[bytes], start: int) -> _Block | None:
    block: _Block | None = None
    index = start
    while index < len(lines):
        line = lines[index]
        if b" /// cmd" in line and (opening := _OPENING.fullmatch(line)):
            if block:
                raise _bad(index, f"a second metadata block, after that of line {block.first + 1}")
            block = _read_block(lines, index, opening[1])
            index = block.last
        index += 1
    return block


def _read_block(lines: Sequence[bytes], first: int, leader: bytes) -> _Block:
    content: list[bytes] = []
    for index in range(first + 1, len(lines)):
        line = lines[index]
        if line.rstrip(b" \t") == leader + b" ///":
            return _Block(first, index, tuple(content))
        if line != leader and not line.startswith(leader + b" "):
            break
        content.append(line[len(leader) + 1 :])
    mark = leader.decode()
    raise _bad(
        first,
        "the metadata block is not closed",
        f"begin each of its lines with '{mark} ', and end it with '{mark} ///'",
    )


def _metadata(block: _Block, limits: Limits | None) -> Metadata:
    ceilings: Mapping[str, float] = asdict(limits) if limits else {}
    fields: dict[str, Any] = {}
    for key, value in _toml(block).items():
        try:
            fields[key] = _value(key, value, ceilings.get(key, math.inf))
        except ValueError as error:
            raise _bad(_line_of(key, block), f"{_quote(key)}: {error}") from None
    return Metadata(**fields)


def _toml(block: _Block) -> dict[str, Any]:
    if len(block.content) > MAX_METADATA_LINES or sum(map(len, block.content)) > MAX_METADATA:
        raise _bad(
            block.first,
            f"more metadata than {MAX_METADATA_LINES} lines or {MAX_METADATA} bytes",
        )
    lines = []
    for index, line in enumerate(block.content, block.first + 1):
        try:
            lines.append(line.decode())
        except UnicodeDecodeError:
            raise _bad(index, "the metadata is not UTF-8") from None
    try:
        return tomllib.loads("\n".join([*lines, ""]))
    except RecursionError:
        raise _bad(block.first, "the metadata is nested too deeply") from None
    except ValueError as error:  # its subclass TOMLDecodeError, and what int() says of a huge one
        what, _, place = str(error).rpartition(" (at ")
        number = re.match(r"line ([0-9]+)", place)
        index = block.first + int(number[1]) if number else _line_of(None, block)
        raise _bad(index, f"the metadata is not TOML: {(what or place)[:200]}") from None


def _line_of(key: str | None, block: _Block) -> int:
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
    if key in _LATER:
        raise ValueError("not yet supported")
    if number := _NUMBERS.get(key):
        return number.read(value, ceiling)
    match key, value:
        case "description", str() if value.isprintable() and len(value) <= MAX_DESCRIPTION:
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
    known = ", ".join(sorted(["description", "network", "accept_env", *_NUMBERS]))
    raise ValueError(f"unknown key; there are {known}")


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
# What the service sets, and what makes a loader or a shell run something else.
_RESERVED = re.compile(
    r"CMD_.*|SSH_.*|LD_.*|CMDSVC_.*|PATH|HOME|USER|LOGNAME|SHELL|PWD|OLDPWD|REMOTE_ADDR|"
    r"SERVER_SOFTWARE|IFS|ENV|BASH_ENV|BASHOPTS|SHELLOPTS|PS4|GCONV_PATH|GLIBC_TUNABLES"
)


def _variable(name: object) -> str:
    match name:
        case str() if _RESERVED.fullmatch(name):
            raise ValueError(f"{_quote(name)} is not for a caller to set")
        case str() if _VARIABLE.fullmatch(name):
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
_LATER = frozenset({"git_receive", "keep_output", "schedule", "http"})
