"""What runs may ask of the kernel, as the engine takes it: the same rules on every version of it.

The engine's own profile differs from version to version; before 23.0 it let AF_VSOCK through, by
which a virtual machine reaches its host, before 25.0 io_uring.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

RULES: Final = Path(__file__).parent.parent / "bubblewrap" / "seccomp" / "rules.txt"

_ALLOW: Final = "SCMP_ACT_ALLOW"
_ERRNO: Final = "SCMP_ACT_ERRNO"
_EPERM, _ENOSYS = 1, 38
_ARCHITECTURES: Final = ("SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64")


def profile() -> str:
    """The profile as JSON, for the option seccomp=... of a container.

    For the native architecture alone: calls of another one (32 bits) end the process. A call that
    no rule names is refused: as not implemented, by engines before 23.0 as not permitted.
    """
    text = re.sub(r"(?m)^#.*$", "", RULES.read_text())
    sections = re.findall(r"(?m)^\[([^\]]+)\].*$([^\[]*)", text)
    rules = [rule for kind, body in sections for rule in _rules(kind, body.split())]
    return json.dumps(
        {
            "defaultAction": _ERRNO,
            "defaultErrnoRet": _ENOSYS,
            "archMap": [{"architecture": name, "subArchitectures": []} for name in _ARCHITECTURES],
            "syscalls": rules,
        }
    )


def _rules(kind: str, words: list[str]) -> list[dict[str, Any]]:
    what, _, number = kind.partition(" ")
    if what == "allow":
        return [{"names": words, "action": _ALLOW}]
    if what == "allow-argument":
        return [
            _argument(words[0], {"index": int(number), "value": int(value, 0), "op": "SCMP_CMP_EQ"})
            for value in words[1:]
        ]
    if what == "allow-without-flags":
        flags = int(words[1], 0)
        none = {"index": int(number), "value": flags, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
        return [_argument(words[0], none)]
    errno = _EPERM if what == "build-only" else int(number)
    return [{"names": words, "action": _ERRNO, "errnoRet": errno}]


def _argument(name: str, condition: dict[str, Any]) -> dict[str, Any]:
    return {"names": [name], "action": _ALLOW, "args": [condition]}
