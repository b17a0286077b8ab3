"""The schemes by which providers sign what they send to a hook; pure.

Where a rule is a provider's own, its documentation is named.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs, unquote_to_bytes

from cmdsvc.errors import DataError
from cmdsvc.service.signatures import (
    Asked,
    ChallengedError,
    Post,
    RefusedError,
    Verified,
    from_base64,
    from_hex,
    pairs,
    prefixed,
    title,
    word,
)

ALGORITHMS = ("sha256", "sha1", "sha512")
ENCODINGS = ("hex", "base64")
KEY_PREFIX = b"whsec_"
"""What the secrets of Standard Webhooks begin with; base64 of the key follows."""


def verify(
    scheme: str, options: Mapping[str, str], secrets: Sequence[bytes], post: Post, now: datetime
) -> Verified:
    """What a genuine request says of itself, by any of `secrets`. Raises RefusedError."""
    headers: dict[bytes, list[bytes]] = defaultdict(list)
    for name, value in post.headers:
        headers[name.lower()].append(value)
    asked = Asked(options, secrets, headers, post.query, post.body, now.timestamp())
    return SCHEMES[scheme](asked)


def check_secret(scheme: str, secret: bytes) -> None:
    """DataError (65) for one that the scheme cannot have."""
    if not secret:
        raise DataError("the secret is empty", "give one, or let one be made")
    if b"\0" in secret:
        raise DataError("the secret has a NUL byte", "use text")
    if scheme == "standard" and not _key(secret):
        raise DataError("the secret is not base64", "write whsec_ and base64 of the key")
    if scheme == "basic" and not all(secret.partition(b":")):
        raise DataError("the secret is not USER:PASSWORD", "give both")


def _github(asked: Asked) -> Verified:
    """https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries"""
    asked.signed([prefixed(asked.needed(b"x-hub-signature-256"))], [asked.body])
    event = asked.word(b"x-github-event")
    return Verified(
        event,
        asked.word(b"x-github-delivery") or None,
        "pong\n" if event == "ping" else None,
    )


def _bitbucket(asked: Asked) -> Verified:
    """https://support.atlassian.com/bitbucket-cloud/docs/manage-webhooks/"""
    asked.signed([prefixed(asked.needed(b"x-hub-signature"))], [asked.body])
    return Verified(
        asked.word(b"x-event-key"), asked.word(b"x-request-uuid", b"x-request-id") or None
    )


def _gitea(asked: Asked) -> Verified:
    """https://docs.gitea.com/usage/webhooks; Forgejo sends the same headers."""
    asked.signed([from_hex(asked.needed(b"x-gitea-signature"))], [asked.body])
    return Verified(asked.word(b"x-gitea-event"), asked.word(b"x-gitea-delivery") or None)


def _gitlab(asked: Asked) -> Verified:
    """https://docs.gitlab.com/user/project/integrations/webhooks/: a token, or a signature."""
    keys = [_key(secret) for secret in asked.secrets if secret.startswith(KEY_PREFIX)]
    if any(keys) and b"webhook-signature" in asked.headers:
        same = _standard_webhook(asked, b"webhook", keys)
    else:
        _equal(asked, asked.needed(b"x-gitlab-token"))
        same = asked.word(b"idempotency-key")
        if not same and (event := asked.word(b"x-gitlab-event-uuid")):
            # An event that another hook of the same event has caused has this id too.
            same = f"{event}/{hashlib.sha256(asked.body).hexdigest()}"
    return Verified(asked.word(b"x-gitlab-event"), same or None)


def _standard(asked: Asked) -> Verified:
    """https://github.com/standard-webhooks/standard-webhooks; Svix has other names for the same."""
    prefix = b"webhook" if b"webhook-id" in asked.headers else b"svix"
    if prefix + b"-id" not in asked.headers:
        prefix = b"webhook"
    same = _standard_webhook(asked, prefix, [_key(secret) for secret in asked.secrets])
    return Verified(_text(_object(asked.body), "type"), same)


def _standard_webhook(asked: Asked, prefix: bytes, keys: Sequence[bytes]) -> str:
    """Its id.

    Neither that nor the timestamp has a full stop: what is signed is no other request's too.
    """
    id_ = asked.needed(prefix + b"-id")
    moment = asked.moment(asked.needed(prefix + b"-timestamp"))
    if not id_ or b"." in id_:
        raise RefusedError(f"{title(prefix + b'-id')} is empty, or has a full stop", "change it")
    given = [
        from_base64(word.removeprefix(b"v1,"))
        for word in asked.needed(prefix + b"-signature").split(b" ")
        if word.startswith(b"v1,")
    ]
    asked.signed(given, [id_, b".", moment, b".", asked.body], keys=keys)
    return word(id_.decode(errors="replace"))


