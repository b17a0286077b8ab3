"""The certificate of the HTTP door, read again when it is renewed."""

from __future__ import annotations

import logging
import ssl
import time
from pathlib import Path

from cmdsvc.errors import CmdError

log = logging.getLogger("cmdsvc.http")

RECHECK = 1.0
"""Seconds between two looks at the files."""

_Stamp = tuple[tuple[int, int], ...]


class Certificate:
    """`open` comes first. CmdError where the files cannot be used."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._paths = (certificate, key)
        self._seen: _Stamp = ()
        self._looked = 0.0
        self._context: ssl.SSLContext | None = None

    def open(self) -> None:
        self._context = self._read()
        self._seen = self._stamp()

    @property
    def context(self) -> ssl.SSLContext:
        """Of the newest files that belong together: they are not replaced at the same moment."""
        assert self._context is not None  # noqa: S101 - open() comes first
        now = time.monotonic()
        if now - self._looked >= RECHECK:
            self._looked = now
            self._look()
        return self._context

    def _look(self) -> None:
        try:
            found = self._stamp()
            if found != self._seen:
                self._seen = found
                self._context = self._read()
                log.info("another certificate is in force")
        except (CmdError, OSError) as error:
            log.warning("the certificate of before stays in force: %s", error)

    def _stamp(self) -> _Stamp:
        found = [path.stat() for path in self._paths]
        return tuple((status.st_mtime_ns, status.st_ino) for status in found)

    def _read(self) -> ssl.SSLContext:
        certificate, key = self._paths
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(certificate, key, password="")  # else it is asked for
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise CmdError(
                f"{certificate} and {key} are no certificate and its key: {error}",
                "mend CMDSVC_TLS_CERT and CMDSVC_TLS_KEY (PEM, without a passphrase)",
            ) from None
        return context
