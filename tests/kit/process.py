"""Running the tools that the kit is made with."""

import subprocess
from collections.abc import Sequence
from pathlib import Path


class KitError(RuntimeError):
    """The kit cannot be made on this machine; the message says what is missing or what failed."""


def run(command: Sequence[str | Path], *, cwd: Path | None = None, text: str | None = None) -> str:
    """Run `command` with `text` as its input and return what it printed.

    Raises KitError with the command's own last words if it is missing or fails.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words, cwd=cwd, input=text or "", capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise KitError(f"cannot run {words[0]}: {error.strerror}") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-10:]
        raise KitError("\n  ".join([f"exit {done.returncode} from: {' '.join(words)}", *said]))
    return done.stdout
