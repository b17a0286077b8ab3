"""`python -m tests.kit`: make the offline kit and use it by hand."""

import argparse
import logging
import os
import shlex
import signal
import subprocess
import sys
import urllib.request

from tests.kit import KitError, Server, build, debian

INTERNET = "https://dl-cdn.alpinelinux.org/alpine/latest-stable/"


def with_alpine(command: list[str]) -> int:
    """Runs a command of the service's with an Alpine that can be had; its exit status.

    Settings that name one are left as they are; else the Internet's is used where it is reached.
    """
    if "CMDSVC_BASE_ALPINE" in os.environ or reachable(INTERNET):
        return passing_signals(command, {})
    print("# the Internet's Alpine cannot be reached: the offline kit serves", flush=True)
    kit = build()
    with Server(kit) as server:
        return passing_signals(
            command,
            {
                "CMDSVC_BASE_ALPINE": str(kit.base),
                "CMDSVC_APK_KEYS": str(kit.keys),
                "CMDSVC_ALPINE_MIRROR": server.url,
            },
        )


def reachable(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def passing_signals(command: list[str], settings: dict[str, str]) -> int:
    """Runs the command to its end, handing on what would end this process."""
    process = subprocess.Popen(command, env=os.environ | settings)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: process.send_signal(number))
    return process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.kit", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("build", help="make it if need be, and print where it is")
    verbs.add_parser("env", help="print it as settings of the service, for a shell to eval")
    verbs.add_parser("debian", help="make a Debian base if need be, and print where it is")
    serve = verbs.add_parser("serve", help="print the URL of the mirror and serve it")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=0, help="any free one by default")
    run = verbs.add_parser(
        "run",
        help="run a command on the Internet's Alpine, or on the kit where that is out of reach",
    )
    run.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if given.verb == "debian":
            print(debian())
            return
        if given.verb == "run":
            sys.exit(with_alpine([word for word in given.command if word != "--"]))
        kit = build()
        if given.verb == "serve":
            # Blocked before any thread is started, so that none of them is interrupted.
            ends = {signal.SIGINT, signal.SIGTERM}
            signal.pthread_sigmask(signal.SIG_BLOCK, ends)
            with Server(kit, given.host, given.port) as server:
                print(server.url, flush=True)
                signal.sigwait(ends)
        elif given.verb == "env":
            base, keys = shlex.quote(str(kit.base)), shlex.quote(str(kit.keys))
            print(f"export CMDSVC_BASE_ALPINE={base} CMDSVC_APK_KEYS={keys}")
        else:
            print(kit.base, kit.repo, kit.keys, sep="\n")
    except (KitError, OSError) as error:
        sys.exit(f"kit: {error}")


if __name__ == "__main__":
    main()
