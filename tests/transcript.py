"""Runs what a page of docs/ shows, and compares what it prints.

A transcript is indented by four spaces: `$ ` and a command line, then what it prints, both streams
together. `...` stands for anything within a line, and for any lines where it is one of its own.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.service_lab import PATIENCE, Service

HOST = "cmd.example.org"
"""The service's name on the pages."""
SHIM = """\
#!/bin/bash
# The page's ssh: its host is the test's server.
words=()
while [[ $1 == -* ]]; do
    words+=("$1")
    if [[ $1 == -[io] ]]; then words+=("$2"); shift; fi
    shift
done
if [[ $1 == *@* ]]; then words+=(-l "${{1%%@*}}"); set -- "${{1#*@}}" "${{@:2}}"; fi
[[ $1 == {host} ]] || {{ echo "another host: $1" >&2; exit 1; }}
exec {ssh} "${{words[@]}}" {line} "${{@:2}}"
"""


def steps(page: str) -> Iterator[tuple[str, list[str]]]:
    """Each command line, and the lines that it is to print."""
    command: str | None = None
    expected: list[str] = []
    for line in [*page.splitlines(), ""]:
        shown = line.removeprefix("    ") if line.startswith("    ") else None
        if command is not None and (shown is None or shown.startswith("$ ")):
            yield command, expected
            command, expected = None, []
        if shown is not None and shown.startswith("$ "):
            command = shown[2:]
        elif command is not None and shown is not None:
            expected.append(shown)


def run(page: str, service: Service, folder: Path, user: str = "alice") -> int:
    """Runs the page's transcripts one after another in `folder`; how many lines there were."""
    tools = folder / ".tools"
    tools.mkdir(exist_ok=True)
    ssh, *words = service.command_line(user=user)
    real = shutil.which(ssh)
    _program(tools / "ssh", SHIM.format(host=HOST, ssh=real, line=shlex.join(words)))
    _program(tools / "cmdsvc", f'#!/bin/sh\nexec {sys.executable} -m cmdsvc "$@"\n')
    environment = {**service.environment, "PATH": f"{tools}:{os.environ['PATH']}"}
    count = 0
    for command, expected in steps(page):
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE,
            check=False,
        )
        printed = done.stdout.decode()
        assert _pattern(expected).fullmatch(printed), f"$ {command}\n{printed}"
        count += 1
    return count


def _pattern(lines: list[str]) -> re.Pattern[str]:
    parts = []
    for line in lines:
        if line == "...":
            parts.append(r"(?:[^\n]*\n)*")
        else:
            parts.append(".*".join(map(re.escape, line.split("..."))) + "\n")
    return re.compile("".join(parts))


def _program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)
