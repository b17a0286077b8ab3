"""Images whose place a newer one has taken: layers and bases that were made again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cmdsvc.engine import Layer
from cmdsvc.engine.docker.http import Api, where
from cmdsvc.engine.docker.images import INSTANCE_LABEL, Images
from cmdsvc.recipe import Recipe


async def stale(images: Images, recipe: Recipe) -> bool:
    """Whether its layer is here, on another image than its base's name means now."""
    if recipe.imported:
        return False
    base = await images.inspect(images.base_name(recipe.base, recipe.tag, recipe.source))
    layer = await images.inspect(images.layer(recipe.digest))
    if base is None or layer is None:
        return False
    below: list[str] = base["RootFS"]["Layers"]  # by content: importing it again changes nothing
    return bool(layer["RootFS"]["Layers"][: len(below)] != below)


async def sweep(api: Api, images: Images, *, all_: bool = False) -> None:
    """Removes what `images.replaced` has, as far as nothing has a name for it, runs or stands on it.

    `all_`: what others have replaced, too.
    """
    label = "=".join((INSTANCE_LABEL, images.labels[INSTANCE_LABEL]))
    query = {"all": "1", **where(label=label)}
    found: list[Mapping[str, Any]] = await api.call("GET", "/images/json", query=query)
    images.replaced &= {image["Id"] for image in found}
    for image in found:
        named = set(image["RepoTags"] or ()) - {"<none>:<none>"}
        if not named and (all_ or image["Id"] in images.replaced):
            await images.remove(Layer(image["Id"], base=False, size=0))
