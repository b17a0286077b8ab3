"""The key file: made, checked, and replaced by a new key."""

from __future__ import annotations

import contextlib
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from cmdsvc.errors import CmdError
from cmdsvc.model import Entry
from cmdsvc.sealing import BrokenSealError, Keys, Sealer, parse, render
from cmdsvc.store import Place, Store

FILE = "secret.key"
BATCH = 100
"""Values that are sealed anew in one transaction."""

_LOST = "bring it back from a backup; where it is lost for good: cmdsvc rotate-key --lost"


async def open_sealer(folder: Path, store: Store) -> Sealer:
    """By the key in `folder`, made on first use (0600).

    CmdError, and nothing is changed, where it is not the key to what the store holds: not there,
    damaged, or another.
    """
    path = folder / FILE
    return Sealer(await _checked(path, store) or _make(path))


async def check_key(folder: Path, store: Store) -> None:
    """CmdError where `open_sealer` would raise it. It only reads."""
    await _checked(folder / FILE, store)


async def rotate(folder: Path, store: Store, *, lost: bool = False) -> tuple[int, list[str]]:
    """Seals all with a new key; how many values, and the names of those that were given up.

    `lost`: what no key opens is removed; else it is an error, and so is a key file that is lost.
    To be called while no server runs. Killed at any moment, nothing is lost, and the next call
    brings it to its end: until all is sealed anew the file holds both keys.
    """
    path = folder / FILE
    keys = _or_new(path) if lost else await _checked(path, store) or _make(path)
    if keys.previous is None:
        keys = keys.rotated()
        _write(path, keys)
    count, broken = await _reseal(store, Sealer(keys))
    if broken and not lost:
        raise CmdError(
            f"no key opens {_words(broken[0])}"
            + (f" and {len(broken) - 1} more" if broken[1:] else ""),
            "cmdsvc rotate-key --lost removes such values; the old key is kept until then",
        )
    for place in broken:
        await _remove(store, place)
    await store.record(
        Entry(datetime.now(UTC), "", "rotate-key", keys.id, f"{count} values sealed anew")
    )
    _write(path, keys.settled())
    return count, list(map(_words, broken))


async def _remove(store: Store, place: Place) -> None:
    kind, owner, command, name = place
    if kind == "hook":  # without its secret nothing that comes to it can be believed
        await store.remove_hook(owner, command, name, by="")
    else:
        await store.set_env(owner, command, put={}, remove=[name], by="")


def _words(place: Place) -> str:
    kind, owner, command, name = place
    return f"the hook {owner}/{command}/{name}" if kind == "hook" else f"{owner}/{command}/{name}"


async def _reseal(store: Store, sealer: Sealer) -> tuple[int, list[Place]]:
    """How many values were sealed anew, and where those are that do not open."""
    count, broken = 0, list[Place]()
    batch: list[tuple[Place, bytes, bytes]] = []
    async for place, value in store.sealed():
        if sealer.is_current(value):
            continue
        try:
            fresh = sealer.seal(sealer.open(value, *place), *place)
        except BrokenSealError:
            if place not in broken:  # a hook has two
                broken.append(place)
            continue
        batch.append((place, value, fresh))
        if len(batch) == BATCH:
            count += await store.reseal(batch)
            batch.clear()
    return count + await store.reseal(batch), broken


async def _checked(path: Path, store: Store) -> Keys | None:
    """None where there is no key yet, and none is needed."""
    keys = _read(path)
    if keys is None:
        if await _needed(store):
            raise CmdError(f"{path} is not there, and the store holds what only it opens", _LOST)
        return None
    sealer = Sealer(keys)
    async for (_, owner, command, name), value in store.sealed():
        if not sealer.knows(value):
            raise CmdError(
                f"{path} is not the key to this store: it does not open {name} of {owner}/{command}",
                _LOST,
            )
    return keys


async def _needed(store: Store) -> bool:
    async for _ in store.sealed():
        return True
    return (await store.usage())["tokens"] > 0


def _read(path: Path) -> Keys | None:
    try:
        return parse(path.read_text(encoding="ascii"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CmdError(f"the key file {path} cannot be used: {error}", _LOST) from None


def _make(path: Path) -> Keys:
    """The first key; that of another server which made one meanwhile."""
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        handle, fresh = tempfile.mkstemp(prefix=".", dir=path.parent)  # 0600
        try:
            _fill(handle, Keys.new())
            with contextlib.suppress(FileExistsError):
                os.link(fresh, path)
        finally:
            Path(fresh).unlink()
        _sync(path.parent)
    except OSError as error:
        raise CmdError(
            f"the key file {path} cannot be made: {error}", "see to its rights"
        ) from None
    keys = _read(path)
    assert keys is not None  # noqa: S101 - made above
    return keys


def _or_new(path: Path) -> Keys:
    """The key; a new one where there is none that can be used, which is then put aside."""
    try:
        keys = _read(path)
    except CmdError:
        path.rename(path.with_name(f"{path.name}.unusable"))
        keys = None
    return keys or _make(path)


def _write(path: Path, keys: Keys) -> None:
    """Replaces the file whole. What a killed call leaves has a name that the next one uses again."""
    fresh = path.with_name(f"{path.name}.new")
    try:
        _fill(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), keys)
        fresh.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise CmdError(
            f"the key file {path} cannot be replaced: {error}", "repeat this when that is mended"
        ) from None


def _fill(handle: int, keys: Keys) -> None:
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(render(keys))
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """A file's new name is kept over a power failure once its folder is."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
