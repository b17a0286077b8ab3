"""From a script to what has to be built for it; pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from cmdsvc.script import Script, imported


@dataclass(frozen=True, slots=True)
class Recipe:
    """A package layer: a base, and what its package manager adds to it; or an imported image.

    `source` is where the operator has the base from (an image reference, a tarball's path or
    URL): another one makes another layer. `packages` are sorted and without doubles, as the
    package manager spells them. Two scripts with equal recipes share one layer.

    Of an imported image `base` and `source` are NAME@sha256:DIGITS, and there is nothing else.
    """

    base: str
    tag: str
    """As the script has it, "" where it names none."""
    packages: tuple[str, ...]
    source: str

    @property
    def imported(self) -> bool:
        return imported(self.base)

    @property
    def digest(self) -> str:
        """64 hexadecimal digits that name this layer, the same on every machine."""
        fields = [self.base, self.tag, self.source, *self.packages]
        return hashlib.sha256(json.dumps(fields).encode()).hexdigest()


def recipe(script: Script, sources: Mapping[str, str]) -> Recipe:
    """What has to be built for `script`. `sources` has every base that it was parsed with."""
    packages = tuple(sorted(set(script.packages)))
    source = script.base if script.imported else sources[script.base]
    return Recipe(script.base, script.tag, packages, source)


def render(recipe: Recipe) -> str:
    """The `#!cmd` line that asks for `recipe`, without a line break."""
    base = f"{recipe.base}:{recipe.tag}" if recipe.tag else recipe.base
    return " ".join(["#!cmd", base, *recipe.packages])
