"""`cmdsvc`, the operator's command."""

from __future__ import annotations

import gc
import sys

from cmdsvc import __version__


def main() -> None:
    if sys.argv[1:] == ["--version"]:  # before anything costly is imported
        print(f"cmdsvc {__version__}")  # noqa: T201
        return
    gc.disable()  # what is imported stays: it need not be looked through again and again meanwhile
    from cmdsvc.cli import run  # noqa: PLC0415

    gc.enable()
    run()


if __name__ == "__main__":
    main()
