"""Texts to upload, and how they are refused: for the tests of what reads them."""

from __future__ import annotations

import pytest

from cmdsvc.errors import DataError
from cmdsvc.model import Limits
from cmdsvc.script import parse

LIMITS = Limits(timeout=600.0, memory=512 << 20, cpus=1.0, pids=256, disk=512 << 20)


def with_metadata(*lines: str, leader: str = "#") -> bytes:
    """A script whose metadata begin on line 4 of the file."""
    block = "\n".join(f"{leader} {line}" for line in ("/// cmd", *lines, "///"))
    return f"#!cmd alpine\n#!/bin/sh\n{block}\necho\n".encode()


def refusal(source: bytes, limits: Limits | None = None) -> DataError:
    with pytest.raises(DataError) as caught:
        parse(source, limits)
    assert "\n" not in str(caught.value)
    return caught.value
