"""Each base's package manager: what to run to install packages, and what its failures mean; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cmdsvc.engine import Sources
from cmdsvc.errors import CmdError
from cmdsvc.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Plan:
    """How a package layer is made on its base.

    `files` (path in the image, without a leading slash, to content) are put in first and stay.
    `steps` are argument vectors, run in order as the image's root with `env`; the first that
    fails ends it. No step goes through a shell.
    """

    files: Mapping[str, bytes]
    env: Mapping[str, str]
    steps: tuple[tuple[str, ...], ...]


def plan(recipe: Recipe, sources: Sources) -> Plan:
    """What to do for `recipe`; no steps where it names no packages."""
    raise NotImplementedError


def diagnose(recipe: Recipe, exit_status: int, output: Sequence[str]) -> CmdError:
    """What a failed step means: DataError (the packages cannot be had, in the package manager's
    own words) or BusyError (a source could not be reached)."""
    raise NotImplementedError
