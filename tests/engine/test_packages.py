"""What the package managers are asked, and what their failures are taken for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmdsvc.engine import Sources
from cmdsvc.engine.packages import WORDS, diagnose, plan
from cmdsvc.errors import BusyError, DataError, EngineError
from cmdsvc.recipe import Recipe

NO_SOURCES = Sources(bases={})


def recipe(base: str, *packages: str) -> Recipe:
    return Recipe(base, "", packages, base)


# ---- plan


def test_alpine_packages_are_one_step_of_arguments() -> None:
    made = plan(recipe("alpine", "bash", "jq=1.7.1-r0"), NO_SOURCES)
    ((shell, option, text, *arguments),) = made.steps
    assert (shell, option) == ("/bin/sh", "-c")
    assert arguments == ["apk", "bash", "jq=1.7.1-r0"]
    assert "bash" not in text
    assert made.files == {}
    assert "PATH" in made.env


def test_debian_packages_come_with_an_update_and_leave_no_lists() -> None:
    made = plan(recipe("debian", "jq"), NO_SOURCES)
    update, install, *_, last = made.steps
    assert update[-1] == "update"
    assert install[-3:] == ("--no-install-recommends", "--", "jq")
    assert last[0] == "find"
    assert made.env["DEBIAN_FRONTEND"] == "noninteractive"


@pytest.mark.parametrize("base", ["alpine", "debian", "ubuntu"])
def test_without_packages_there_are_no_steps(base: str) -> None:
    assert plan(recipe(base), NO_SOURCES).steps == ()


def test_a_mirror_and_keys_are_put_in(tmp_path: Path) -> None:
    (tmp_path / "me@here.rsa.pub").write_bytes(b"key")
    (tmp_path / "notes.txt").write_bytes(b"no key")
    sources = Sources({}, ("http://a/main", "http://b/community"), tmp_path)
    assert plan(recipe("alpine", "jq"), sources).files == {
        "etc/apk/repositories": b"http://a/main\nhttp://b/community\n",
        "etc/apk/keys/me@here.rsa.pub": b"key",
    }


def test_alpines_mirror_is_nothing_to_debian() -> None:
    assert plan(recipe("debian", "jq"), Sources({}, ("http://a/main",))).files == {}


def test_keys_that_cannot_be_read_are_the_operators_fault(tmp_path: Path) -> None:
    (tmp_path / "folder.rsa.pub").mkdir()
    with pytest.raises(EngineError, match="CMDSVC_APK_KEYS"):
        plan(recipe("alpine", "jq"), Sources({}, (), tmp_path))


def test_a_base_without_a_package_manager() -> None:
    with pytest.raises(DataError, match="plan9"):
        plan(recipe("plan9", "jq"), NO_SOURCES)


@pytest.mark.parametrize(
    "name",
    ["", "-h", "--allow-untrusted", "a b", "a\nb", "; x", "$(x)", "../x", "a/b", "é", "jq\n"],
)
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(DataError):
        plan(recipe("alpine", name), NO_SOURCES)


@pytest.mark.parametrize(
    "name",
    ["g++", "libstdc++6", "python3.11", "jq=1.7.1-r0", "jq~1.7", "jq>=1", "a@edge", "libc6:i386"],
)
def test_a_name_as_a_package_manager_spells_it(name: str) -> None:
    assert plan(recipe("debian", name), NO_SOURCES).steps[1][-1] == name


@given(st.text())
def test_whatever_the_name_it_is_one_argument_and_no_text(name: str) -> None:
    try:
        (step,) = plan(recipe("alpine", name), NO_SOURCES).steps
    except DataError:
        return
    (other,) = plan(recipe("alpine", "jq"), NO_SOURCES).steps
    assert step == (*other[:-1], name)


# ---- diagnose

NO_SUCH = """\
ERROR: unable to select packages:
  no-such-tool (no such package):
    required by: world[no-such-tool]"""

APK: Mapping[str, tuple[str, type[Exception], str]] = {
    "no such package": (NO_SUCH, DataError, "no-such-tool (no such package)"),
    "repository down": (
        "WARNING: fetching http://127.0.0.1:9/main/x86_64/APKINDEX.tar.gz: Connection refused\n"
        + NO_SUCH,
        BusyError,
        "Connection refused",
    ),
    "repository down, apk 2": (
        "fetch http://127.0.0.1:9/main/x86_64/APKINDEX.tar.gz\n"
        "WARNING: Ignoring http://127.0.0.1:9/main: temporary error (try again later)\n" + NO_SUCH,
        BusyError,
        "temporary error",
    ),
    "no such host": (
        "WARNING: fetching http://x.invalid/main/x86_64/APKINDEX.tar.gz: DNS: name does not exist\n"
        + NO_SUCH,
        BusyError,
        "name does not exist",
    ),
    "listed but not there": (
        (
            "(1/1) Installing not-there (1.0-r0)\nERROR: not-there-1.0-r0: HTTP 404: Not Found\n"
            "1 error; 8198 KiB in 16 packages"
        ),
        BusyError,
        "HTTP 404",
    ),
    "listed but not there, apk 2": (
        "ERROR: jq-1.7-r0: package mentioned in index not found (try 'apk update')",
        BusyError,
        "package mentioned in index not found",
    ),
    "connection lost": ("ERROR: jq-1.7-r0: network connection aborted", BusyError, "aborted"),
    "unknown key": (
        "WARNING: fetching http://a/main/x86_64/APKINDEX.tar.gz: UNTRUSTED signature\n" + NO_SUCH,
        DataError,
        "UNTRUSTED signature",
    ),
    "failing script": (
        (
            "  Executing bad-1.0-r0.post-install\n"
            "ERROR: lib/apk/exec/bad-1.0-r0.post-install: exited with error 1\n"
            "1 error; 8199 KiB in 17 packages"
        ),
        DataError,
        "bad-1.0-r0.post-install",
    ),
    "bad hash": (
        "ERROR: badhash-1.0-r0: file format is invalid or inconsistent",
        DataError,
        "invalid or inconsistent",
    ),
    "conflict": (
        (
            "ERROR: unable to select packages:\n  busybox-1.37.0-r30:\n"
            "    breaks: conflicts-busybox-1.0-r0[!busybox]"
        ),
        DataError,
        "conflicts-busybox",
    ),
}

APT: Mapping[str, tuple[str, type[Exception], str]] = {
    "no such package": (
        "Reading package lists...\nE: Unable to locate package nope",
        DataError,
        "Unable to locate package nope",
    ),
    "no such version": (
        "E: Version '9' for 'jq' was not found",
        DataError,
        "Version '9' for 'jq' was not found",
    ),
    "mirror down": (
        (
            "Err:1 http://deb.debian.org/debian bookworm InRelease\n"
            "  Could not connect to deb.debian.org:80 (127.0.0.1). - connect (111: Connection refused)\n"
            "E: Failed to fetch http://deb.debian.org/debian/dists/bookworm/InRelease  Could not connect\n"
            "E: Some index files failed to download. They have been ignored, or old ones used instead."
        ),
        BusyError,
        "Failed to fetch",
    ),
    "no name": (
        "W: Failed to fetch http://x/InRelease  Temporary failure resolving 'x'",
        BusyError,
        "Temporary failure resolving",
    ),
    "listed but not there": (
        "E: Failed to fetch http://deb/pool/main/j/jq/jq_1.6_amd64.deb  404  Not Found",
        BusyError,
        "404",
    ),
    "unknown key": (
        (
            "W: GPG error: http://deb bookworm InRelease: couldn't be verified: NO_PUBKEY 0E98404D\n"
            "E: The repository 'http://deb bookworm InRelease' is not signed.\n"
            "E: Failed to fetch http://deb/InRelease"
        ),
        DataError,
        "NO_PUBKEY",
    ),
    "failing script": (
        "E: Sub-process /usr/bin/dpkg returned an error code (1)",
        DataError,
        "Sub-process /usr/bin/dpkg returned an error code (1)",
    ),
}


@pytest.mark.parametrize("case", APK)
def test_apk(case: str) -> None:
    _check("alpine", *APK[case])


@pytest.mark.parametrize("case", APT)
def test_apt(case: str) -> None:
    _check("debian", *APT[case])


def _check(base: str, output: str, kind: type[Exception], words: str) -> None:
    error = diagnose(recipe(base, "x"), 1, output.splitlines())
    assert type(error) is kind
    assert words in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize("status", [126, 127])
def test_a_base_without_its_package_manager(status: int) -> None:
    error = diagnose(recipe("alpine", "jq"), status, [])
    assert isinstance(error, DataError)
    assert "package manager" in str(error)


@pytest.mark.parametrize("base", ["alpine", "debian"])
def test_silence_is_told_as_a_status(base: str) -> None:
    assert "exited 137" in str(diagnose(recipe(base, "jq"), 137, []))


@given(st.lists(st.text(), max_size=5), st.integers(1, 255), st.sampled_from(["alpine", "ubuntu"]))
def test_any_output_makes_one_printable_line(output: list[str], status: int, base: str) -> None:
    told = str(diagnose(recipe(base, "jq"), status, ["ERROR: ", "E: ", *output]))
    assert told.isprintable()
    assert len(told) < WORDS + 300
