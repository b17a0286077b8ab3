"""The example in a builtin's help is one that works: as a shell, ssh and the server read it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from itertools import groupby, takewhile

import pytest

from cmdsvc.ssh.builtins import BUILTINS
from cmdsvc.ssh.session import split


def calls(example: str) -> Iterator[list[str]]:
    """What each ssh of a pipeline sends, in the server's words."""
    read = shlex.shlex(example, posix=True, punctuation_chars=True)
    read.whitespace_split = True
    for between, group in groupby(read, key="|".__eq__):
        program, *rest = group
        if between or program != "ssh":
            continue
        command = list(takewhile(lambda word: word not in {"<", ">"}, rest))
        where = command.index("HOST")
        assert all(word.startswith("-") for word in command[:where])
        yield split(" ".join(command[where + 1 :]))  # ssh joins them so


@pytest.mark.parametrize("verb", sorted(BUILTINS))
def test_it_parses(verb: str):
    builtin = BUILTINS[verb]
    said = list(calls(builtin.example))
    assert said[-1][0] == builtin.verb
    for named, *words in said:
        other = BUILTINS[named]
        own = words if other.own is None else words[: other.own(words)]
        other.parser().parse_intermixed_args(own)


def test_two_words_in_quotes_are_two_for_the_server():
    (said,) = calls('ssh -t HOST :tokens new "nightly build" < x')
    assert said == [":tokens", "new", "nightly", "build"]
