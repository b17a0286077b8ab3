"""`cmdsvc check`: what is in force, and what is wrong with it."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import stat
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cmdsvc import app, config
from cmdsvc.config import Settings, split_address
from cmdsvc.engine import Finding
from cmdsvc.engine.bases import is_tarball
from cmdsvc.errors import CmdError, UsageError
from cmdsvc.service import secretkey
from cmdsvc.ssh.certificates import Authorities
from cmdsvc.ssh.keys import read_user_keys
from cmdsvc.ssh.revocation import Revocations
from cmdsvc.store import look, open_store
from cmdsvc.store.kinds import Found
from cmdsvc.web.certificate import Certificate

LITTLE = 1 << 30
TOO_LITTLE = 100 << 20
"""Free bytes on the disk of the data folder."""
ANSWER = 10.0
"""Seconds in which a server that runs has to answer."""
CREDENTIALS = re.compile(r"(?<=://)\S*(?=@)|(?<=password=)[^&\s]*")


async def check(*, quiet: bool = False, running: bool = False) -> int:
    """Prints the settings and the findings; 0 where nothing is an error, else 1.

    `quiet`: only warnings and errors, for who looks every few minutes. `running`: it is an error
    that no server runs.
    """
    console = Console(soft_wrap=True, highlight=False)
    try:
        settings = config.load()
    except UsageError as error:
        _print(console, [Finding("error", error.what, error.hint)])
        return 1
    if not quiet:
        table = Table("setting", "in force", box=None)
        for name, value in settings.model_dump().items():
            shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            table.add_row(f"{config.PREFIX}{name.upper()}", CREDENTIALS.sub("***", shown))
        console.print(table)
    findings = [
        *_unknown(),
        *_bases(settings),
        *_keys(settings),
        *_identity(settings),
        *await _store(settings),
        *_disk(settings.data_dir),
        *await _server(settings, needed=running),
        *_tls(settings),
        *await _engine(settings),
    ]
    _print(console, [f for f in findings if not quiet or f.level != "ok"])
    return int(any(f.level == "error" for f in findings))


def _print(console: Console, findings: list[Finding]) -> None:
    for f in findings:
        console.print(f"{f.level:<8}{f.what}{f'; {f.hint}' if f.hint else ''}", markup=False)


def _unknown() -> list[Finding]:
    known = {f"{config.PREFIX}{name.upper()}" for name in Settings.model_fields}
    return [
        Finding("warning", f"{name} is not a setting", "mind the spelling")
        for name in sorted(os.environ)
        if name.startswith(config.PREFIX) and name not in known
    ]


def _bases(settings: Settings) -> list[Finding]:
    findings = []
    for base, source in settings.bases.items():
        if not is_tarball(source) or "://" in source:
            findings.append(Finding("ok", f"base {base}: {source}, fetched at its first use"))
        elif Path(source).is_file():
            findings.append(Finding("ok", f"base {base}: {source}"))
        else:
            findings.append(
                Finding("error", f"base {base}: {source} is not there", "give a tarball's path")
            )
    if settings.apk_keys is not None and not any(settings.apk_keys.glob("*.pub")):
        findings.append(
            Finding("error", f"no public keys in {settings.apk_keys}", "mend CMDSVC_APK_KEYS")
        )
    return findings


def _keys(settings: Settings) -> list[Finding]:
    findings = []
    users = sorted((settings.keys_dir / "users").glob("*.pub"))
    count = sum(len(read_user_keys(path)) for path in users)
    if count or settings.keys_url_users or settings.user_ca_keys:
        findings.append(Finding("ok", f"{count} keys of {len(users)} users"))
    else:
        findings.append(
            Finding("warning", "nobody can log in", "cmdsvc user add NAME PUBLIC_KEY_FILE")
        )
    for name, what in (("ssh_host_ed25519_key", "host key"), (secretkey.FILE, "secret key")):
        key = settings.keys_dir / name
        if not key.exists():
            findings.append(Finding("ok", f"the {what} will be made at the first start"))
        elif stat.S_IMODE(key.stat().st_mode) & 0o077:
            findings.append(Finding("error", f"others can read {key}", f"chmod 600 {key}"))
        else:
            findings.append(Finding("ok", f"{what} {key}"))
    return findings


def _identity(settings: Settings) -> list[Finding]:
    """What else than the keys folder lets users in, or keeps them out."""
    findings = []
    users, operators = set(settings.keys_url_users), ",".join(settings.operators)
    if settings.keys_url and not users:
        findings.append(
            Finding("warning", "the keys URL counts for nobody", "set CMDSVC_KEYS_URL_USERS")
        )
    elif settings.keys_url and "*" in users and operators:
        findings.append(
            Finding(
                "warning",
                f"who has the name {operators} at {settings.keys_url} operates this service",
                "name the users in CMDSVC_KEYS_URL_USERS",
            )
        )
    elif users and not settings.keys_url:
        findings.append(Finding("warning", "there is no keys URL", "set CMDSVC_KEYS_URL"))
    try:
        if settings.user_ca_keys:
            count = len(Authorities(settings.user_ca_keys).load())
            findings.append(Finding("ok", f"user certificates of {count} CA keys"))
        if settings.revoked_keys:
            count = len(Revocations(settings.revoked_keys).load())
            findings.append(Finding("ok", f"{count} entries in {settings.revoked_keys}"))
    except CmdError as error:
        findings.append(Finding("error", error.what, error.hint))
    return findings


async def _store(settings: Settings) -> list[Finding]:
    """Nothing is made or migrated: that is the server's, at its start."""
    try:
        found = await look(settings.url)
        if found is Found.NOTHING:
            return [Finding("ok", "the store will be made at the first start")]
        if found is Found.OLDER:
            return [Finding("ok", "the store is of an older version, which the next start mends")]
        store = await open_store(settings.url)
        try:
            await secretkey.check_key(settings.keys_dir, store)
            usage = await store.usage()
        finally:
            await store.aclose()
    except CmdError as error:
        return [Finding("error", error.what, error.hint)]
    return [Finding("ok", f"store: {usage['commands']} commands, {usage['runs']} runs")]


