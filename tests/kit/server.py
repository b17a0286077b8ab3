"""A web server for the repositories, that can also misbehave."""

import contextlib
import http.server
import json
import shutil
import socket
import sys
import threading
from collections import Counter
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, cast

SLOW_RATE = 1 << 20  # bytes a second
_SLOW_PIECE = 16 << 10
ANSWER = {"ip": "203.0.113.7", "ok": True}


class _HasRepo(Protocol):
    @property
    def repo(self) -> Path: ...


class Server:
    """Serves a kit's `repo` over HTTP/1.1 from threads of this process until it is closed.

    Below these prefixes the same files are served badly: `/_500/` answers with that status,
    `/_trunc/` ends in the middle of every .apk, `/_hang/` takes requests and never answers,
    `/_slow/` sends SLOW_RATE bytes a second. `/json` answers with a small JSON object.

    `requests` counts the requests by path, as they came.
    """

    def __init__(self, kit: _HasRepo, host: str = "127.0.0.1", port: int = 0) -> None:
        self.requests: Counter[str] = Counter()
        self._http = _Http((host, port), kit.repo, self.requests)
        self.url = f"http://{host}:{self._http.server_address[1]}"
        # The interval is how long close() may have to wait for the thread.
        self._thread = threading.Thread(
            target=self._http.serve_forever, args=(0.02,), name=f"serve {self.url}"
        )
        self._thread.start()

    def close(self) -> None:
        """End all connections and threads, at once, whatever they are doing. Repeatable."""
        self._http.shutdown()
        self._http.disconnect()
        self._http.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Http(http.server.ThreadingHTTPServer):
    daemon_threads = False  # so that server_close() waits for them
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], root: Path, requests: Counter[str]) -> None:
        self.root = root
        self.closing = threading.Event()
        self._requests = requests
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # HTTPServer's own would look the address up in the DNS, for a name that nobody asks for.
        super(http.server.HTTPServer, self).server_bind()

    def count(self, path: str) -> None:
        with self._lock:
            self._requests[path] += 1

    def disconnect(self) -> None:
        """Wake every thread: its reads end, its writes fail."""
        self.closing.set()
        with self._lock:
            for connection in self._connections:
                _shutdown(connection)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        with self._lock:
            self._connections.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report what is wrong here: not that a client went away, or close()."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fault = ""

    def __init__(self, request: Any, client_address: Any, server: _Http) -> None:
        super().__init__(request, client_address, server, directory=str(server.root))

    def do_GET(self) -> None:
        self._http.count(self.path)
        asked = self.path
        first, _, rest = asked.removeprefix("/").partition("/")
        self.fault = first if first.startswith("_") else ""
        if self.fault:
            self.path = f"/{rest}"
        if self.fault == "_500":
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
        elif self.fault == "_hang":
            self.close_connection = True
            while self.connection.recv(4096):  # until one side ends the connection
                pass
        elif self.path.partition("?")[0] == "/json":
            self._answer({**ANSWER, "path": asked})
        else:
            super().do_GET()

    def copyfile(self, source: Any, outputfile: Any) -> None:
        if self.fault == "_trunc" and self.path.endswith(".apk"):
            self.close_connection = True
            content = source.read()
            outputfile.write(content[: len(content) // 2])
        elif self.fault == "_slow":
            while piece := source.read(_SLOW_PIECE):
                outputfile.write(piece)
                if self._http.closing.wait(len(piece) / SLOW_RATE):
                    break
        else:
            shutil.copyfileobj(source, outputfile)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing: `requests` tells."""

    def _answer(self, answer: dict[str, object]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    @property
    def _http(self) -> _Http:
        return cast(_Http, self.server)


def _shutdown(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # its client was faster
        connection.shutdown(socket.SHUT_RDWR)
