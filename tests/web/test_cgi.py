"""What a script is told of a request (RFC 3875)."""

from __future__ import annotations

from typing import Any

import pytest

from cmdsvc.errors import UsageError
from cmdsvc.web.cgi import Target, arguments, fields, target, variables, without_token
from cmdsvc.web.forwarded import Origin

HERE = Origin("192.0.2.7", "http", "cmd.example.org", 8022)


def where(path: bytes) -> Target:
    found = target(path)
    assert found is not None
    return found


def told(path: bytes = b"/run/ann/x", query: bytes = b"", **more: Any) -> dict[bytes, bytes]:
    given: dict[str, Any] = {
        "method": "GET",
        "protocol": "HTTP/1.1",
        "headers": [],
        "origin": HERE,
        "where": where(path),
    }
    return variables(path=path, query=query, **given | more)


class TestTarget:
    @pytest.mark.parametrize(
        ("path", "rest", "info"),
        [
            (b"/run/ann/x", (), b""),
            (b"/run/ann/x/", (), b"/"),
            (b"/run/ann/x/a", (b"a",), b"/a"),
            (b"/run/ann/x/a/", (b"a",), b"/a/"),
            (b"/run/ann/x/a/b", (b"a", b"b"), b"/a/b"),
            (b"/run/ann/x/a%2Fb/c", (b"a/b", b"c"), b"/a/b/c"),
            (b"/run/ann/x/a//b", (b"a", b"", b"b"), b"/a//b"),
            (b"/run/ann/x//", (b"",), b"//"),
            (b"/run/ann/x/a+b%20c", (b"a+b c",), b"/a+b c"),
            (b"/run/ann/x/%FF%0a", (b"\xff\n",), b"/\xff\n"),
            (b"/run/ann/x/%zz%4", (b"%zz%4",), b"/%zz%4"),
            (b"/run/ann/x/../y", (b"..", b"y"), b"/../y"),
        ],
    )
    def test_the_rest_of_the_path(self, path: bytes, rest: tuple[bytes, ...], info: bytes):
        found = where(path)
        assert (found.owner, found.name) == ("ann", "x")
        assert (found.rest, found.path_info) == (rest, info)
        assert found.script_name == b"/run/ann/x"

    @pytest.mark.parametrize("path", [b"/", b"/run", b"/run/ann", b"*", b"", b"run/ann/x/y"])
    def test_what_has_too_few_parts(self, path: bytes):
        assert target(path) is None

    def test_names_are_decoded_and_nothing_more_is_said_of_them(self):
        assert where(b"/run/%61nn/%78").name == "x"
        assert where(b"/run/a%2Fb/%FF").owner == "a/b"
        assert where(b"/run/ann/%FF").name == "\N{REPLACEMENT CHARACTER}"


class TestArguments:
    @pytest.mark.parametrize(
        ("query", "args"),
        [
            (b"", []),
            (b"args=a+b", [b"a", b"b"]),
            (b"args=a%20b%09c%0Ad", [b"a", b"b", b"c", b"d"]),
            (b"args=", []),
            (b"args", []),
            (b"x=1&args=a&args=b+c", [b"a", b"b", b"c"]),
            (b"args=a%2Bb", [b"a+b"]),
            (b"args=%FF", [b"\xff"]),
            (b"%61rgs=a", [b"a"]),
            (b"argsx=a&Args=b", []),
        ],
    )
    def test_of_the_query(self, query: bytes, args: list[bytes]):
        assert arguments(where(b"/run/ann/x"), query) == args

    def test_the_paths_come_first(self):
        assert arguments(where(b"/run/ann/x/1%202/3"), b"args=4+5") == [b"1 2", b"3", b"4", b"5"]

    @pytest.mark.parametrize(
        ("path", "query"),
        [(b"/run/ann/x/a%00b", b""), (b"/run/ann/x", b"args=a%00"), (b"/run/ann/x/%00", b"")],
    )
    def test_a_nul_is_refused(self, path: bytes, query: bytes):
        with pytest.raises(UsageError, match="NUL") as caught:
            arguments(where(path), query)
        assert caught.value.http_status == 400

    def test_ten_thousand(self):
        query = b"&".join(b"a%d=1" % n for n in range(10_000)) + b"&args=z"
        assert arguments(where(b"/run/ann/x"), query) == [b"z"]
        assert len(list(fields(query))) == 10_001