def _disk(data_dir: Path) -> list[Finding]:
    try:
        with app.lock(data_dir):
            pass
    except app.HeldError:
        pass
    except CmdError as error:
        return [Finding("error", error.what, error.hint)]
    folder = next(
        path for path in (data_dir.absolute(), *data_dir.absolute().parents) if path.exists()
    )
    free = shutil.disk_usage(folder).free
    what = f"{free >> 20}M are free for {data_dir}"
    if free >= LITTLE:
        return [Finding("ok", what)]
    return [Finding("error" if free < TOO_LITTLE else "warning", what, "free some")]


async def _server(settings: Settings, *, needed: bool) -> list[Finding]:
    host, port = split_address(settings.ssh_listen)
    if _runs(settings.data_dir):
        if not port or await _answers(host, port):
            return [Finding("ok", f"a server runs on {settings.data_dir}")]
        what = f"a server runs on {settings.data_dir}, and none answers at {settings.ssh_listen}"
        return [Finding("error", what, "see to its log, and to CMDSVC_SSH_LISTEN here")]
    if needed:
        return [Finding("error", f"no server runs on {settings.data_dir}", "see to its log")]
    return [_listening("SSH", settings.ssh_listen), _listening("HTTP", settings.http_listen)]


def _listening(door: str, address: str) -> Finding:
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError as error:
            return Finding(
                "error",
                f"cannot listen on {address}: {error.strerror}",
                f"set {config.PREFIX}{door}_LISTEN to a free address",
            )
    return Finding("ok", f"can listen on {address}, {door}")


def _tls(settings: Settings) -> list[Finding]:
    try:
        files = app.web_settings(settings).certificate
        if files is None:
            return []
        Certificate(*files).open()
    except CmdError as error:
        return [Finding("error", error.what, error.hint)]
    return [Finding("ok", f"HTTPS with {files[0]}")]


async def _answers(host: str, port: int) -> bool:
    """Whether an SSH server says so there."""
    try:
        async with asyncio.timeout(ANSWER):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                return (await reader.readline()).startswith(b"SSH-")
            finally:
                writer.close()
    except (OSError, ValueError):  # ValueError: no line, however long
        return False


def _runs(data_dir: Path) -> bool:
    try:
        with app.lock(data_dir):
            return False
    except app.HeldError:
        return True
    except CmdError:  # told already
        return False


async def _engine(settings: Settings) -> list[Finding]:
    try:
        made = app.engine_settings(settings)
    except OSError:  # of the data folder: told already
        return []
    findings: list[Finding] = []
    names = ("docker", "bubblewrap") if settings.engine == "auto" else (settings.engine,)
    for name in names:
        engine = app.make_engine(name, made)
        try:
            found = await engine.check()
        finally:
            await engine.aclose()
        broken = [f for f in found if f.level == "error"]
        if broken and name != names[-1]:
            findings.append(Finding("ok", f"{name} is not used: {broken[0].what}"))
            continue
        return [*findings, Finding("ok", f"engine {name}"), *found]
    return findings
