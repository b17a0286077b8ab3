"""Signatures of requests to hooks: right and wrong ones, by vectors that providers publish."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cmdsvc.errors import DataError, ForbiddenError
from cmdsvc.service.schemes import SCHEMES, check_secret, verify
from cmdsvc.service.signatures import (
    ChallengedError,
    Post,
    RefusedError,
    Verified,
    without_credentials,
)

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "webhooks.json").read_text())
NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
BODY = b'{"type": "push", "id": "evt_1", "event_id": "Ev1", "event": {"type": "message"}}'
SECRET = "gehéim ✓".encode()
KEY = b"0123456789abcdef0123456789abcdef"
WHSEC = b"whsec_" + base64.b64encode(KEY)

Pairs = list[tuple[bytes, bytes]]


def digest(content: bytes, key: bytes = SECRET, algorithm: str = "sha256") -> bytes:
    return hmac.digest(key, content, algorithm)


def hexed(content: bytes, key: bytes = SECRET, algorithm: str = "sha256") -> bytes:
    return digest(content, key, algorithm).hex().encode()


@dataclass(frozen=True)
class Case:
    """A scheme, and how its sender makes the headers for a body."""

    scheme: str
    sign: Callable[[bytes, bytes, int], Pairs]
    """Of a body, a secret, a moment."""
    event: str = ""
    same: str | None = None
    secret: bytes = SECRET
    other: bytes = b"another"
    """A secret that it was not made with."""
    options: dict[str, str] = field(default_factory=dict)
    timed: bool = False
    over_body: bool = True
    id: str = ""

    def post(self, body: bytes = BODY, at: datetime = NOW, secret: bytes | None = None) -> Post:
        return Post(
            self.sign(body, self.secret if secret is None else secret, int(at.timestamp())),
            b"",
            body,
        )

    def verify(self, post: Post, secrets: Sequence[bytes] | None = None) -> Verified:
        return verify(self.scheme, self.options, secrets or [self.secret], post, NOW)


def standard(prefix: bytes) -> Callable[[bytes, bytes, int], Pairs]:
    def sign(body: bytes, secret: bytes, at: int) -> Pairs:
        key = base64.b64decode(secret.removeprefix(b"whsec_"))
        signature = base64.b64encode(digest(b"msg_1.%d.%b" % (at, body), key))
        return [
            (prefix + b"-Id", b"msg_1"),
            (prefix + b"-Timestamp", b"%d" % at),
            (prefix + b"-Signature", b"v1a,AAAA v1," + signature),
            (b"X-Gitlab-Event", b"Push Hook"),
        ]

    return sign


def plain(name: bytes, before: bytes, *more: tuple[bytes, bytes]) -> Callable[..., Pairs]:
    return lambda body, secret, _: [(name, before + hexed(body, secret)), *more]


def slack(body: bytes, secret: bytes, at: int) -> Pairs:
    signature = hexed(b"v0:%d:%b" % (at, body), secret)
    return [
        (b"X-Slack-Request-Timestamp", b"%d" % at),
        (b"X-Slack-Signature", b"v0=" + signature),
    ]


def stripe(body: bytes, secret: bytes, at: int) -> Pairs:
    signature = hexed(b"%d.%b" % (at, body), secret)
    return [(b"Stripe-Signature", b"t=%d,v1=%b,v1=%b,v0=00" % (at, b"0" * 64, signature))]


CASES = [
    Case(
        "github",
        plain(
            b"X-Hub-Signature-256",
            b"sha256=",
            (b"X-GitHub-Event", b"push"),
            (b"X-GitHub-Delivery", b"d-1"),
        ),
        "push",
        "d-1",
    ),
    Case(
        "gitea",
        plain(
            b"X-Gitea-Signature",
            b"",
            (b"X-Gitea-Event", b"push"),
            (b"X-Gitea-Delivery", b"d-1"),
        ),
        "push",
        "d-1",
    ),
    Case(
        "bitbucket",
        plain(
            b"X-Hub-Signature",
            b"sha256=",
            (b"X-Event-Key", b"repo:push"),
            (b"X-Request-UUID", b"d-1"),
        ),
        "repo:push",
        "d-1",
    ),
    Case(
        "gitlab",
        lambda _, secret, __: [
            (b"X-Gitlab-Token", secret),
            (b"X-Gitlab-Event", b"Push Hook"),
            (b"Idempotency-Key", b"d-1"),
        ],
        "Push Hook",
        "d-1",
        over_body=False,
        id="gitlab-token",
    ),
    Case(
        "gitlab",
        standard(b"webhook"),
        "Push Hook",
        "msg_1",
        WHSEC,
        b"whsec_AAAA",
        timed=True,
        id="gitlab-signed",
    ),
    Case("slack", slack, "message", "Ev1", timed=True),
    Case("stripe", stripe, "push", "evt_1", timed=True),
    Case("standard", standard(b"webhook"), "push", "msg_1", WHSEC, b"whsec_AAAA", timed=True),
    Case(
        "standard",
        standard(b"svix"),
        "push",
        "msg_1",
        WHSEC.removeprefix(b"whsec_"),
        b"AAAA",
        timed=True,
        id="svix",
    ),
    Case(
        "hmac",
        lambda body, secret, _: [
            (b"X-Shopify-Hmac-Sha256", base64.b64encode(digest(body, secret))),
            (b"X-Shopify-Topic", b"orders/create"),
            (b"X-Shopify-Webhook-Id", b"d-1"),
        ],
        "orders/create",
        "d-1",
        options={
            "header": "X-Shopify-Hmac-Sha256",
            "encoding": "base64",
            "algorithm": "sha256",
        },
        id="shopify",
    ),
    Case(
        "hmac",
        lambda body, secret, _: [(b"x-sig", b"SHA512=" + hexed(body, secret, "sha512"))],
        options={"header": "X-Sig", "encoding": "hex", "algorithm": "sha512"},
        id="hmac-sha512",
    ),
    Case(
        "hmac",
        lambda body, secret, _: [(b"X-Sig", hexed(body, secret, "sha1").upper())],
        options={"header": "x-sig", "encoding": "hex", "algorithm": "sha1"},
        id="hmac-sha1",
    ),
    Case(
        "token",
        lambda _, secret, __: [(b"Authorization", b"Bearer " + secret), (b"Webhook-Id", b"d-1")],
        same="d-1",
        over_body=False,
        id="bearer",
    ),
    Case(
        "token",
        lambda _, secret, __: [(b"X-Hook-Token", secret)],
        over_body=False,
        id="hook-token",
    ),
    Case(
        "basic",
        lambda _, secret, __: [(b"Authorization", b"basic " + base64.b64encode(secret))],
        secret="müller:pass:wörd".encode(),
        other=b"ann:other",
        over_body=False,
    ),
]


@pytest.fixture(params=CASES, ids=lambda case: case.id or case.scheme)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


def refused(case: Case, post: Post, words: str = ".") -> RefusedError:
    with pytest.raises(RefusedError, match=words) as caught:
        case.verify(post)
    assert str(caught.value).isprintable()
    for secret in (case.secret, case.secret.removeprefix(b"whsec_")):
        assert secret.decode() not in str(caught.value)
    return caught.value


class TestVectors:
    """What providers publish, or what was computed from their rules (see `source` in the file)."""

    @pytest.fixture(params=VECTORS, ids=lambda vector: vector["scheme"])
    def vector(self, request: pytest.FixtureRequest) -> dict[str, Any]:
        found: dict[str, Any] = request.param
        return found

    def test_it_holds(self, vector: dict[str, Any]):
        scheme, options = self.scheme_of(vector["scheme"])
        headers = [(k.encode(), v.encode()) for k, v in vector["headers"].items()]
        body, secret = vector["body"].encode(), vector["secret"].encode()
        at = self.moment(headers)
        assert verify(scheme, options, [secret], Post(headers, b"", body), at)
        with pytest.raises(RefusedError):
            verify(scheme, options, [secret + b"A"], Post(headers, b"", body), at)
        if scheme != "gitlab" or b"webhook-id" in dict(headers):
            with pytest.raises(RefusedError, match="not that of this body"):
                verify(scheme, options, [secret], Post(headers, b"", body + b" "), at)

    def test_what_must_fail(self):
        (vector,) = (v for v in VECTORS if "must_fail_signature" in v)
        headers = {**vector["headers"], "webhook-signature": vector["must_fail_signature"]}
        pairs = [(k.encode(), v.encode()) for k, v in headers.items()]
        with pytest.raises(RefusedError, match="not that of this body"):
            verify(
                "standard",
                {},
                [vector["secret"].encode()],
                Post(pairs, b"", vector["body"].encode()),
                self.moment(pairs),
            )

    def scheme_of(self, name: str) -> tuple[str, dict[str, str]]:
        match name:
            case "github-sha1-legacy":
                options = {"header": "X-Hub-Signature", "encoding": "hex", "algorithm": "sha1"}
                return "hmac", options
            case "standard-webhooks":
                return "standard", {}
            case "gitlab-signing-token" | "gitlab-secret-token":
                return "gitlab", {}
        return name, {}

    def moment(self, headers: Pairs) -> datetime:
        known = {k.lower(): v for k, v in headers}
        text = (
            known.get(b"webhook-timestamp")
            or known.get(b"x-slack-request-timestamp")
            or known.get(b"stripe-signature", b"0").partition(b",")[0].removeprefix(b"t=")
        )
        return datetime.fromtimestamp(int(text), UTC)


class TestEvery:
    def test_right(self, case: Case):
        assert case.verify(case.post()) == Verified(case.event, case.same)

    def test_the_case_of_names_is_nothing(self, case: Case):
        post = case.post()
        for change in (bytes.upper, bytes.lower):
            headers = [(change(name), value) for name, value in post.headers]
            assert case.verify(replace(post, headers=headers)).event == case.event

    def test_bytes_of_any_kind(self, case: Case):
        body = bytes(range(256)) + b"\r\n\xff"
        assert case.verify(case.post(body))

    def test_an_empty_body(self, case: Case):
        assert case.verify(case.post(b""))

    def test_another_secret(self, case: Case):
        refused(case, case.post(secret=case.other))

    def test_another_body(self, case: Case):
        for body in (BODY + b"\n", BODY.replace(b'": "', b'":"'), b""):
            post = replace(case.post(), body=body)
            if case.over_body:
                refused(case, post, "not that of this body")
            else:
                case.verify(post)

    def test_a_header_missing(self, case: Case):
        post = case.post()
        for name, _ in self.needed(case):
            left = [pair for pair in post.headers if pair[0] != name]
            refused(case, replace(post, headers=left), "there is no")

    def test_a_header_twice(self, case: Case):
        post = case.post()
        for pair in self.needed(case):
            for value in (pair[1], b"", b"x"):
                for more in ([*post.headers, (pair[0].lower(), value)],):
                    refused(case, replace(post, headers=more), "there are 2 headers")
                refused(case, replace(post, headers=[(pair[0], value), *post.headers]))

    def needed(self, case: Case) -> Pairs:
        """Headers that tell who it is from."""
        said = ("event", "delivery", "uuid", "topic", "idempotency", "shopify-webhook", "event-key")
        return [
            pair
            for pair in case.post().headers
            if not any(word in pair[0].decode().lower() for word in said)
            and not (case.scheme == "token" and pair[0] == b"Webhook-Id")
        ]

    def test_what_is_no_signature(self, case: Case):
        post = case.post()
        for value in (b"", b"x", b"sha256=", b"v1,", b"v0=", b"\xff\xfe", b"=" * 50, b"0" * 64):
            for index, (name, old) in enumerate(post.headers):
                if (name, old) in self.needed(case) and not name.lower().endswith(b"-id"):
                    headers = list(post.headers)
                    headers[index] = (name, value)
                    refused(case, replace(post, headers=headers))

    def test_two_secrets_hold_while_one_is_rotated(self, case: Case):
        for secrets in ([case.secret, case.other], [case.other, case.secret]):
            assert case.verify(case.post(), secrets)
        with pytest.raises(RefusedError):
            case.verify(case.post(), [case.other, case.other])

    def test_a_timestamp_is_of_now(self, case: Case):
        for seconds in (-300, -1, 1, 300):
            assert case.verify(case.post(at=NOW + timedelta(seconds=seconds)))
        for seconds in (-301, 301, -86400, 10 * 366 * 86400):
            post = case.post(at=NOW + timedelta(seconds=seconds))
            if case.timed:
                refused(case, post, "more than 5 minutes off")
            else:
                case.verify(post)

    def test_a_timestamp_is_signed(self, case: Case):
        if not case.timed:
            return
        old = str(int(NOW.timestamp())).encode()
        post = case.post()
        headers = [(n, v.replace(old, b"%d" % (int(old) + 1))) for n, v in post.headers]
        refused(case, replace(post, headers=headers), "not that of this body")
        for text in (b"", b"x", b"1e9", b"-1", b" 1", b"\xd9\xa1", b"9" * 13, b"1 2"):
            headers = [(n, v.replace(old, text)) for n, v in post.headers]
            refused(case, replace(post, headers=headers))

    def test_nothing_at_all(self, case: Case):
        refused(case, Post([], b"", BODY))


def of(scheme: str, id_: str = "") -> Case:
    return next(case for case in CASES if case.scheme == scheme and case.id in {"", id_ or case.id})


def test_every_scheme_is_here():
    assert {case.scheme for case in CASES} == set(SCHEMES)


class TestGithub:
    def test_its_ping(self):
        case = of("github")
        headers = [(b"X-GitHub-Event", b"ping"), *case.post().headers[:1]]
        post = replace(case.post(), headers=headers)
        assert case.verify(post).reply == "pong\n"
        refused(case, replace(post, body=b"{}"))

    def test_the_older_signature_is_none(self):
        case = of("github")
        old = [(b"X-Hub-Signature", b"sha1=" + hexed(BODY, SECRET, "sha1"))]
        refused(case, Post(old, b"", BODY), "no header X-Hub-Signature-256")

    def test_another_prefix(self):
        case = of("github")
        for before in (b"", b"SHA256=", b"sha1=", b"sha256:", b" sha256="):
            headers = [(b"X-Hub-Signature-256", before + hexed(BODY))]
            refused(case, Post(headers, b"", BODY))


class TestGitlab:
    def test_a_signature_that_is_there_counts(self):
        """Though the token is right: who has both is to keep both."""
        case = of("gitlab", "gitlab-signed")
        post = case.post()
        headers = [
            (n, b"v1,AAAA" if n.lower().endswith(b"signature") else v) for n, v in post.headers
        ]
        token = (b"X-Gitlab-Token", case.secret)
        refused(case, replace(post, headers=[*headers, token]), "not that of this body")
        assert case.verify(replace(post, headers=[token]))

    def test_an_event_that_another_hook_caused(self):
        """It has the id of the first event (docs.gitlab.com: X-Gitlab-Event-UUID)."""
        case = of("gitlab", "gitlab-token")
        headers = [(b"X-Gitlab-Token", SECRET), (b"X-Gitlab-Event-UUID", b"u-1")]
        first = case.verify(Post(headers, b"", b"1")).same
        assert first is not None
        assert first.startswith("u-1/")
        assert case.verify(Post(headers, b"", b"1")).same == first
        assert case.verify(Post(headers, b"", b"2")).same != first


class TestSlack:
    def ask(self, body: bytes) -> Verified:
        return of("slack").verify(of("slack").post(body))

    def test_its_challenge(self):
        body = b'{"type": "url_verification", "challenge": "3eZbrw1aB"}'
        assert self.ask(body) == Verified("url_verification", None, "3eZbrw1aB")
        refused(of("slack"), replace(of("slack").post(), body=body))

    def test_forms(self):
        assert self.ask(b"command=%2Fdeploy&text=x") == Verified("/deploy")
        payload = b"payload=%7B%22type%22%3A%22block_actions%22%7D"
        assert self.ask(payload) == Verified("block_actions")

    @pytest.mark.parametrize(
        "body",
        [b"", b"[1]", b'"x"', b"\xff", b"[" * 100_000, b"&" * 1000, b'{"event": 1}', b"1" * 5000],
    )
    def test_what_it_never_sends(self, body: bytes):
        assert self.ask(body) == Verified()


class TestStripe:
    def test_which_parts_count(self):
        case = of("stripe")
        at = int(NOW.timestamp())
        good = hexed(b"%d.%b" % (at, BODY))
        assert case.verify(Post([(b"stripe-signature", b"t=%d, v1=%b" % (at, good))], b"", BODY))
        for value in (
            b"t=%d,v0=%b" % (at, good),
            b"t=%d,t=%d,v1=%b" % (at, at, good),
            b"v1=" + good,
            b"t=%d" % at,
        ):
            refused(case, Post([(b"stripe-signature", value)], b"", BODY))


class TestStandard:
    def test_no_full_stop_in_its_id(self):
        """`a.1` at 2 over `3` would be signed like `a` at 1 over `2.3`."""
        at = int(NOW.timestamp())
        body = b"%d.x" % at
        signature = base64.b64encode(digest(b"a.%d.%b" % (at, body), KEY))
        whole = [(b"webhook-id", b"a"), (b"webhook-timestamp", b"%d" % at)]
        moved = [(b"webhook-id", b"a.%d" % at), (b"webhook-timestamp", b"%d" % at)]
        sign = (b"webhook-signature", b"v1," + signature)
        case = of("standard", "")
        assert case.verify(Post([*whole, sign], b"", body))
        refused(case, Post([*moved, sign], b"", b"x"), "full stop")

    def test_only_version_1(self):
        post = of("standard").post()
        headers = [(n, v.replace(b" v1,", b" v2,")) for n, v in post.headers]
        refused(of("standard"), replace(post, headers=headers))


class TestToken:
    def ask(self, query: bytes, headers: Pairs | None = None) -> Verified:
        return verify("token", {}, [b"s3 cr+t/\xc3\xa9"], Post(headers or [], query, BODY), NOW)

    @pytest.mark.parametrize(
        "query", [b"token=s3%20cr%2Bt/%C3%A9", b"a=1&token=s3+cr%2Bt%2F%c3%a9&b=2"]
    )
    def test_in_the_query(self, query: bytes):
        assert self.ask(query) == Verified()

    @pytest.mark.parametrize(
        "query", [b"", b"token=", b"token", b"Token=s3%20cr%2Bt/%C3%A9", b"token=x", b"token=%zz"]
    )
    def test_not_in_the_query(self, query: bytes):
        with pytest.raises(ChallengedError) as caught:
            self.ask(query)
        assert caught.value.http_status == 401
        assert caught.value.challenge == 'Bearer realm="hook"'

    def test_one_way_at_a_time(self):
        good = b"token=s3%20cr%2Bt/%C3%A9"
        for query in (good + b"&" + good, good + b"&token=x"):
            with pytest.raises(ChallengedError, match="several"):
                self.ask(query)
        with pytest.raises(ChallengedError, match="several"):
            self.ask(good, [(b"X-Hook-Token", b"x")])


class TestBasic:
    def test_it_asks_for_them(self):
        error = refused(of("basic"), Post([(b"authorization", b"Bearer x")], b"", b""), "Basic")
        assert isinstance(error, ChallengedError)
        assert error.challenge == 'Basic realm="hook", charset="UTF-8"'
        assert error.http_status == 401

    def test_others_are_only_refused(self):
        error = refused(of("github"), Post([], b"", b""))
        assert isinstance(error, ForbiddenError)
        assert error.http_status == 403


class TestWords:
    """What a sender says is one line, not too long, and still tells things apart."""

    @pytest.mark.parametrize(
        "value", [b"a\x1b[2Jb", b"a\x00b", b"\xff", b"a\tb", "e\u202e".encode()]
    )
    def test_printable(self, value: bytes):
        case = of("github")
        headers = [*case.post().headers[:1], (b"X-GitHub-Event", value)]
        assert case.verify(replace(case.post(), headers=headers)).event.isprintable()

    def test_long(self):
        case = of("github")
        found = set()
        for end in (b"1", b"2"):
            delivery = (b"X-GitHub-Delivery", b"x" * 5000 + end)
            headers = [*case.post().headers[:2], delivery]
            same = case.verify(replace(case.post(), headers=headers)).same
            assert same is not None
            assert len(same) <= 200
            found.add(same)
        assert len(found) == 2

    def test_of_json(self):
        body = json.dumps({"type": "a\n\u0000\ud800", "id": 7}).encode()
        said = of("stripe").verify(of("stripe").post(body))
        assert said.event.isprintable()
        assert said.same is None


class TestSecrets:
    @pytest.mark.parametrize(
        ("scheme", "secret"),
        [
            ("github", b""),
            ("github", b"a\0b"),
            ("standard", b"whsec_"),
            ("standard", b"not base64!"),
            ("basic", b"nobody"),
            ("basic", b":x"),
            ("basic", b"x:"),
        ],
    )
    def test_that_cannot_be(self, scheme: str, secret: bytes):
        with pytest.raises(DataError):
            check_secret(scheme, secret)

    def test_that_can(self, case: Case):
        check_secret(case.scheme, case.secret)

    def test_are_not_kept_with_the_request(self):
        env = {
            b"HTTP_AUTHORIZATION": b"Bearer x",
            b"HTTP_X_GITLAB_TOKEN": b"x",
            b"HTTP_X_HOOK_TOKEN": b"x",
            b"HTTP_COOKIE": b"x",
            b"HTTP_PROXY": b"x",
            b"HTTP_X_HUB_SIGNATURE_256": b"sha256=00",
            b"QUERY_STRING": b"a=1&token=s%20x?y&to%6ben=2&b=%20&&tokens=3",
            b"REQUEST_URI": b"/hook/ann/a/b?a=1&token=s%20x?y&b=%20",
            b"REQUEST_METHOD": b"POST",
        }
        assert without_credentials(env) == {
            b"HTTP_X_HUB_SIGNATURE_256": b"sha256=00",
            b"QUERY_STRING": b"a=1&b=%20&&tokens=3",
            b"REQUEST_URI": b"/hook/ann/a/b?a=1&b=%20",
            b"REQUEST_METHOD": b"POST",
        }
        only = {b"REQUEST_URI": b"/hook/token?token=x", b"QUERY_STRING": b"token=x"}
        assert without_credentials(only) == {b"REQUEST_URI": b"/hook/token", b"QUERY_STRING": b""}


def test_a_signature_is_of_the_raw_body():
    """Not of what it decodes to, as from gzip or another character set."""
    case = of("github")
    decoded = '{"a": "é"}'
    raw = decoded.encode("latin-1")
    post = Post(case.sign(decoded.encode(), SECRET, 0), b"", raw)
    refused(case, post, "not that of this body")
    assert hashlib.sha256(raw).digest() != hashlib.sha256(decoded.encode()).digest()