class TestVariables:
    def test_all_of_a_request_by_nobody(self):
        assert told(b"/run/ann/x/a%2Fb", b"q=1&args=c") == {
            b"GATEWAY_INTERFACE": b"CGI/1.1",
            b"PATH_INFO": b"/a/b",
            b"QUERY_STRING": b"q=1&args=c",
            b"REMOTE_ADDR": b"192.0.2.7",
            b"REQUEST_METHOD": b"GET",
            b"REQUEST_SCHEME": b"http",
            b"REQUEST_URI": b"/run/ann/x/a%2Fb?q=1&args=c",
            b"SCRIPT_NAME": b"/run/ann/x",
            b"SERVER_NAME": b"cmd.example.org",
            b"SERVER_PORT": b"8022",
            b"SERVER_PROTOCOL": b"HTTP/1.1",
        }

    def test_by_a_token(self):
        found = told(auth_type="Basic", user="ann", token="cmd_01234567")
        assert found[b"AUTH_TYPE"] == b"Basic"
        assert found[b"REMOTE_USER"] == b"ann"
        assert found[b"CMD_TOKEN"] == b"cmd_01234567"

    def test_by_tls(self):
        found = told(origin=Origin("::1", "https", "h", 443))
        assert (found[b"HTTPS"], found[b"REQUEST_SCHEME"]) == (b"on", b"https")

    def test_a_body(self):
        headers = [(b"content-length", b"5"), (b"content-type", b"a/b")]
        found = told(headers=headers)
        assert found[b"CONTENT_LENGTH"] == b"5"
        assert found[b"CONTENT_TYPE"] == b"a/b"
        assert b"HTTP_CONTENT_LENGTH" not in found
        assert b"HTTP_CONTENT_TYPE" not in found

    def test_a_body_without_a_length(self):
        for headers in (
            [(b"transfer-encoding", b"chunked")],
            [(b"content-length", b"5"), (b"transfer-encoding", b"chunked")],
        ):
            assert b"CONTENT_LENGTH" not in told(headers=headers)

    def test_headers(self):
        headers = [
            (b"x-a", b"1"), (b"x-a", b"2"), (b"cookie", b"a=1"), (b"cookie", b"b=2"),
            (b"accept", b"\xff"), (b"host", b"h"),
        ]  # fmt: skip
        found = {k: v for k, v in told(headers=headers).items() if k.startswith(b"HTTP_")}
        assert found == {
            b"HTTP_X_A": b"1, 2",
            b"HTTP_COOKIE": b"a=1; b=2",
            b"HTTP_ACCEPT": b"\xff",
            b"HTTP_HOST": b"h",
        }

    @pytest.mark.parametrize(
        "name",
        [b"authorization", b"proxy-authorization", b"proxy", b"x_a", b"x.a", b"authorization_",
         b"proxy_", b"content_length"],
    )  # fmt: skip
    def test_headers_that_no_script_sees(self, name: bytes):
        assert told(headers=[(name, b"secret")]) == told()

    def test_no_header_replaces_what_is_true(self):
        headers = [(b"remote-addr", b"x"), (b"https", b"on")]
        found = told(headers=headers)
        assert found[b"REMOTE_ADDR"] == b"192.0.2.7"
        assert b"HTTPS" not in found

    @pytest.mark.parametrize(
        ("query", "left"),
        [
            (b"access_token=s", b""),
            (b"a=1&access_token=s", b"a=1"),
            (b"access_token=s&a=%41&access_token=t&&b", b"a=%41&&b"),
            (b"access%5Ftoken=s&a", b"a"),
            (b"a=access_token", b"a=access_token"),
            (b"access_tokens=1", b"access_tokens=1"),
            (b"access_token", b""),
        ],
    )
    def test_the_token_is_not_in_the_query(self, query: bytes, left: bytes):
        assert without_token(query) == left
        found = told(query=query, headers=[(b"referer", b"https://h/p?" + query)])
        assert found[b"QUERY_STRING"] == left
        assert found[b"REQUEST_URI"] == (b"/run/ann/x?" + left if left else b"/run/ann/x")
        assert found[b"HTTP_REFERER"] == (b"https://h/p?" + left if left else b"https://h/p")

    def test_the_trace(self):
        trace = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        assert told(headers=[(b"traceparent", trace)])[b"TRACEPARENT"] == trace
        assert b"TRACEPARENT" not in told(headers=[(b"traceparent", b"00-x\n")])
