"""The pages name the settings that there are, with their defaults, and point to what is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cmdsvc.config import PREFIX, Settings

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md"])

NOT_SETTINGS = {"CMDSVC_HOSTS", "CMDSVC_TEST_ALL"}
IN_WORDS = {
    *("database_url", "alpine_mirror", "docker_runtime"),
    *("base_alpine", "base_debian", "base_ubuntu"),
}
"""Whose default is told in words."""


def rows(page: str) -> Iterator[tuple[str, str]]:
    """Each setting in the page's tables, and its default as it is written."""
    for line in page.splitlines():
        if not line.startswith(f"| `{PREFIX}"):
            continue
        first, default = line.split("|")[1:3]
        names = re.findall(rf"{PREFIX}(\w+)", first)
        defaults = default.strip().replace("`", "").split(", ")
        if len(defaults) == 1:
            defaults *= len(names)
        for index, name in enumerate(names):
            yield name.lower(), ", ".join(defaults) if name.lower() in IN_WORDS else defaults[index]


def test_the_table_has_every_setting_once():
    named = [name for name, _ in rows((ROOT / "docs/operating.md").read_text())]
    assert sorted(named) == sorted(Settings.model_fields)


@pytest.mark.parametrize("page", ["operating", "runs"])
def test_the_defaults_are_these(page: str):
    found = [
        pair for pair in rows((ROOT / f"docs/{page}.md").read_text()) if pair[0] not in IN_WORDS
    ]
    assert found
    for name, text in found:
        default = Settings.model_fields[name].default
        if text == "none":
            assert not default, name
        else:
            assert getattr(Settings(**{name: text}), name) == default, name


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_what_is_named_is_there(path: Path):
    page = path.read_text()
    named = set(re.findall(rf"{PREFIX}[A-Z_]*[A-Z]\b", page)) - NOT_SETTINGS
    assert named <= {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page):
        other = path.parent / target if target else path
        assert other.exists(), target
        assert not anchor or anchor in anchors(other.read_text()), f"{target}#{anchor}"


def anchors(page: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_can_be_found_from_the_readme():
    readme = (ROOT / "README.md").read_text()
    assert [p.name for p in ROOT.glob("docs/*.md") if f"docs/{p.name}" not in readme] == []
