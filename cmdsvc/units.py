"""Units for systemd, by the settings in force."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from cmdsvc.config import PREFIX, Settings

STATE = "/var/lib/cmdsvc"
SECRETS = "/etc/cmdsvc.env"
SECRET = frozenset({"database_url", "metrics_token"})
"""Settings that are not for a unit, which everybody can read."""

UNIT = """\
# {path}
[Unit]
Description=cmdsvc: shell scripts as a service over SSH and HTTP
Wants=network-online.target
After=network-online.target{after}

[Service]
Type=notify
ExecStart={program} serve
WorkingDirectory={state}
StateDirectory=cmdsvc
StateDirectoryMode=0700
{environment}# What runs has {drain:g} s to end when the service is stopped.
TimeoutStopSec={stop:g}
KillMode=mixed
Restart=on-failure
RestartSec=2
LimitNOFILE=65536
UMask=0077
{engine}
# What a fault in the service itself could reach.
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome={home}
PrivateTmp=yes
ProtectClock=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
RestrictRealtime=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6{families}
SystemCallArchitectures=native
LockPersonality=yes
KeyringMode=private
{hardening}
[Install]
WantedBy=multi-user.target
"""

DOCKER = """\
# Whoever talks to the Docker engine can become root on its machine: keep this one to itself.
User=cmdsvc
Group=cmdsvc
SupplementaryGroups=docker
"""
DOCKER_HARDENING = """\
CapabilityBoundingSet=
AmbientCapabilities=
PrivateDevices=yes
ProtectHostname=yes
ProtectControlGroups=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProcSubset=pid
MemoryDenyWriteExecute=yes
RestrictNamespaces=yes
RestrictSUIDSGID=yes
RemoveIPC=yes
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM
"""

BUBBLEWRAP = """\
# As root: sandboxes get users, control groups and networks of their own, and none of root's rights.
Delegate=yes
CapabilityBoundingSet={capabilities}
"""
CAPABILITIES = (
    "CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SETUID", "CAP_SETGID", "CAP_SETFCAP", "CAP_CHOWN",
    "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_SYS_PTRACE", "CAP_SYS_RESOURCE",
    "CAP_NET_BIND_SERVICE",
)  # fmt: skip
"""What the engine needs of root's rights: namespaces, networks, and the users of sandboxes."""
BUBBLEWRAP_HARDENING = """\
PrivateDevices=yes
RestrictNamespaces=user mnt pid net ipc uts cgroup
# What is set here holds in the sandboxes too, so nothing that scripts or packages may need: no
# RestrictSUIDSGID, MemoryDenyWriteExecute or SystemCallFilter (sandboxes have filters of their
# own), no ProtectHostname (they have a name), and /proc stays whole, since the kernel gives a
# sandbox one of its own only then.
"""

SOCKET = """\
# {path}
[Unit]
Description=cmdsvc: the sockets, open while the service is restarted

[Socket]
# For SSH and then for HTTP: the service tells them apart by their order.
ListenStream={ssh}
ListenStream={http}
Backlog=512
NoDelay=yes

[Install]
WantedBy=sockets.target
"""


def service_unit(settings: Settings) -> str:
    """For the engine that the settings name; `auto` is docker's."""
    docker = settings.engine != "bubblewrap"
    return UNIT.format(
        path="/etc/systemd/system/cmdsvc.service",
        after=" docker.service" if docker else "",
        program=_program(),
        state=STATE,
        environment="".join(_environment(settings)),
        drain=settings.drain,
        stop=settings.drain + 30,
        engine=DOCKER if docker else BUBBLEWRAP.format(capabilities=" ".join(CAPABILITIES)),
        home="read-only" if _at_home() else "yes",
        families="" if docker else " AF_NETLINK",
        hardening=DOCKER_HARDENING if docker else BUBBLEWRAP_HARDENING,
    )


def socket_unit(settings: Settings) -> str:
    return SOCKET.format(
        path="/etc/systemd/system/cmdsvc.socket",
        ssh=settings.ssh_listen.removeprefix("0.0.0.0:"),
        http=settings.http_listen.removeprefix("0.0.0.0:"),
    )


def _environment(settings: Settings) -> Iterator[str]:
    """What is set now, also in the file, as systemd reads it; the folders are the unit's own."""
    made = {
        "data_dir": f"{STATE}/var",
        "keys_dir": f"{STATE}/keys",
        "engine": settings.engine if settings.engine != "auto" else "docker",
    }
    given = {name: _spelled(getattr(settings, name)) for name in settings.model_fields_set}
    for name, value in sorted({**given, **made}.items()):
        if name not in SECRET:
            assignment = _quoted(f"{PREFIX}{name.upper()}={value}")
            yield f"Environment={assignment}\n"
    if SECRET & settings.model_fields_set:
        names = ", ".join(f"{PREFIX}{name.upper()}" for name in sorted(SECRET))
        yield f"# For root alone to read (0600), with {names}: everybody reads a unit.\n"
        yield f"EnvironmentFile={SECRETS}\n"


def _spelled(value: object) -> str:
    """As it is read back from the environment, in another working directory too."""
    if isinstance(value, tuple):
        return ",".join(map(_spelled, value))
    return str(value.absolute() if isinstance(value, Path) else value)


def _quoted(assignment: str) -> str:
    """As systemd.exec(5) and systemd.syntax(7) read it back."""
    escaped = assignment.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def _at_home() -> bool:
    """Whether a part of this program is in somebody's home."""
    parts = (sys.argv[0], sys.executable, sys.prefix, sys.base_prefix, __file__)
    return any(str(Path(part).resolve()).startswith(("/home/", "/root/")) for part in parts)


def _program() -> str:
    """What started this one, to be started again."""
    program = Path(sys.argv[0]).absolute()
    if program.name == "cmdsvc" and os.access(program, os.X_OK):
        return shlex.quote(str(program))
    return f"{shlex.quote(sys.executable)} -m cmdsvc"
