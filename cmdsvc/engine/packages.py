"""Each base's package manager: what to run to install packages, and what its failures mean.

Pure, but for reading the operator's folder of public keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cmdsvc.engine import Sources
from cmdsvc.errors import BusyError, CmdError, DataError, EngineError, printable
from cmdsvc.model import SEARCH_PATH
from cmdsvc.recipe import Recipe

_PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_~:=<>@-]*")
"""A name, and what version of it, in the spelling of either package manager."""

CACHE = "/mnt"
"""Where a build has the folder in which packages stay for the next one; empty in every base."""
CACHE_MOST = 256 << 20
"""Bytes of packages that stay; the oldest go."""

WORDS = 400
"""Characters of the package manager's own words that an error quotes at most."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a package layer is made on its base.

    `files` (path in the image, without a leading slash, to content) are put in first and stay.
    `steps` are argument vectors, run in order as the image's root with `env`; the first that
    fails ends it. What was asked for is never part of a shell's text.
    """

    files: Mapping[str, bytes]
    env: Mapping[str, str]
    steps: tuple[tuple[str, ...], ...]


def plan(recipe: Recipe, sources: Sources) -> Plan:
    """What to do for `recipe`; no steps where it names no packages.

    Errors: DataError (no package manager is known for the base, or a name is none), EngineError
    (the operator's public keys cannot be read).
    """
    for name in recipe.packages:
        if not _PACKAGE.fullmatch(name):
            raise DataError(f"{name[:80]!r} cannot be a package", "check the first line")
    return _manager(recipe.base).plan(recipe.packages, sources)


def diagnose(recipe: Recipe, exit_status: int, output: Sequence[str]) -> CmdError:
    """What a failed step means, as the error to raise.

    DataError: the packages cannot be had, in the package manager's own words; BusyError: a source
    could not be reached.

    `exit_status` is the step's, 126 or 127 where it could not be executed; `output` the last
    lines of what the steps wrote, both streams in one.
    """
    if exit_status in (126, 127):
        return DataError(
            f"base {recipe.base!r} has no working package manager",
            f"the operator can look at what is configured as {recipe.base!r}",
        )
    manager = _manager(recipe.base)
    lines = [printable(line).strip() for line in output]
    unreachable = [line for line in lines if manager.unreachable.search(line)]
    refused = [line for line in lines if manager.refused.search(line)]
    if unreachable and not refused:
        return BusyError(
            f"the package source of {recipe.base!r} cannot be reached: {_short(unreachable[:1])}",
            "try again later",
        )
    words = (
        _short(refused[:1] or manager.words(lines)) or f"the package manager exited {exit_status}"
    )
    return DataError(
        f"the packages cannot be installed: {words}", "check the names on the first line"
    )


@dataclass(frozen=True, slots=True)
class _Manager:
    plan: Callable[[Sequence[str], Sources], Plan]
    unreachable: re.Pattern[str]
    """Found in a line that tells of a source that cannot be reached, or not as it promised."""
    refused: re.Pattern[str]
    """Found in a line that tells of a failure which trying again will not mend."""
    words: Callable[[Sequence[str]], Sequence[str]]
    """Of all lines, those that say what is wrong."""


def _manager(base: str) -> _Manager:
    try:
        return _MANAGERS[base]
    except KeyError:
        raise DataError(
            f"no base is called {base!r}", f"use one of {', '.join(_MANAGERS)}"
        ) from None


def _short(lines: Iterable[str]) -> str:
    text = " ".join(" ".join(lines).split())
    return text if len(text) <= WORDS else f"{text[:WORDS]}..."


_ENV = {"PATH": SEARCH_PATH.decode(), "HOME": "/root", "LC_ALL": "C"}


# Each build has a cache of its own, of links to what is in CACHE: two at once cannot disturb each
# other. What apk takes from there it checks as if it came from the mirror, by the signed index; what is
# damaged is removed, and fetched. What was fetched stays only where all went well.
_APK_ADD = f"""
c=/etc/apk/cache
[ -w {CACHE} ] && mkdir $c 2>/dev/null || exec apk add --no-cache --no-progress -- "$@"
for f in {CACHE}/*.apk; do
    [ ! -f "$f" ] || ln -s "$f" $c
done
apk add --update-cache --no-progress -- "$@"
status=$?
if [ $status != 0 ] && apk add --quiet --simulate -- "$@" >/dev/null 2>&1; then
    damaged=
    for f in $c/*.apk; do
        [ -L "$f" ] && ! apk verify --quiet "$f" >/dev/null 2>&1 || continue
        rm -f "$(readlink "$f")" "$f"
        damaged=1
    done
    if [ $damaged ]; then
        apk add --no-progress -- "$@"
        status=$?
    fi
fi
if [ $status = 0 ]; then
    for f in $c/*.apk; do
        [ -f "$f" ] && [ ! -L "$f" ] && t=$(mktemp -p {CACHE}) || continue
        cp "$f" $t && mv -f $t "{CACHE}/${{f##*/}}" || rm -f $t
    done 2>/dev/null
    cd {CACHE} && ls -lt |
        awk 'NR > 1 && (n += $5) > {CACHE_MOST} {{ print $9 }}' | xargs -r rm -f
