"""The ready-made commands: `*.cmd` files that every instance offers to everyone."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cmdsvc.model import READY_MADE, Command, Version, valid_name
from cmdsvc.recipe import recipe
from cmdsvc.script import parse


@dataclass(frozen=True, slots=True)
class ReadyMade:
    """Read once at start; a file that cannot be parsed stops the start, as a packaging fault."""

    commands: dict[str, Command]

    def find(self, name: str) -> Command | None:
        return self.commands.get(name)


def folder() -> Path:
    """Where the files are: inside the installed package, or at the top of the checkout."""
    package = Path(__file__).parent.parent
    installed = package / "_builtins"
    return installed if installed.is_dir() else package.parent / "builtins"


def load(bases: dict[str, str], where: Path | None = None) -> ReadyMade:
    commands = {}
    for path in sorted((where or folder()).glob("*.cmd")):
        name = path.stem
        if not valid_name(name):
            raise ValueError(f"{path.name}: not a command's name")
        source = path.read_bytes()
        script = parse(source)
        commands[name] = Command(
            owner=READY_MADE,
            name=name,
            description=script.metadata.description,
            version=Version(
                number=1,
                source=source,
                author=READY_MADE,
                created_at=datetime.fromtimestamp(path.stat().st_mtime, UTC),
                digest=recipe(script, bases).digest,
            ),
        )
    return ReadyMade(commands)
