"""What has to be built for a script, and what it is called."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmdsvc.recipe import Recipe, recipe, render
from cmdsvc.script import parse

SOURCES = {
    "alpine": "docker.io/library/alpine",
    "debian": "/srv/debian.tar.zst",
    "ubuntu": "https://example.org/ubuntu.tar.gz",
}

examples = settings(deadline=None, derandomize=True, max_examples=200)


def recipe_of(header: str, rest: str = "#!/bin/sh\nx") -> Recipe:
    return recipe(parse(f"{header}\n{rest}".encode()), SOURCES)


def test_of_a_script():
    assert recipe_of("#!cmd alpine:3.20 jq bash jq") == Recipe(
        "alpine", "3.20", ("bash", "jq"), "docker.io/library/alpine"
    )


def test_of_an_image():
    pinned = f"me/tool@sha256:{'0' * 64}"
    found = recipe(parse(f"#!cmd {pinned}".encode()), SOURCES)
    assert found == Recipe(pinned, "", (), pinned)
    assert found.imported
    assert not recipe_of("#!cmd alpine").imported
    assert render(found) == f"#!cmd {pinned}"


def test_render():
    assert render(Recipe("alpine", "", (), "x")) == "#!cmd alpine"
    assert render(Recipe("debian", "12", ("bash", "jq=1.6"), "x")) == "#!cmd debian:12 bash jq=1.6"


def test_the_digest_is_the_same_on_every_machine():
    assert re.fullmatch("[0-9a-f]{64}", recipe_of("#!cmd alpine bash").digest)
    assert recipe_of("#!cmd alpine:3.20 jq bash").digest == (
        "d31306cefdfd5d328c5c91282b94971ae1bec5541842a1c254951d9e9895c6b6"
    )


@pytest.mark.parametrize(
    ("header", "rest"),
    [
        ("#!cmd alpine jq bash", "#!/bin/sh\nx"),
        ("\n\n#!cmd.io \t alpine  bash\tjq  ", "#!/bin/sh\nx"),
        ("#!cmd alpine bash jq bash", "#!/bin/sh\nx"),
        ("#!cmd alpine bash jq", "#!/bin/bash\nanother script"),
        ("#!cmd alpine bash jq", "#!jq -r"),
        ("#!cmd alpine bash jq", "# /// cmd\n# timeout = '3s'\n# ///\n#!/bin/sh\nx"),
        ("#!cmd alpine bash jq\r", "#!/bin/sh\r\nx"),
    ],
)
def test_the_digest_is_of_what_is_built(header: str, rest: str):
    assert recipe_of(header, rest).digest == recipe_of("#!cmd alpine bash jq").digest


@pytest.mark.parametrize(
    "other",
    [
        {"base": "debian"},
        {"tag": "3.20"},
        {"packages": ("bash",)},
        {"packages": ("bash jq",)},
        {"packages": ("bash", "jq=1")},
        {"source": "elsewhere"},
        {"tag": "docker.io/library/alpine", "source": ""},
        {"source": "docker.io/library/alpine,bash", "packages": ("jq",)},
    ],
)
def test_another_layer_has_another_digest(other: dict[str, str]):
    one = recipe_of("#!cmd alpine bash jq")
    assert replace(one, **other).digest != one.digest


_word = r"[a-z0-9][a-z0-9+.-]{0,8}[a-z0-9+.]"
_packages = {
    "alpine": st.from_regex(
        rf"{_word}(@edge)?((=|~|<|>|<=|>=|~=)[0-9][a-z0-9._]{{0,5}}(-r[0-9])?)?", fullmatch=True
    ),
    "debian": st.from_regex(
        rf"{_word}(:amd64)?(=([0-9]:)?[0-9][a-z0-9.+~]{{0,5}}(-[0-9]{{1,3}})?|/[a-z]{{1,9}})?",
        fullmatch=True,
    ),
}
_headers = st.sampled_from(sorted(_packages)).flatmap(
    lambda base: st.tuples(
        st.just(base),
        st.just("") | st.from_regex(r":[A-Za-z0-9_][A-Za-z0-9_.-]{0,12}", fullmatch=True),
        st.lists(_packages[base], max_size=12),
    )
)


@examples
@given(_headers)
def test_what_parses_renders_back_to_the_same_recipe(header: tuple[str, str, list[str]]):
    base, tag, packages = header
    one = recipe_of(" ".join(["#!cmd", base + tag, *packages]))
    assert recipe(parse(f"{render(one)}\n#!/bin/sh\nx".encode()), SOURCES) == one
    assert render(recipe_of(render(one))) == render(one)


@examples
@given(_headers, st.randoms(use_true_random=False))
def test_order_and_doubles_do_not_matter(header: tuple[str, str, list[str]], chance: random.Random):
    base, tag, packages = header
    doubled = packages + [package for package in packages if chance.random() < 0.5]
    chance.shuffle(doubled)
    one, other = (
        recipe_of(" ".join(["#!cmd", base + tag, *names])) for names in (packages, doubled)
    )
    assert one == other
    assert one.digest == other.digest
