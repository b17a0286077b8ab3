"""What the operator sees of the service and cleans up: facts, space, what nobody needs, the record."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cmdsvc import __version__
from cmdsvc.access import Action, Verdict, may
from cmdsvc.engine import DIGITS, Engine, Layer
from cmdsvc.errors import BusyError, ForbiddenError
from cmdsvc.model import Entry, Identity
from cmdsvc.service.builds import Builds
from cmdsvc.service.commands import Commands
from cmdsvc.service.notices import Notices
from cmdsvc.service.retention import Retention
from cmdsvc.service.runs import Runs
from cmdsvc.store import Store


@dataclass(frozen=True, slots=True)
class Space:
    """What one thing takes. `users` counts what needs it: versions of a layer, layers of a base."""

    name: str
    kind: str
    """layer, base, versions, runs, outputs, disk."""
    count: int
    """Of a layer the versions that need it, of a base the layers upon it, else how many there are."""
    size: int
    """Bytes of its own."""
    shared: int = 0
    """Bytes of what others may have in common with it."""


@dataclass(frozen=True, slots=True)
class Freed:
    """What a prune has removed, or would."""

    name: str
    kind: str
    count: int
    size: int
    """Bytes."""


class Keeping:
    """All of it is for operators: ForbiddenError (77) for others."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        *,
        builds: Builds,
        commands: Commands,
        runs: Runs,
        notices: Notices,
        retention: Retention,
        data_dir: Path,
    ) -> None:
        self._store = store
        self._engine = engine
        self._builds = builds
        self._commands = commands
        self._runs = runs
        self._notices = notices
        self._retention = retention
        self._data_dir = data_dir
        self._began = time.monotonic()
        self._pruning = False

    async def info(self, identity: Identity) -> dict[str, str | int]:
        _gate(identity)
        usage = await self._store.usage()
        disk = await asyncio.to_thread(shutil.disk_usage, self._data_dir)
        notice = self._notices.current
        return {
            "version": __version__,
            "engine": self._engine.name,
            "networks": ",".join(sorted(self._engine.networks)),
            "uptime": round(time.monotonic() - self._began),
            "running": sum(1 for _ in self._runs.live),
            **{name: usage[name] for name in ("users", "commands", "versions", "runs", "tokens")},
            "free": disk.free,
            "doors": "closed" if notice and notice.closed else "open",
            "notice": notice.text if notice else "",
        }

    async def df(self, identity: Identity) -> list[Space]:
        """Layers and bases, the largest first, then what the store holds."""
        _gate(identity)
        layers = await self._engine.layers()
        needs = _short(await self._store.digests())
        upon = Counter(layer.below for layer in layers if not layer.base)
        found = [
            Space(
                layer.name,
                "base" if layer.base else "layer",
                upon[layer.name] if layer.base else needs[layer.name[:DIGITS]],
                layer.size,
                layer.shared,
            )
            for layer in sorted(layers, key=lambda layer: (layer.base, -layer.size))
        ]
        usage = await self._store.usage()
        disk = await asyncio.to_thread(shutil.disk_usage, self._data_dir)
        return [
            *found,
            Space("versions", "store", usage["versions"], usage["source_bytes"]),
            Space("runs", "store", usage["runs"], 0),
            Space("outputs", "store", usage["outputs"], usage["output_bytes"]),
            Space("free", "disk", 0, disk.free),
        ]

    async def prune(self, identity: Identity, *, dry_run: bool) -> list[Freed]:
        """Removes what nobody needs; `dry_run`: says what it would remove.

        Layers that no version needs, old ones included, and no ready-made command; bases that no
        layer needs and no build would take; runs and outputs past their time. What is in use stays.
        """
        _gate(identity)
        if self._pruning:
            raise BusyError("a prune is going on", "wait for its end")
        self._pruning = True
        try:
            freed = await self._prune(dry_run=dry_run)
        finally:
            self._pruning = False
        if not dry_run:
            counted = Counter[str]()
            for one in freed:
                counted[one.kind] += one.count
            what = ", ".join(f"{count} {kind}" for kind, count in counted.items())
            size = sum(one.size for one in freed)
            detail = f"{what}: {size} bytes" if freed else "nothing"
            await self._store.record(Entry(datetime.now(UTC), identity.user, "prune", "", detail))
        return freed

    async def log(self, identity: Identity, limit: int) -> list[Entry]:
        """The record, newest first."""
        _gate(identity)
        return await self._store.entries(limit=limit)

    async def _prune(self, *, dry_run: bool) -> list[Freed]:
        runs, size = await self._retention.retire(dry_run=dry_run)
        freed = [Freed("runs", "runs", runs, 0)] if runs else []
        freed += [Freed("outputs", "outputs", 1, size)] if size else []
        removed = set[str]()
        for layer in await self._unneeded():
            if dry_run or await self._remove(layer):
                removed.add(layer.name)
                freed.append(Freed(layer.name, "layers", 1, layer.size))
        layers = await self._engine.layers()
        needed = {layer.below for layer in layers if not layer.base and layer.name not in removed}
        for base in layers:
            if not base.base or base.wanted or base.name in needed:
                continue
            if dry_run or await self._engine.remove(base):
                freed.append(Freed(base.name, "bases", 1, base.size))
        return freed

    async def _unneeded(self) -> Sequence[Layer]:
        layers = [layer for layer in await self._engine.layers() if not layer.base]
        stored = _short(await self._store.digests())
        left = [layer for layer in layers if not stored[layer.name[:DIGITS]]]
        if not left:
            return []
        # What runs take today: of another layer, where bases come from elsewhere than at upload.
        today = _short(dict.fromkeys(await self._commands.digests(), 1))
        return [layer for layer in left if not today[layer.name[:DIGITS]]]

    async def _remove(self, layer: Layer) -> bool:
        """False where it came into use meanwhile: it was not needed when that was looked up."""
        if self._builds.holds(layer.name):
            return False
        needed = _short(await self._store.digests())
        if needed[layer.name[:DIGITS]] or self._builds.holds(layer.name):
            return False
        return await self._engine.remove(layer)


def _short(digests: dict[str, int]) -> Counter[str]:
    counted = Counter[str]()
    for digest, count in digests.items():
        counted[digest[:DIGITS]] += count
    return counted


def _gate(identity: Identity) -> None:
    if may(identity, Action.OPERATE) is not Verdict.ALLOWED:
        raise ForbiddenError("only operators keep the service in order", "ask one of them")