def _slack(asked: Asked) -> Verified:
    """https://docs.slack.dev/authentication/verifying-requests-from-slack"""
    moment = asked.moment(asked.needed(b"x-slack-request-timestamp"))
    signature = prefixed(asked.needed(b"x-slack-signature"), b"v0=")
    asked.signed([signature], [b"v0:", moment, b":", asked.body])
    said = _object(asked.body)
    if not said:  # a slash command, or what somebody did with a message: a form
        form = _form(asked.body)
        said = _object(form.get("payload", "").encode())
        return Verified(_text(said, "type") or word(form.get("command", "")))
    if said.get("type") == "url_verification":
        return Verified("url_verification", None, _text(said, "challenge"))
    inner = said.get("event")
    event = _text(inner, "type") if isinstance(inner, dict) else ""
    return Verified(event or _text(said, "type"), _text(said, "event_id") or None)


def _stripe(asked: Asked) -> Verified:
    """https://docs.stripe.com/webhooks#verify-manually"""
    parts: dict[bytes, list[bytes]] = defaultdict(list)
    for part in asked.needed(b"stripe-signature").split(b","):
        name, _, value = part.strip().partition(b"=")
        parts[name].append(value)
    if len(parts[b"t"]) != 1:
        raise RefusedError("the signature has not one timestamp", "sign the request")
    moment = asked.moment(parts[b"t"][0])
    asked.signed(map(from_hex, parts[b"v1"]), [moment, b".", asked.body])
    said = _object(asked.body)
    return Verified(_text(said, "type"), _text(said, "id") or None)


def _hmac(asked: Asked) -> Verified:
    algorithm = asked.options["algorithm"]
    given = asked.needed(asked.options["header"].lower().encode())
    name, equals, rest = given.partition(b"=")
    if equals and name.lower() == algorithm.encode():
        given = rest
    decode = from_hex if asked.options["encoding"] == "hex" else from_base64
    asked.signed([decode(given)], [asked.body], algorithm)
    return _by_itself(asked)


def _token(asked: Asked) -> Verified:
    """Bearer (RFC 6750), ?token=, or X-Hook-Token: one of them."""
    given = [value for value in (_bearer(asked), asked.header(b"x-hook-token")) if value]
    given += [
        unquote_to_bytes(value.replace(b"+", b" "))
        for name, value in pairs(asked.query)
        if name == b"token"
    ]
    if len(given) != 1:
        raise ChallengedError(
            "there are several tokens" if given else "there is no token", 'Bearer realm="hook"'
        )
    try:
        _equal(asked, given[0])
    except RefusedError as error:
        raise ChallengedError(error.what, 'Bearer realm="hook"') from None
    return _by_itself(asked)


def _basic(asked: Asked) -> Verified:
    """RFC 7617, in UTF-8."""
    challenge = 'Basic realm="hook", charset="UTF-8"'
    try:
        kind, _, coded = asked.needed(b"authorization").partition(b" ")
        if kind.lower() != b"basic":
            raise RefusedError("there are no Basic credentials")  # noqa: TRY301 - told as the others
        _equal(asked, from_base64(coded.strip()))
    except RefusedError as error:
        raise ChallengedError(error.what, challenge) from None
    return _by_itself(asked)


SCHEMES: Mapping[str, Callable[[Asked], Verified]] = {
    "github": _github,
    "gitlab": _gitlab,
    "gitea": _gitea,
    "bitbucket": _bitbucket,
    "slack": _slack,
    "stripe": _stripe,
    "standard": _standard,
    "hmac": _hmac,
    "token": _token,
    "basic": _basic,
}


def _by_itself(asked: Asked) -> Verified:
    """Where no provider's rule is known: by Shopify's names, or those of Standard Webhooks."""
    return Verified(
        asked.word(b"x-shopify-topic"),
        asked.word(b"x-shopify-webhook-id", b"webhook-id") or None,
    )


def _equal(asked: Asked, given: bytes) -> None:
    """Refused unless it is one of the secrets."""
    found = [hmac.compare_digest(given, secret) for secret in asked.secrets]
    if not any(found):
        raise RefusedError("that is not the secret", "check it on both sides")


def _bearer(asked: Asked) -> bytes | None:
    value = asked.header(b"authorization") or b""
    kind, _, token = value.partition(b" ")
    return token.strip() if kind.lower() == b"bearer" else None


def _key(secret: bytes) -> bytes:
    """The key that a secret of Standard Webhooks has in it; b"" where it is none."""
    return from_base64(secret.removeprefix(KEY_PREFIX))


def _object(body: bytes) -> dict[str, Any]:
    """The JSON object that `body` is; {} where it is none."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _text(said: Mapping[str, Any], key: str) -> str:
    value = said.get(key)
    return word(value) if isinstance(value, str) else ""


def _form(body: bytes) -> dict[str, str]:
    try:
        return {k: v[0] for k, v in parse_qs(body.decode(), max_num_fields=100).items()}
    except ValueError:
        return {}
