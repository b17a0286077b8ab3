"""A minimal Debian root file system from this machine's own apt sources."""

import os
import platform
import shutil
import tarfile
from pathlib import Path

from tests.kit import caching
from tests.kit.process import KitError, run

_FORMAT = "$(ORIGIN) $(RELEASE) $(REPO_URI) $(COMPONENT)"


def debian(cache: Path | None = None) -> Path:
    """Return a tarball of Debian's minbase, made if it is not kept below the folder `cache`.

    Its apt has the same mirrors as this machine's. Raises KitError if there is no mmdebstrap (it
    is installed if we are root) or no Debian mirror among this machine's apt sources.
    """
    suite, sources = _sources()
    name = f"debian-{caching.digest(Path(__file__), suite, sources)}"
    folder = caching.keep(
        (cache or caching.default()) / name, lambda partial: _make(partial, suite, sources)
    )
    return folder / "debian.tar"


def _sources() -> tuple[str, str]:
    """The name of this machine's Debian release, and the lines of a sources.list for it."""
    suite = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    told = run(["apt-get", "indextargets", "--format", _FORMAT, "Created-By: Packages"])
    lines = []
    for target in told.splitlines():
        origin, release, uri, component = target.split()
        ours = release == suite or release.startswith(f"{suite}-")
        if origin == "Debian" and ours and uri.startswith(("http:", "https:")):
            lines.append(f"deb {uri} {release} {component}\n")
    if not any(f" {suite} " in line for line in lines):
        raise KitError("a Debian base needs a Debian mirror among this machine's apt sources")
    return suite, "".join(dict.fromkeys(lines))


def _make(folder: Path, suite: str, sources: str) -> None:
    if not shutil.which("mmdebstrap"):
        if os.geteuid() != 0:
            raise KitError("a Debian base needs mmdebstrap: apt-get install mmdebstrap")
        run(["apt-get", "--quiet", "--yes", "--no-install-recommends", "install", "mmdebstrap"])
    tarball = folder / "debian.tar"
    # No device nodes: whoever unpacks this may not make any, and a sandbox brings its own /dev.
    options = ["--quiet", "--variant=minbase", "--skip=output/dev"]
    options.append('--customize-hook=rm "$1/etc/hostname" "$1/etc/resolv.conf"')  # this machine's
    run(["mmdebstrap", *options, suite, tarball, "-"], text=sources)
    with tarfile.open(tarball, "a") as tar:
        dev = tarfile.TarInfo("./dev")
        dev.type, dev.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(dev)
