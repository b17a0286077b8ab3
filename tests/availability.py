"""What cannot be had on this machine: a skip, unless all is asked for."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

ENGINES = ("bubblewrap", "docker")
EVERYTHING = "CMDSVC_TEST_ALL"
"""Set to 1, a part that is missing is a failure."""


def unavailable(why: str) -> NoReturn:
    if os.environ.get(EVERYTHING) == "1":
        pytest.fail(why, pytrace=False)
    pytest.skip(why)
