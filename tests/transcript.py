"""Runs what a page of docs/ shows, and compares what it prints.

A transcript is indented by four spaces: `$ ` and a command line, then what it prints, both streams
together. `...` stands for anything within a line, and for any lines where it is one of its own.
What it calls by ssh, or by curl, is the test's server.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
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
CURL = """\
#!/bin/bash
# The page's curl, as it is on a terminal: its host is the test's server.
exec {curl} --no-progress-meter --max-time {patience:g} "${{@//https:\\/\\/{host}/{url}}}"
"""


def files(page: str) -> Iterator[tuple[str, str]]:
    """What the page shows as files, in fences that say a language and a name: name and text."""
    yield from re.findall(r"^```\w+ (\S+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


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


def run(
    page: str, service: Service, folder: Path, user: str = "alice", by_itself: str = "$^"
) -> int:
    """Runs the page's transcripts one after another beside its files; how many lines there were.

    Of what the service does by itself nobody tells: lines in which `by_itself`, a regular
    expression, is found are repeated until they print what is shown.
    """
    tools = folder / ".tools"
    tools.mkdir(exist_ok=True)
    ssh, *words = service.command_line(user=user)
    real = shutil.which(ssh)
    _program(tools / "ssh", SHIM.format(host=HOST, ssh=real, line=shlex.join(words)))
    curl = CURL.format(curl=shutil.which("curl"), patience=PATIENCE, host=HOST, url=service.url)
    _program(tools / "curl", curl)
    _program(tools / "cmdsvc", f'#!/bin/sh\nexec {sys.executable} -m cmdsvc "$@"\n')
    environment = {**service.environment, "PATH": f"{tools}:{os.environ['PATH']}"}
    for name, text in files(page):
        (folder / name).write_text(text)
    count = 0
    for command, expected in steps(page):
        pattern, printed = _pattern(expected), _printed(command, folder, environment)
        end = time.monotonic() + PATIENCE
        while not pattern.fullmatch(printed):
            assert re.search(by_itself, command), f"$ {command}\n{printed}"
            assert time.monotonic() < end, f"$ {command}\n{printed}"
            time.sleep(0.1)
            printed = _printed(command, folder, environment)
        count += 1
    return count


def _printed(command: str, folder: Path, environment: dict[str, str]) -> str:
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
    return done.stdout.decode().replace("\r\n", "\n")  # the ends of header lines


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
