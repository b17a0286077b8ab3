"""Package layers: a container of the base in which the package manager runs, kept as an image."""

from __future__ import annotations

import io
import tarfile
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cmdsvc.engine import Progress
from cmdsvc.engine.docker.attached import Attached
from cmdsvc.engine.docker.http import Api, ApiError
from cmdsvc.engine.docker.images import INSTANCE_LABEL
from cmdsvc.engine.docker.janitor import Janitor
from cmdsvc.engine.docker.sandbox import START_TIMEOUT
from cmdsvc.engine.packages import CACHE, Plan, diagnose
from cmdsvc.errors import EngineError, printable
from cmdsvc.recipe import Recipe

_KEPT: Final = 200
"""Lines of output kept to tell what went wrong."""

_LINE: Final = 2000
"""Bytes of a line; the rest of a longer one is dropped."""

_NOTED: Final = 2.0
"""Seconds until the engine has noted a container's end at most."""

_MEMORY: Final = 2 * 2**30

_COMMIT_TIMEOUT: Final = 300.0

_CAPABILITIES: Final = (
    "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "MKNOD", "SETFCAP", "SETGID", "SETUID",
    "SYS_CHROOT",
)  # fmt: skip
"""What installing packages needs of root's rights."""


class Build:
    """Makes one layer. Its container is removed whatever happens."""

    def __init__(
        self,
        api: Api,
        janitor: Janitor,
        recipe: Recipe,
        labels: Mapping[str, str],
        progress: Progress,
    ) -> None:
        self._api = api
        self._janitor = janitor
        self._recipe = recipe
        self._labels = labels
        self._progress = progress
        self._output: deque[str] = deque(maxlen=_KEPT)

    async def run(
        self, plan: Plan, base: str, repository: str, tag: str, *, packages: str, seconds: float
    ) -> None:
        """Runs `plan` on the image `base` and keeps the result as `repository`:`tag`.

        `packages` is the volume of what builds have fetched. The container ends by itself after
        `seconds`, should this service die. Errors: as of `Engine.build`.
        """
        container = await self._create(base, seconds, packages)
        try:
            if plan.files:
                await self._api.call(
                    "PUT",
                    f"/containers/{container}/archive",
                    query={"path": "/"},
                    tar=_archive(plan.files),
                )
            await self._api.call("POST", f"/containers/{container}/start", timeout=START_TIMEOUT)
            for step in plan.steps:
                status = await self._step(container, step, plan.env)
                if status == 137 and await self._has_ended(container):
                    raise _ended()
                if status != 0:
                    raise diagnose(self._recipe, status, list(self._output))
            await self._api.call("POST", f"/containers/{container}/kill", query={"signal": "KILL"})
            await self._api.call(
                "POST",
                "/commit",
                query={"container": container, "repo": repository, "tag": tag, "pause": "0"},
                timeout=_COMMIT_TIMEOUT,
            )
        finally:
            self._janitor.discard(container)

    async def _create(self, base: str, seconds: float, packages: str) -> str:
        body = {
            "Image": base,
            "Entrypoint": ["sleep"],
            "Cmd": [str(int(seconds) + 60)],
            "User": "0:0",
            "WorkingDir": "/",
            "Labels": self._labels,
            "StopSignal": "SIGKILL",
            "HostConfig": {
                "Init": True,
                # The machine's own: a mirror may listen on its loopback.
                "NetworkMode": "host",
                "LogConfig": {"Type": "none"},
                "CapDrop": ["ALL"],
                "CapAdd": list(_CAPABILITIES),
                "SecurityOpt": ["no-new-privileges"],
                "Memory": _MEMORY,
                "MemorySwap": _MEMORY,
                "PidsLimit": 1024,
                "Mounts": [
                    {
                        "Type": "volume",
                        "Source": packages,
                        "Target": CACHE,
                        "VolumeOptions": {
                            "NoCopy": True,
                            "Labels": {INSTANCE_LABEL: self._labels[INSTANCE_LABEL]},
                        },
                    }
                ],
            },
        }
        return await self._janitor.create(body)

    async def _step(self, container: str, step: Sequence[str], env: Mapping[str, str]) -> int:
        """Runs one program in the container; its exit status."""
        made = await self._api.call(
            "POST",
            f"/containers/{container}/exec",
            body={
                "AttachStdout": True,
                "AttachStderr": True,
                "Cmd": list(step),
                "Env": [f"{name}={value}" for name, value in env.items()],
                "User": "0:0",
                "WorkingDir": "/",
            },
        )
        try:
            stream = await self._api.upgrade(
                f"/exec/{made['Id']}/start", body={"Detach": False, "Tty": False}
            )
        except ApiError as error:
            if error.status == 400 and "executable file not found" in error.message:
                return 127
            raise
        lines = {fd: Lines() for fd in (1, 2)}
        try:
            output = Attached(container, stream, terminal=False)
            while piece := await output.next():
                fd, data = piece
                for line in lines[fd].feed(data) if fd in lines else ():
                    self._tell(line)
        finally:
            stream.close()
        for rest in lines.values():
            for line in rest.feed(b"\n"):
                self._tell(line)
        state: Mapping[str, Any] = await self._api.call("GET", f"/exec/{made['Id']}/json")
        if state.get("Running") or state.get("ExitCode") is None:
            raise _ended()
        return int(state["ExitCode"])

    async def _has_ended(self, container: str) -> bool:
        """Whether it was the whole container that was killed, as when the engine is stopped."""
        try:
            await self._api.call("POST", f"/containers/{container}/wait", timeout=_NOTED)
        except ApiError:
            return True
        except EngineError:
            return False
        return True

    def _tell(self, line: str) -> None:
        self._output.append(line)
        self._progress(line)


class Lines:
    """Bytes to lines of printable text, without empty ones, each of a bounded length."""

    def __init__(self) -> None:
        self._part = b""

    def feed(self, data: bytes) -> list[str]:
        *whole, part = (self._part + data).replace(b"\r", b"\n").split(b"\n")
        self._part = part[:_LINE]
        texts = (printable(line[:_LINE].decode(errors="replace")).rstrip() for line in whole)
        return [text for text in texts if text]


def _ended() -> EngineError:
    return EngineError("the Docker engine ended the build", "try again when it is back")


def _archive(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()
