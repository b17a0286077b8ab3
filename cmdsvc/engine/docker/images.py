"""Images of the engine: bases, fetched or imported, and the names that layers have."""

from __future__ import annotations

import asyncio
import hashlib
import io
import posixpath
import re
import tarfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote
from weakref import WeakValueDictionary

import docker
import requests

from cmdsvc.engine import EngineSettings, Layer, Progress, bases
from cmdsvc.engine.docker.http import Api, ApiError, unreachable
from cmdsvc.engine.docker.janitor import Janitor
from cmdsvc.errors import BusyError, DataError, EngineError, printable

INSTANCE_LABEL: Final = "cmdsvc.instance"
RUN_LABEL: Final = "cmdsvc.run"
"""Of a container that is for a run; which one is not known when it is made."""
DIGEST_LABEL: Final = "cmdsvc.digest"

_STALL: Final = 60
"""Seconds without a word from the engine while it fetches an image."""

_IMPORT_TIMEOUT: Final = 600.0

_COUNT_TIMEOUT: Final = 120.0
"""Seconds to count or remove what is on the disk."""

_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_REPOSITORY: Final = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*")

_NOT_THERE: Final = re.compile(
    r"manifest unknown|manifest for .* not found|not found: |repository .*(does not exist|not found)|"
    r"requested access to the resource is denied|unauthorized: |no matching manifest|"
    r"invalid reference format"
)
"""In the engine's words: there is no such image, and trying again will not change that."""


