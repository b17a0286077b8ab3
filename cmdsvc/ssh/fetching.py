"""A small page over HTTP, on the event loop, bounded in every way."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import ssl
from dataclasses import dataclass
from functools import cache
from urllib.parse import urljoin, urlsplit

import h11

from cmdsvc import __version__

SIZE_MAX = 1 << 20
"""Bytes of a page."""
TIME_MAX = 5.0
"""Seconds for all of it."""
REDIRECTS_MAX = 3
READ = 64 << 10
REDIRECTS = frozenset({301, 302, 303, 307, 308})
MAX_AGE = re.compile(r"max-age=(\d{1,9})", re.ASCII | re.IGNORECASE)


class FetchError(Exception):
    """The page could not be had; says why."""


@dataclass(frozen=True, slots=True)
class Page:
    status: int
    body: bytes
    max_age: int | None = None
    """Seconds, as Cache-Control has it."""


def secure(url: str) -> bool:
    """Whether what comes from there cannot be forged on its way: https, or this machine itself."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return False
    if not host or not url.isascii() or not url.isprintable() or " " in url:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and _loopback(host))


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def fetch(url: str) -> Page:
    """What is there, after at most REDIRECTS_MAX redirects. FetchError for whatever goes wrong."""
    try:
        async with asyncio.timeout(TIME_MAX):
            for _ in range(REDIRECTS_MAX + 1):
                if not secure(url):
                    raise FetchError("it redirects to what is not https")
                page, location = await _get(url)
                if not location:
                    return page
                url = urljoin(url, location)
            raise FetchError("it redirects too often")
    except TimeoutError:
        raise FetchError(f"no answer within {TIME_MAX:g} s") from None
    except (OSError, ValueError, h11.ProtocolError) as error:
        raise FetchError(str(error) or type(error).__name__) from None


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


async def _get(url: str) -> tuple[Page, str]:
    """The page, and where it redirects to."""
    parts = urlsplit(url)
    tls = parts.scheme == "https"
    reader, writer = await asyncio.open_connection(
        parts.hostname, parts.port or (443 if tls else 80), ssl=_tls() if tls else None, limit=READ
    )
    try:
        http = h11.Connection(h11.CLIENT)
        request = h11.Request(
            method="GET",
            target=(parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
            headers=[
                ("Host", parts.netloc.rpartition("@")[2]),
                ("User-Agent", f"cmdsvc/{__version__}"),
                ("Accept", "text/plain, */*;q=0.5"),
                ("Accept-Encoding", "identity"),
                ("Connection", "close"),
            ],
        )
        writer.write((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
        await writer.drain()
        status, headers, body = 0, dict[str, str](), bytearray()
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await reader.read(READ))
            elif isinstance(event, h11.Response):
                status = event.status_code
                headers = {k.decode().lower(): v.decode("latin-1") for k, v in event.headers}
                if status in REDIRECTS and "location" in headers:
                    return Page(status, b""), headers["location"]
                if headers.get("content-encoding", "identity") != "identity":
                    raise FetchError("it is encoded, which was not asked for")
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > SIZE_MAX:
                    raise FetchError(f"more than {SIZE_MAX} bytes")
            elif isinstance(event, h11.EndOfMessage):
                break
        age = MAX_AGE.search(headers.get("cache-control", ""))
        return Page(status, bytes(body), int(age[1]) if age else None), ""
    finally:
        writer.transport.abort()
