"""`cmdsvc`, the operator's command."""

from __future__ import annotations

import sys

from cmdsvc import __version__


def main() -> None:
    if sys.argv[1:] == ["--version"]:  # before anything costly is imported
        print(f"cmdsvc {__version__}")  # noqa: T201
        return
    from cmdsvc.cli import run  # noqa: PLC0415

    run()


if __name__ == "__main__":
    main()
