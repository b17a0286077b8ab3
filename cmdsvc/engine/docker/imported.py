"""Images that were there before: pinned, kept as layers, and run as they are.

Such an image need not have a shell, so it cannot wait for its run: it is given it with its container.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from cmdsvc.engine import Invocation, Progress
from cmdsvc.engine.docker.http import ApiError
from cmdsvc.engine.docker.images import Images
from cmdsvc.engine.docker.sandbox import Shape, isolated
from cmdsvc.errors import DataError, UsageError, printable
from cmdsvc.image import Image, parse, whole
from cmdsvc.model import WORK_DIR

MAX_VOLUMES: Final = 16

_OURS: Final = "docker.io/library/cmdsvc-"
"""What the names of layers and bases begin with, of every instance."""

_KNOWN: Final = 1000
"""Images of which the user's number is remembered."""

_SYSTEM: Final = frozenset({"", "dev", "proc", "sys"})
"""Folders at the top that cannot be written over."""

_SHARE: Final = 15 / 16
"""Of the disk limit that all writable folders have; /dev/shm has the rest."""

_INIT: Final = (
    "TINI_KILL_PROCESS_GROUP=1",  # a signal is for the whole process group
    "TINI_SUBREAPER=1",  # for an image with the same init of its own, which complains otherwise
)


class Imported:
    """What the engine does for the recipes that are images."""

    def __init__(self, images: Images) -> None:
        self._images = images
        self._owners: dict[str, int] = {}
        """By image: its user's number, where it has only a name."""

    async def resolve(self, text: str, progress: Progress) -> str:
        """See `Engine.resolve`."""
        image = parse(text)
        _refuse_ours(image)
        if image.digest:
            return f"{image.name}@{image.digest}"
        here = await self._images.inspect(image.reference)
        if here is None:
            progress(f"Looking up {image.reference}")
            return f"{image.name}@{await self._images.ask(image.reference)}"
        for pinned in here.get("RepoDigests") or ():
            name, _, digest = pinned.partition("@")
            if whole(name) == image.whole:
                return f"{image.name}@{digest}"
        return f"{image.name}@{here['Id']}"

    async def keep(self, base: str, layer: str, progress: Progress) -> None:
        """Makes the image that `base` pins the layer with the digest `layer`.

        Errors: as of `Engine.build`.
        """
        image = parse(base)
        _refuse_ours(image)
        found = await self._find(image)
        if found is not None:
            await self._keep(found, layer)
            return
        try:
            await self._images.pull(image.reference, progress)
            found = await self._find(image)
            if found is None:
                raise DataError(f"image {base!r} cannot be had", "check its name and its digest")
            await self._keep(found, layer)
        finally:  # from here on it is the layer's, and goes with it
            with suppress(ApiError):
                await self._images.forget(image.reference)

    async def description(
        self,
        invocation: Invocation,
        shape: Shape,
        labels: Mapping[str, str],
        *,
        cpus: float,
        mounts: Sequence[Mapping[str, Any]],
    ) -> Mapping[str, Any]:
        """What to make the container of a run from (see `sandbox.description`).

        The image's own are its entry point, user and working folder, and of its environment what
        the run has not, PATH among it. LookupError where the image is not here, UsageError for
        bytes that JSON cannot carry.
        """
        found = await self._images.inspect(shape.image)
        if found is None:
            raise LookupError(f"there is no image {shape.image}")
        config = found["Config"] or {}
        folders = {WORK_DIR.decode(), "/tmp", *_volumes(config)}  # noqa: S108 - the container's
        size = int(shape.limits.disk * _SHARE / len(folders))
        # Of a folder that the image has, the mode stays what it is there; so its user owns them all.
        owner = await self._owner(found)
        options = f"exec,nosuid,nodev,size={size},mode=1777,uid={owner}"
        body = {
            **isolated(shape, labels, cpus, dict.fromkeys(folders, options), mounts, attached=True),
            "Env": [
                *_INIT,
                *(
                    _text(b"%b=%b" % variable, "the environment")
                    for variable in invocation.env.items()
                    if variable[0] != b"PATH"
                ),
            ],
            "WorkingDir": config.get("WorkingDir") or WORK_DIR.decode(),
            "Healthcheck": {"Test": ["NONE"]},
        }
        if invocation.argv:
            body["Cmd"] = [_text(word, "an argument") for word in invocation.argv]
        return body

    async def _owner(self, found: Mapping[str, Any]) -> int:
        """The number of the image's user; 0 for one that it does not know, as whom nothing runs."""
        user = str((found["Config"] or {}).get("User") or "0").partition(":")[0]
        if re.fullmatch(r"[0-9]{1,10}", user):
            return int(user)
        if found["Id"] not in self._owners:
            if len(self._owners) >= _KNOWN:
                self._owners.clear()
            users = await self._images.read(found["Id"], "/etc/passwd")
            line = re.search(rf"(?m)^{re.escape(user)}:[^:\n]*:([0-9]{{1,10}}):".encode(), users)
            self._owners[found["Id"]] = int(line[1]) if line else 0
        return self._owners[found["Id"]]

    async def _find(self, image: Image) -> Mapping[str, Any] | None:
        """What the engine says of the image, by its registry's digest or its id.

        Only under that name: others are not what was asked for, whatever their id.
        """
        for reference in (image.reference, image.digest):
            found = await self._images.inspect(reference)
            if found is not None:
                names = [name.partition("@")[0] for name in found.get("RepoDigests") or ()]
                names += [name.rpartition(":")[0] for name in found.get("RepoTags") or ()]
                if image.whole in map(whole, names):
                    return found
        return None

    async def _keep(self, found: Mapping[str, Any], layer: str) -> None:
        config = found["Config"] or {}
        if not config.get("Entrypoint") and not config.get("Cmd"):
            raise DataError(
                "the image does not say what it runs: it has neither an entry point nor a command",
                "make a command of a script that runs it: '#!cmd alpine'",
            )
        _volumes(config)
        await self._images.tag(found["Id"], layer)


def _refuse_ours(image: Image) -> None:
    if image.whole.startswith(_OURS):
        raise DataError(f"image {image.name!r} is a layer of commands", "import another one")


def _volumes(config: Mapping[str, Any]) -> list[str]:
    """Folders that the image wants written; DataError where they cannot be."""
    volumes = list(config.get("Volumes") or ())
    if len(volumes) > MAX_VOLUMES:
        raise DataError(f"the image has {len(volumes)} volumes, more than {MAX_VOLUMES}")
    folders = []
    for volume in volumes:
        clean = posixpath.normpath(volume)
        if not clean.startswith("/") or clean.split("/")[1] in _SYSTEM:
            raise DataError(
                f"the image has a volume that no run can have: {printable(volume)[:80]!r}",
                "ask who made it",
            )
        folders.append(clean)
    return folders


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise UsageError(
            f"{what} is not UTF-8, which an imported image cannot be given", "send it on stdin"
        ) from None