class Images:
    """What the engine has of this instance, and what it can get."""

    def __init__(self, api: Api, janitor: Janitor, settings: EngineSettings) -> None:
        self._api = api
        self._janitor = janitor
        self._settings = settings
        self.repository = repository(settings.instance)
        self.packages = f"{self.repository}-packages"
        """The volume of what builds have fetched."""
        self.labels = {INSTANCE_LABEL: settings.instance}
        # The engine's own client keeps a registry's credentials; it blocks, so it has a thread.
        self._threads = ThreadPoolExecutor(2, "docker-pull")
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._releases: dict[str, tuple[str, bytes]] = {}
        """Of a tarball: the image that it was last, and the etc/os-release of that."""
        self.replaced: set[str] = set()
        """Images that lost a name to a newer one."""

    def layer(self, digest: str) -> str:
        """The name of the image that is the layer."""
        return f"{self.repository}:{digest[:24]}"

    async def has(self, image: str) -> bool:
        return await self.inspect(image) is not None

    async def inspect(self, image: str) -> Mapping[str, Any] | None:
        """What the engine says of an image, None where it is not here."""
        try:
            found: Mapping[str, Any] = await self._api.call("GET", _path(image, "/json"))
        except ApiError as error:
            if error.status != 404:
                raise
            return None
        return found

    async def kept(self) -> list[Layer]:
        """The layers, and the bases that were imported for this instance."""
        answer = await self._api.call(
            "GET", "/system/df", query={"type": "image"}, timeout=_COUNT_TIMEOUT
        )
        images: list[Mapping[str, Any]] = answer["Images"] or []
        ours = {image["Id"]: image for image in images if self._is_base(image)}
        sources = map(
            _imported_tag, filter(bases.is_tarball, self._settings.sources.bases.values())
        )
        wanted = {f"{self.repository}-base:{tag}" for tag in sources}
        found = [
            Layer(
                id_, True, int(image["Size"]), wanted=not wanted.isdisjoint(image["RepoTags"] or ())
            )
            for id_, image in ours.items()
        ]
        for image in images:
            for name in self._layer_names(image):
                below = image["Id"] if image["Id"] in ours else image["ParentId"]
                # One without packages is another name of its base.
                size = _own(image) if self._is_layer(image) else 0
                found.append(
                    Layer(name, False, size, below if below in ours else "", image["Size"] - size)
                )
        return found

    async def remove(self, layer: Layer) -> bool:
        """False where a container or another image needs it."""
        name = layer.name
        if not layer.base and not name.startswith("sha256:"):
            name = self.layer(name)
        try:
            await self._api.call("DELETE", _path(name), timeout=_COUNT_TIMEOUT)
        except ApiError as error:
            if error.status == 409:
                return False
            if error.status != 404:
                raise
        return True

    def _is_layer(self, image: Mapping[str, Any]) -> bool:
        """Whether it is a layer and nothing else: it goes with its last name as one."""
        tags = {tag.rpartition(":")[0] for tag in image["RepoTags"] or ()}
        return DIGEST_LABEL in (image["Labels"] or {}) or tags == {self.repository}

    def _is_base(self, image: Mapping[str, Any]) -> bool:
        labels = image["Labels"] or {}
        return labels.get(INSTANCE_LABEL) == self._settings.instance and DIGEST_LABEL not in labels

    def _layer_names(self, image: Mapping[str, Any]) -> list[str]:
        """The digests of the layers that an image is; its own name where it is one no more."""
        tags = [tag.rpartition(":") for tag in image["RepoTags"] or ()]
        names = [tag for repository, _, tag in tags if repository == self.repository]
        labels = image["Labels"] or {}
        if labels.get(INSTANCE_LABEL) == self._settings.instance and DIGEST_LABEL in labels:
            return names or [image["Id"]]
        return names

    async def tag(self, image: str, digest: str) -> None:
        query = {"repo": self.repository, "tag": digest[:24]}
        await self._api.call("POST", _path(image, "/tag"), query=query)

    async def forget(self, image: str) -> None:
        """Removes a name of an image, with its last one the image. ApiError, as where it is used."""
        await self._api.call("DELETE", _path(image), timeout=_COUNT_TIMEOUT)

    async def base(
        self, base: str, tag: str, source: str, progress: Progress, *, again: bool = False
    ) -> str:
        """The name of the image of `base`:`tag`, fetched from `source` where it is missing.

        Errors: DataError (there is no such base), BusyError (it cannot be fetched now).
        """
        if bases.is_tarball(source):
            return await self._imported(base, tag, source, progress, again=again)
        image = self.base_name(base, tag, source)
        async with self._lock(image):
            if again or not await self.has(image):
                await self.pull(image, progress)
        return image

    def base_name(self, base: str, tag: str, source: str) -> str:
        """The name of the image of `base`:`tag`. DataError where there can be none."""
        if bases.is_tarball(source):
            return f"{self.repository}-base:{_imported_tag(source)}"
        return reference(base, tag, source)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    async def _imported(
        self, base: str, tag: str, source: str, progress: Progress, *, again: bool
    ) -> str:
        image = self.base_name(base, tag, source)
        async with self._lock(image):
            here = await self.inspect(image)
            if again or here is None:
                cache = self._settings.data_dir / "bases"
                tarball = await bases.fetch(source, cache, progress)
                progress(f"Importing {source}")
                await self._import(tarball, _imported_tag(source))
                if here is not None:
                    self.replaced.add(here["Id"])
                here = await self.inspect(image)
            id_ = here["Id"] if here else image
            known, release = self._releases.get(source, ("", b""))
            if known != id_:  # another process may have fetched it
                release = await self.read(image, "/etc/os-release")
                self._releases[source] = id_, release
        bases.check_os_release(base, tag, release)
        return image

    async def _import(self, tarball: Path, name: str) -> None:
        try:
            answer = await self._api.call(
                "POST",
                "/images/create",
                query={
                    "fromSrc": "-",
                    "repo": f"{self.repository}-base",
                    "tag": name,
                    "changes": f'LABEL {INSTANCE_LABEL}="{self.labels[INSTANCE_LABEL]}"',
                },
                tar=tarball,
                timeout=_IMPORT_TIMEOUT,
            )
        except ApiError as error:
            raise DataError(
                f"{tarball} cannot be imported: {error.message}",
                "see whether it is a whole tarball",
            ) from error
        for event in answer if isinstance(answer, list) else [answer]:
            if isinstance(event, dict) and "error" in event:
                raise DataError(
                    f"{tarball} cannot be imported: {event['error']}",
                    "see whether it is a whole tarball",
                )

    async def read(self, image: str, path: str) -> bytes:
        """A file of an image, b"" where it has none."""
        container = await self._janitor.create(
            {"Image": image, "Cmd": ["/bin/sh"], "Labels": self.labels}
        )
        try:
            for _ in range(4):
                data = await self._api.fetch(
                    "GET", f"/containers/{container}/archive", query={"path": path}
                )
                with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                    member = archive.next()
                    if member is None or not member.issym():
                        file = archive.extractfile(member) if member else None
                        return file.read() if file else b""
                    path = posixpath.normpath(
                        posixpath.join(posixpath.dirname(path), member.linkname)
                    )
        except ApiError as error:
            if error.status != 404:
                raise
        except tarfile.TarError:
            pass
        finally:
            self._janitor.discard(container)
        return b""

    async def pull(self, image: str, progress: Progress) -> None:
        """Errors: DataError (there is no such image), BusyError (it cannot be fetched now)."""
        loop = asyncio.get_running_loop()
        given_up = threading.Event()

        def tell(line: str) -> None:
            loop.call_soon_threadsafe(progress, line)

        try:
            async with self._api.bounded(2 * self._settings.build_timeout):
                await loop.run_in_executor(self._threads, self._pull_here, image, tell, given_up)
        finally:
            given_up.set()

    def _pull_here(self, image: str, tell: Progress, given_up: threading.Event) -> None:
        """In a thread: it notices that it is not wanted any more with the next word it hears."""
        try:
            with self._client(image) as client:
                for event in client.pull(*_split(image), stream=True, decode=True):
                    if given_up.is_set():
                        return
                    if "error" in event:
                        raise _not_pulled(image, event["error"])
                    if line := _line(event):
                        tell(line)
        except RuntimeError as error:  # the loop that `tell` tells is gone
            if not given_up.is_set():
                raise EngineError(f"image {image!r} cannot be fetched: {error}") from error

    async def ask(self, image: str) -> str:
        """The digest that its registry has for it now. Errors: as `pull`."""

        def here() -> str:
            with self._client(image) as client:
                found = client.inspect_distribution(image)  # type: ignore[no-untyped-call]
                return str(found["Descriptor"]["digest"])

        async with self._api.bounded(2 * _STALL):
            return await asyncio.get_running_loop().run_in_executor(self._threads, here)

    @contextmanager
    def _client(self, image: str) -> Iterator[docker.APIClient]:
        """In a thread. What goes wrong is told as what it means for `image`."""
        try:
            client = docker.APIClient(
                base_url=self._api.host,
                version=self._api.version,
                timeout=_STALL,
                use_ssh_client=True,
            )
            with closing(client):
                yield client
        except docker.errors.NotFound as error:
            raise _not_there(image, error.explanation or "") from error
        except docker.errors.APIError as error:
            raise _not_pulled(image, error.explanation or str(error)) from error
        except requests.exceptions.ReadTimeout as error:
            raise BusyError(
                f"image {image!r} cannot be fetched: nothing came for {_STALL} s", "try again later"
            ) from error
        except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
            raise unreachable(self._api.host, error) from error


