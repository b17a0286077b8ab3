"""`python -m tests.kit`: make the offline kit and use it by hand."""

import argparse
import logging
import shlex
import signal
import sys

from tests.kit import KitError, Server, build, debian


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.kit", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("build", help="make it if need be, and print where it is")
    verbs.add_parser("env", help="print it as settings of the service, for a shell to eval")
    verbs.add_parser("debian", help="make a Debian base if need be, and print where it is")
    serve = verbs.add_parser("serve", help="print the URL of the mirror and serve it")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=0, help="any free one by default")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if given.verb == "debian":
            print(debian())
            return
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
