"""Who logs in: what a client offers, against all that says whom it belongs to."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from cmdsvc.model import Via, valid_user
from cmdsvc.ssh.blobs import is_hardware, verified
from cmdsvc.ssh.certificates import Authorities, Certificate, is_certificate, parse
from cmdsvc.ssh.keys import KeyRing
from cmdsvc.ssh.published import Published
from cmdsvc.ssh.restrictions import FREE, Line, Restrictions
from cmdsvc.ssh.revocation import Revocations

log = logging.getLogger("cmdsvc.ssh")


@dataclass(frozen=True, slots=True)
class Login:
    """Who a client is once it has signed with `key`, the plain public key."""

    user: str
    via: Via
    key: bytes
    restrictions: Restrictions = FREE
    certificate: Certificate | None = None


class Identities:
    def __init__(
        self, ring: KeyRing, published: Published, authorities: Authorities, revoked: Revocations
    ) -> None:
        self.ring = ring
        self.published = published
        self.authorities = authorities
        self.revoked = revoked

    async def find(self, name: str, offered: bytes, signature: bytes, address: str) -> Login | None:
        """Who it is that claims `name` and offers a key or a certificate; None for nobody.

        `signature` is empty where the client only asks. It is not checked here, but for what a
        security key says in it of its user.
        """
        try:
            if is_certificate(offered):
                return self._by_certificate(name, offered, signature, address)
            if self.revoked.key(offered):
                return None
            owner, lines = self.ring.lines(offered)
            if owner is not None:
                for line in lines:
                    given = line.restrictions
                    if not _refusal(given, offered, signature, address):
                        return Login(owner, Via.KEY, offered, given)
                return None
            if offered in await self.published.keys(name):
                return Login(name, Via.PUBLISHED, offered)
        except ValueError:  # a key, a certificate or a signature that is none
            pass
        return None

    def usable(self, line: Line) -> bool:
        """Whether a line of a keys file lets anybody in now."""
        expires = line.restrictions.expires_at
        return not self.revoked.key(line.key.public_data) and (
            expires is None or time.time() < expires
        )

    def proved(self, login: Login) -> None:
        """The client has signed."""
        if login.via is Via.PUBLISHED:
            self.published.proved(login.user)

    def holds(self, login: Login) -> bool:
        """Whether what the client logged in by still counts: asked before each session on it."""
        if self.revoked.key(login.key):
            return False
        certificate = login.certificate
        if certificate is not None:
            return not self._certificate_refusal(login.user, certificate)
        if login.via is Via.PUBLISHED:
            return self.published.holds(login.user, login.key)
        owner, lines = self.ring.lines(login.key)
        return owner == login.user and any(
            line.restrictions == login.restrictions and self.usable(line) for line in lines
        )

    def _by_certificate(
        self, name: str, offered: bytes, signature: bytes, address: str
    ) -> Login | None:
        certificate = parse(offered)
        if not self.authorities.vouch(certificate):
            return None
        given = FREE
        try:
            given = certificate.restrictions()
            why = _refusal(given, certificate.key, signature, address)
        except ValueError as error:
            why = str(error)
        why = self._certificate_refusal(name, certificate) or why
        if why:
            fields = {
                "claimed": name,
                "address": address,
                "id": certificate.key_id.decode(errors="replace"),
                "serial": certificate.serial,
            }
            log.info("a certificate is refused: %s", why, extra={"fields": fields})
            return None
        return Login(name, Via.CERTIFICATE, certificate.key, given, certificate)

    def _certificate_refusal(self, name: str, certificate: Certificate) -> str:
        if not valid_user(name):
            return "the user's name cannot be one"
        if not self.authorities.trusts(certificate.authority):
            return "its CA is not trusted"
        revoked = self.revoked
        if (
            revoked.key(certificate.key)
            or revoked.key(certificate.authority)
            or revoked.certificate(certificate.authority, certificate.serial, certificate.key_id)
        ):
            return "revoked"
        return certificate.refusal(name, time.time())


def _refusal(given: Restrictions, key: bytes, signature: bytes, address: str) -> str:
    """ValueError for a security key's signature that cannot be read."""
    if given.verify:
        if not is_hardware(key):
            return "only a security key can say that its user was verified"
        if signature and not verified(signature):
            return "the security key did not verify its user"
    return given.refusal(address, time.time())