def repository(instance: str) -> str:
    """The repository of an instance's layers; that of its bases ends in -base."""
    name = instance
    if not _REPOSITORY.fullmatch(name) or len(name) > 64:
        name = hashlib.sha256(name.encode()).hexdigest()[:16]
    return f"cmdsvc-{name}"


def _path(image: str, what: str = "") -> str:
    return f"/images/{quote(image, safe=':/@')}{what}"


def _imported_tag(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()[:24]


def _own(image: Mapping[str, Any]) -> int:
    """Bytes that no other image has."""
    return int(image["Size"]) - max(0, int(image["SharedSize"]))


def reference(base: str, tag: str, source: str) -> str:
    """The image that `base`:`tag` is, where `source` is an image reference.

    Errors: DataError where `source` has a tag or a digest and `tag` is another, or where `tag` is
    none.
    """
    if tag and not _TAG.fullmatch(tag):
        raise DataError(f"{tag[:80]!r} cannot be a tag of {base!r}", "use one like 3.22 or 12-slim")
    own = _split(source)[1]
    if not own:
        return f"{source}:{tag or 'latest'}"
    if tag and tag != own:
        raise DataError(
            f"base {base!r} is {source!r} here, not {base}:{tag}",
            f"leave the tag out, or ask the operator for {base}:{tag}",
        )
    return source


def _split(image: str) -> tuple[str, str]:
    """The repository, and the tag or digest, "" where there is none."""
    repository, found, digest = image.partition("@")
    if found:
        return repository, digest
    head, slash, last = image.rpartition("/")
    name, _, tag = last.partition(":")
    return f"{head}{slash}{name}", tag


def _line(event: Mapping[str, Any]) -> str:
    """What a step of a pull says, "" for a mere move of its progress bar."""
    if event.get("progressDetail"):
        return ""
    parts = [str(event[key]) for key in ("id", "status") if event.get(key)]
    return printable(": ".join(parts))[:500]


def _not_there(image: str, words: str) -> DataError:
    return DataError(
        f"image {image!r} cannot be had: {printable(words)[:300]}",
        "check its name and its tag",
    )


def _not_pulled(image: str, words: str) -> DataError | BusyError:
    if _NOT_THERE.search(words):
        return _not_there(image, words)
    return BusyError(
        f"image {image!r} cannot be fetched: {printable(words)[:300]}", "try again later"
    )
