"""A site that publishes keys, and can be told to misbehave."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self


@dataclass
class KeySite:
    """`pages` by name; `fault` is what it does instead of answering well."""

    pages: dict[str, str] = field(default_factory=dict)
    fault: str = ""
    cache_control: str | None = None
    requests: list[str] = field(default_factory=list)
    port: int = 0

    def __post_init__(self) -> None:
        self.end = threading.Event()
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/{{user}}.keys"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """On the same port as before, if there was one."""
        site = self
        self.end.clear()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.requests.append(self.path)
                try:
                    site.answer(self)
                except OSError:
                    self.close_connection = True  # the client had enough

            def log_message(self, *_: object) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        server, self._server = self._server, None
        self.end.set()
        if server is not None:
            server.shutdown()
            server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name = request.path.strip("/").removesuffix(".keys")
        write = request.wfile.write
        match self.fault:
            case "never":
                self.end.wait()
            case "slow":  # a byte at a time, for ever
                write(b"HTTP/1.1 200 OK\r\n\r\n")
                while not self.end.wait(0.05):
                    write(b"\n")
                    request.wfile.flush()
            case "huge":
                write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
                for _ in range(1000):
                    write(b"#" * 100_000)
            case "endless header":
                write(b"HTTP/1.1 200 OK\r\nX: ")
                for _ in range(1000):
                    write(b"x" * 100_000)
            case "no http":
                write(b"SSH-2.0-no_such_thing\r\n" * 10)
            case "cut off":
                write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                write(self.pages.get(name, "").encode())
            case "redirects":
                self.send(request, 302, "", location=request.path)
            case "elsewhere":
                self.send(request, 302, "", location="http://example.org/x.keys")
            case "moved" if not name.startswith("moved/"):
                self.send(request, 301, "", location=f"/moved/{name}.keys")
            case "garbage":
                self.send(request, 200, "<html>\0 please log in</html>\n" * 100)
            case fault if fault.isdecimal():
                self.send(request, int(fault), "oh")
            case _:
                page = self.pages.get(name.removeprefix("moved/"))
                self.send(request, 404 if page is None else 200, page or "")

    def send(
        self, request: BaseHTTPRequestHandler, status: int, body: str, location: str = ""
    ) -> None:
        request.send_response(status)
        if location:
            request.send_header("Location", location)
        if self.cache_control is not None:
            request.send_header("Cache-Control", self.cache_control)
        request.send_header("Content-Length", str(len(body.encode())))
        request.end_headers()
        request.wfile.write(body.encode())