fi
rm -r $c
exit $status
"""


def _apk(packages: Sequence[str], sources: Sources) -> Plan:
    files = {f"etc/apk/keys/{name}": key for name, key in _public_keys(sources.apk_keys)}
    if sources.alpine_mirrors:
        files["etc/apk/repositories"] = "".join(
            f"{url}\n" for url in sources.alpine_mirrors
        ).encode()
    steps = (("/bin/sh", "-c", _APK_ADD, "apk", *packages),)
    return Plan(files, _ENV, steps if packages else ())


def _public_keys(folder: Path | None) -> Iterable[tuple[str, bytes]]:
    if folder is None:
        return []
    try:
        return [(key.name, key.read_bytes()) for key in sorted(folder.glob("*.rsa.pub"))]
    except OSError as error:
        raise EngineError(
            f"the public keys in {str(folder)!r} cannot be read: {error.strerror}",
            "the operator can correct CMDSVC_APK_KEYS",
        ) from error


def _apk_words(lines: Sequence[str]) -> Sequence[str]:
    """From the first ERROR on, without its summary: the lines after it tell what was selected."""
    for number, line in enumerate(lines):
        if line.startswith("ERROR:"):
            rest = [text.removeprefix("ERROR: ") for text in lines[number:]]
            return [text for text in rest if not re.match(r"(Executing|OK:|\d+ errors?[;,])", text)]
    return [line for line in lines if line][-1:]


def _apt(packages: Sequence[str], sources: Sources) -> Plan:
    del sources  # a Debian base names its own
    env = _ENV | {"DEBIAN_FRONTEND": "noninteractive"}
    # Error-Mode: else `update` succeeds with an index missing. Sandbox: the layer is made in a
    # sandbox that may have one user only, so apt cannot change to its own.
    apt = (
        "apt-get", "-q",
        "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=30",
        "-o", "APT::Update::Error-Mode=any", "-o", "APT::Sandbox::User=root",
        "-o", "Dpkg::Use-Pty=0",
    )  # fmt: skip
    steps = (
        (*apt, "update"),
        (*apt, "install", "--yes", "--no-install-recommends", "--", *packages),
        (*apt, "clean"),
        ("find", "/var/lib/apt/lists", "-type", "f", "-delete"),
    )
    return Plan({}, env, steps if packages else ())


def _apt_words(lines: Sequence[str]) -> Sequence[str]:
    errors = [line.removeprefix("E: ") for line in lines if line.startswith("E: ")]
    return errors or [line for line in lines if line][-1:]


_APK = _Manager(
    _apk,
    # apk 2 "ERROR: http://...: temporary error", apk 3 "WARNING: updating http://...: ...": a URL
    # with a complaint; and a package that the index lists but the mirror does not have.
    unreachable=re.compile(
        r"(WARNING|ERROR): .*(https?|ftp)://|ERROR: .*"
        r"(temporary error|network (error|connection)|connection (refused|aborted|reset)|timed? ?out|"
        r"DNS|name does not resolve|package mentioned in index not found|HTTP|TLS|unexpected end of file|"
        r"remote server|Operation timed out|No route|unreachable)",
        re.IGNORECASE,
    ),
    refused=re.compile(r"UNTRUSTED|BAD signature|: (script )?exited with error", re.IGNORECASE),
    words=_apk_words,
)
_APT = _Manager(
    _apt,
    unreachable=re.compile(
        r"^(E|W|Err:\d+):? .*(Failed to fetch|Unable to fetch|Could not (connect|resolve)|"
        r"Temporary failure|Connection (failed|timed out|refused)|Unable to connect|404 +Not Found)"
    ),
    refused=re.compile(
        r"NO_PUBKEY|is not signed|BADSIG|EXPKEYSIG|Sub-process .* returned an error"
    ),
    words=_apt_words,
)
_MANAGERS: Mapping[str, _Manager] = {"alpine": _APK, "debian": _APT, "ubuntu": _APT}
