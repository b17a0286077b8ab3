"""Names of images: what they mean, and what is none."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmdsvc.errors import UsageError
from cmdsvc.image import parse

DIGEST = f"sha256:{'0123456789abcdef' * 4}"


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3.20", "docker.io/library/alpine:3.20"),
        ("me/tool", "docker.io/me/tool:latest"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("index.docker.io/me/tool", "docker.io/me/tool:latest"),
        ("localhost/tool", "localhost/tool:latest"),
        ("127.0.0.1:5000/a/b__c:v1", "127.0.0.1:5000/a/b__c:v1"),
        ("ghcr.io/me/tool", "ghcr.io/me/tool:latest"),
        ("Reg/tool", "Reg/tool:latest"),
        (f"alpine@{DIGEST}", f"docker.io/library/alpine@{DIGEST}"),
        (f"alpine:3.20@{DIGEST}", f"docker.io/library/alpine@{DIGEST}"),
        ("0123456789ab", "docker.io/library/0123456789ab:latest"),
    ],
)
def test_what_it_means(text: str, reference: str):
    image = parse(text)
    assert image.reference == reference
    assert image.pinned == (text == f"alpine@{DIGEST}")
    assert text.startswith(image.name)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "A", "-a", "a-", "a/", "/a", "a//b", "a/../b", "a b", "a\n", "a\0", "é", "a:"),
        *("a:-b", "a:b:c", "a@", f"a@{DIGEST}0", f"a@{DIGEST.upper()}", f"@{DIGEST}", "a@@b"),
        *("a?b", "a%2Fb", "a#b", "http://a/b", "-.io/a", "a..io:1/b", "h:123456/a", "a" * 256),
    ],
)
def test_what_is_none(text: str):
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("name", "pattern", "matches"),
    [
        ("alpine", "*", True),
        ("alpine", "alpine", True),
        ("docker.io/library/alpine", "alpine", True),
        ("alpine", "docker.io/*", True),
        ("me/tool", "me/*", True),
        ("me/deep/tool", "me/*", True),
        ("ghcr.io/me/tool", "me/*", False),
        ("me/tool", "library/*", False),
        ("evil.io/me/tool", "*/me/tool", True),
        ("GHCR.io/me/tool", "ghcr.io/*", False),
        ("alpine", "-", False),
    ],
)
def test_patterns(name: str, pattern: str, matches: bool):
    assert parse(name).matches([pattern]) == matches
    assert parse(name).matches(["-", pattern]) == matches
    assert not parse(name).matches([])


@settings(deadline=None, derandomize=True, max_examples=500)
@given(st.text("ab0A.-_/:@ ?%\n", max_size=30) | st.text(max_size=30))
def test_any_text(text: str):
    try:
        image = parse(text)
    except UsageError:
        return
    assert re.fullmatch(r"[A-Za-z0-9._/:@-]+", image.reference)
    assert ".." not in image.reference.split("/")
    assert parse(image.reference).reference == image.reference
