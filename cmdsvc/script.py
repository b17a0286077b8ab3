"""From an uploaded text to a Script: the `#!cmd` line, the shebang, what follows; pure.

Every error is a DataError that names the line of the upload, counted from 1.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cmdsvc import image
from cmdsvc.errors import DataError, UsageError
from cmdsvc.metadata import Metadata, find_block, line_error, quote, read
from cmdsvc.model import Limits

MAX_SIZE = 1 << 20
"""Bytes of a source, where the operator has not said otherwise."""
MAX_PACKAGES = 200
MAX_PACKAGE = 128
"""Characters of one package's name and version."""
MAX_SHEBANG = 255
"""Bytes, without the line break: the kernel reads 256 (BINPRM_BUF_SIZE in linux/binfmts.h)."""


@dataclass(frozen=True, slots=True)
class Script:
    """An upload, understood. Exactly one of `body` and `utility` is there.

    What the shebang says is decoded as os.fsdecode does in a UTF-8 locale, so that any bytes
    survive.
    """

    base: str
    """Of an imported image NAME@sha256:DIGITS, with neither packages nor an interpreter."""
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
    go before the caller's; none of an imported image, which knows what it runs."""
    metadata: Metadata
    warnings: tuple[str, ...] = ()
    """What was mended, a line each."""

    @property
    def imported(self) -> bool:
        return imported(self.base)

    @property
    def programs(self) -> tuple[str, ...]:
        """What the image must have for it to run: absolute paths, or names to be found on PATH.

        After `env` its program is among them, where it can be told without doing env's work. To
        be encoded by os.fsencode, as all of the shebang.
        """
        program = _env_program(self.interpreter) if self.interpreter else None
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

    block = find_block(lines, start + 1)
    in_block = range(block.first, block.last + 1) if block else range(0)
    meant = (i for i in range(start + 1, len(lines)) if lines[i].strip() and i not in in_block)
    shebang = next(meant, None)
    if shebang is not None and imported(base):
        raise line_error(
            shebang,
            "an image runs its own entry point, and no script",
            "leave all out but the metadata, or name a base as in '#!cmd alpine'",
        )
    if shebang is None and not imported(base):
        raise line_error(
            start + 1, "there is no script", "go on with a shebang, such as '#!/bin/sh'"
        )
    utility = next(meant, None) is None
    interpreter = () if shebang is None else _shebang(shebang, lines[shebang], utility=utility)
    return Script(
        base=base,
        tag=tag,
        packages=packages,
        interpreter=interpreter,
        body=None if utility else b"\n".join(lines[shebang:]),
        utility=tuple(_encode(word) for word in interpreter) if utility else None,
        metadata=read(block, limits) if block else Metadata(),
        warnings=warnings,
    )


def imported(base: str) -> bool:
    """Whether it is an existing image, and nothing that packages could be added to."""
    return "@" in base


def _encode(word: str) -> bytes:
    return word.encode("utf-8", "surrogateescape")


def _mend(source: bytes) -> tuple[bytes, tuple[str, ...]]:
    if (nul := source.find(b"\0")) >= 0:
        raise line_error(source.count(b"\n", 0, nul), "a NUL byte", "save the script as UTF-8 text")
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
            raise line_error(index, "this is not a '#!cmd' line", "begin with '#!cmd alpine'")
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise line_error(index, "the '#!cmd' line is not UTF-8") from None
    _check_printable(index, text)
    words = text.split()[1:]
    if not words:
        raise line_error(index, "no base is named", f"name one of {choice}, as in '#!cmd alpine'")
    if "@" in words[0]:
        return _image(index, words), "", ()
    base, colon, tag = words[0].partition(":")
    if base not in bases:
        raise line_error(index, f"unknown base {quote(base)}", f"use one of {choice}")
    if colon and not _TAG.fullmatch(tag):
        raise line_error(index, f"{quote(tag)} cannot be a tag", f"write it like '{base}:3.20'")
    packages = tuple(words[1:])
    if len(packages) > MAX_PACKAGES:
        raise line_error(index, f"{len(packages)} packages, more than the {MAX_PACKAGES} allowed")
    pattern = _APK if base == "alpine" else _APT
    for package in packages:
        # apt-get takes a minus at the end for the wish to remove the package.
        if len(package) > MAX_PACKAGE or package.endswith("-") or not pattern.fullmatch(package):
            raise line_error(
                index,
                f"{quote(package)} cannot be a package of {base}",
                "separate packages by spaces, and spell each as the package manager does",
            )
    return base, tag, packages


def _image(index: int, words: Sequence[str]) -> str:
    try:
        pinned = image.parse(words[0]).pinned
    except UsageError as error:
        raise line_error(
            index, error.what, "write it as :import does, NAME@sha256:DIGITS"
        ) from None
    if not pinned:
        raise line_error(
            index, "an image has a tag or a digest here, not both", "leave the tag out"
        )
    if len(words) > 1:
        raise line_error(
            index, "packages cannot be added to an image", "name a base, as in '#!cmd alpine'"
        )
    return words[0]


def _check_printable(index: int, text: str) -> None:
    if text.isprintable():
        return
    for character in text:
        if not (character.isprintable() or character == "\t" or "\udc80" <= character <= "\udcff"):
            raise line_error(index, f"character U+{ord(character):04X} cannot stand here")


def _shebang(index: int, line: bytes, *, utility: bool) -> tuple[str, ...]:
    if not line.startswith(b"#!"):
        raise line_error(index, "this must be a shebang", "put '#!/bin/sh' before it")
    if not utility and len(line) > MAX_SHEBANG:
        raise line_error(index, f"the shebang is longer than {MAX_SHEBANG} bytes")
    text = line[2:].decode("utf-8", "surrogateescape")
    _check_printable(index, text)
    words = tuple(text.split())
    if not words:
        raise line_error(index, "the shebang names no program", "write it like '#!/bin/sh'")
    program = words[0]
    if not program.startswith("/") and ("/" in program or not utility):
        raise line_error(
            index,
            f"{quote(program)} is not an absolute path",
            f"write it like {quote('#!/bin/' + (program.rpartition('/')[2] or 'sh'))}",
        )
    if not utility and _is_env(program):
        rest = " ".join(words[1:])
        if not rest:
            raise line_error(index, "env names no program", "write it like '#!/usr/bin/env bash'")
        # The kernel hands over one argument: env would look for a program "bash -e".
        if len(words) > 2 and not _SPLITS.match(words[1]):
            hint = "name the interpreter's path, as in '#!/bin/bash -e', or write env -S"
            raise line_error(index, f"env takes one word here, not {quote(rest)}", hint)
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
