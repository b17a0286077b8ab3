"""The packages that are not the image's: useful ones, and those that fail in a known way."""

from collections.abc import Mapping
from hashlib import shake_256
from pathlib import Path

from tests.kit import apk
from tests.kit.debs import Debs, fetch, with_dependencies

FROM_DEBIAN = ("jq", "qrencode", "whois")
FROM_DEBIAN_ALONE = (  # they depend on much else
    *("bash-static", "uuid-runtime", "libuuid1"),
    *("git", "libpcre2-8-0", "zlib1g"),
    *("openssh-client", "libselinux1", "libssl3"),
)
ZEROS = 300 << 20

_ADD_SHELL = b"#!/bin/sh\nadd-shell /bin/bash\nexit 0\n"
_REMOVE_SHELL = b"#!/bin/sh\nremove-shell /bin/bash\nexit 0\n"
_OWN = b"""#!/bin/sh
set -e
addgroup -S owned
adduser -S -D -H -G owned owned
chown owned:owned /var/lib/owned/made
"""


def community(work: Path) -> list[apk.Package]:
    """What installs: Debian's programs under their Alpine names, and a few odd ones.

    What is fetched for it goes into the empty folder `work`, and is to stay until it is written.
    """
    debs = fetch([*with_dependencies(FROM_DEBIAN), *FROM_DEBIAN_ALONE], work)
    zeros = work / "zeros"
    with zeros.open("wb") as out:
        out.truncate(ZEROS)
    bash = debs.versions["bash-static"]
    return [
        apk.Package(
            "bash",
            bash,
            "The GNU Bourne Again shell",
            {"bin/bash": debs.static("bin/bash-static")},
            depends=("/bin/sh",),
            provides=(f"cmd:bash={bash}",),
            scripts={
                "post-install": _ADD_SHELL,
                "post-upgrade": _ADD_SHELL,
                "pre-deinstall": _REMOVE_SHELL,
            },
        ),
        _from_debian(debs, "jq", "jq", "A command-line JSON processor"),
        _from_debian(debs, "qrencode", "libqrencode-tools", "Makes QR codes"),
        _from_debian(debs, "whois", "whois", "Asks whois servers"),
        _from_debian(debs, "uuidgen", "uuidgen", "Makes UUIDs", deb="uuid-runtime"),
        _git(debs),
        _openssh(debs),
        _small(
            "hello-noarch",
            "The same on every architecture",
            {"usr/bin/hello-noarch": apk.file(b"#!/bin/sh\necho hello\n", 0o755)},
            arch="noarch",
        ),
        _small(
            "bigzeros",
            "300 MB of zeros: little to fetch, much to store",
            {"usr/share/bigzeros/zeros": apk.file(zeros)},
        ),
        _small(
            "owned-files",
            "Other owners, setuid, setgid, and a script that changes an owner",
            {
                "var/lib/owned": apk.folder(0o2770, uid=65534, gid=42),
                "var/lib/owned/kept": apk.file(b"x\n", 0o640, uid=100, gid=42),
                "var/lib/owned/made": apk.file(b"x\n", 0o600),
                "usr/bin/owned-suid": apk.file(b"#!/bin/sh\nid\n", 0o4755),
            },
            scripts={"post-install": _OWN},
        ),
    ]


def broken() -> list[apk.Package]:
    """What does not install; two of them only after `spoil`."""
    return [
        _small(
            "broken-postinst",
            "Its post-install script fails",
            scripts={"post-install": b'#!/bin/sh\necho "postinst: I always fail" >&2\nexit 1\n'},
        ),
        _small(
            "broken-preinst",
            "Its pre-install script fails",
            scripts={"pre-install": b'#!/bin/sh\necho "preinst: I always fail" >&2\nexit 3\n'},
        ),
        _small(
            "slow-postinst",
            "Its post-install script sleeps for a minute",
            scripts={"post-install": b"#!/bin/sh\nsleep 60\n"},
        ),
        _small("needs-missing", "Depends on what nobody has", depends=("no-such-package>=2",)),
        _small("conflicts-busybox", "Cannot be beside busybox", depends=("!busybox",)),
        _small(
            "badhash",
            "Another content than its signature says",
            {"usr/share/badhash/noise": apk.file(shake_256(b"badhash").digest(64 << 10))},
        ),
        _small("not-there", "In the index only"),
    ]


def spoil(broken: Path) -> None:
    """Do to the files of the written repository what makes `badhash` and `not-there` fail."""
    (badhash,) = broken.rglob("badhash-*.apk")
    content = bytearray(badhash.read_bytes())
    content[len(content) // 2] ^= 0xFF  # in the noise, which is stored as it is
    badhash.write_bytes(content)
    (not_there,) = broken.rglob("not-there-*.apk")
    not_there.unlink()


def unknown() -> list[apk.Package]:
    """What would install, were its repository's key known."""
    return [_small("stranger", "Signed by a key that nobody has")]


def _from_debian(
    debs: Debs, program: str, name: str, description: str, deb: str = ""
) -> apk.Package:
    version = debs.versions[deb or program]
    return apk.Package(
        name,
        version,
        description,
        debs.with_libraries(f"usr/bin/{program}"),
        depends=("/bin/sh",),
        provides=(f"cmd:{program}={version}",),
    )


def _git(debs: Debs) -> apk.Package:
    """Without what is not in its one program: no scripts, no remotes over HTTP."""
    version = debs.versions["git"]
    served = ("git-receive-pack", "git-upload-archive", "git-upload-pack")
    return apk.Package(
        "git",
        version,
        "Distributed version control",
        {
            **debs.with_libraries("usr/bin/git"),
            **{f"usr/bin/{name}": apk.link("git") for name in served},
            "usr/share/git-core/templates": apk.folder(),
        },
        depends=("/bin/sh",),
        provides=tuple(f"cmd:{name}={version}" for name in ("git", *served)),
    )


def _openssh(debs: Debs) -> apk.Package:
    """What talks to an agent."""
    version = debs.versions["openssh-client"]
    programs = ("ssh-add", "ssh-keygen")
    return apk.Package(
        "openssh-client-default",
        version,
        "OpenSSH's client programs",
        {k: v for name in programs for k, v in debs.with_libraries(f"usr/bin/{name}").items()},
        depends=("/bin/sh",),
        provides=(
            f"openssh-client={version}",
            *(f"cmd:{name}={version}" for name in programs),
        ),
    )


def _small(
    name: str,
    description: str,
    files: Mapping[str, apk.Node] | None = None,
    *,
    arch: str = apk.ARCH,
    depends: tuple[str, ...] = (),
    scripts: Mapping[str, bytes] | None = None,
) -> apk.Package:
    return apk.Package(
        name,
        "1.0-r0",
        description,
        files or {f"usr/share/{name}/file": apk.file(b"x\n" * 500)},
        arch=arch,
        depends=depends,
        scripts=scripts or {},
    )
