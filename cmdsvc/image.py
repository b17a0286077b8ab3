"""Names of container images, as Docker spells them; pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from cmdsvc.errors import UsageError

MAX_NAME = 255
"""Characters of a name without tag and digest, as registries have it."""

_HUB = "docker.io"

_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_LABEL = r"[A-Za-z0-9]+(?:-+[A-Za-z0-9]+)*"
_HOST = rf"{_LABEL}(?:\.{_LABEL})*(?::[0-9]{{1,5}})?"
_NAME = re.compile(rf"(?:{_HOST}/)?{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Image:
    name: str
    """As it was written."""
    tag: str
    digest: str
    """sha256: and 64 hexadecimal digits. Both: "" where there is none."""

    @property
    def whole(self) -> str:
        """The one name of its repository, with the registry's: docker.io/library/alpine."""
        return whole(self.name)

    @property
    def pinned(self) -> bool:
        """Whether it is NAME@DIGEST and nothing else, so that it means one image for ever."""
        return bool(self.digest) and not self.tag

    @property
    def reference(self) -> str:
        """As an engine understands it, and never as the beginning of an image's id."""
        return f"{self.whole}@{self.digest}" if self.digest else f"{self.whole}:{self.tag}"

    def matches(self, patterns: Iterable[str]) -> bool:
        """Whether its short name (`alpine`, `me/tool`) or its whole one is like one of them."""
        short = self.whole.removeprefix(f"{_HUB}/").removeprefix("library/")
        return any(
            fnmatchcase(name, pattern) for pattern in patterns for name in (short, self.whole)
        )


def parse(text: str) -> Image:
    """What `text` names, by tag `latest` where it says nothing else. Raises UsageError."""
    rest, at, digest = text[: MAX_NAME + 256].partition("@")
    head, slash, last = rest.rpartition("/")
    last, colon, tag = last.partition(":")
    name = f"{head}{slash}{last}"
    if (
        len(name) > MAX_NAME
        or not _NAME.fullmatch(name)
        or (colon and not _TAG.fullmatch(tag))
        or (at and not _DIGEST.fullmatch(digest))
    ):
        raise UsageError(
            f"{text[:80]!r} cannot be the name of an image",
            "write it like alpine:3.20, ghcr.io/me/tool or NAME@sha256:DIGITS",
        )
    return Image(name, tag if colon or at else "latest", digest)


def whole(name: str) -> str:
    """The whole name of a repository, for one that is well spelled."""
    head, slash, rest = name.partition("/")
    registry = head == "localhost" or head != head.lower() or "." in head or ":" in head
    if not slash or not registry:
        head, rest = _HUB, name
    if head == f"index.{_HUB}":
        head = _HUB
    return f"{head}/library/{rest}" if head == _HUB and "/" not in rest else f"{head}/{rest}"
