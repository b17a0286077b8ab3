"""A page in a real browser talks to a command, by the code that docs/websocket.md shows."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.http_lab import Web
from tests.e2e.service_lab import PATIENCE

PAGE = Path(__file__).parents[2] / "docs/websocket.md"

BROWSERS = ("chromium", "chromium-headless-shell")
"""Debian's, too large to be asked for of everyone who runs the tests."""

HTML = """<!doctype html><pre id=said></pre><img src=/held><script>
addEventListener("unhandledrejection", event => say("error", String(event.reason)));
onerror = message => say("error", message);
const results = {};
function say(name, value) {
  results[name] = value;
  if ("error" in results || Object.keys(results).length == 3) {
    said.textContent = JSON.stringify(results);
    fetch("/done");
  }
}
const token = TOKEN;

function shown() {  // what the page of the docs does, with a terminal that is none
  const received = [], types = new TextDecoder();
  let typed, resized, text = "", step = 0;
  const terminal = {
    cols: 100, rows: 30,
    onData: handler => typed = handler, onResize: handler => resized = handler,
    write: bytes => {
      text += types.decode(bytes, { stream: true });
      if (step == 0 && text.includes("30 100\\r\\n")) { step = 1; resized({ cols: 132, rows: 50 }); }
      if (step == 1 && text.includes("50 132\\r\\n")) { step = 2; typed("\\x03"); }
    },
  };
  const ended = exit => ws.onclose = ({ code }) => say("terminal", { step, exit, code });
  SHOWN
}

function raw() {
  const ws = new WebSocket(WS + "/run/alice/page/" + encodeURIComponent("read x; echo got $x ü; exit 3")
    + "?access_token=" + token);
  let text = "";
  ws.onopen = () => ws.send("typed\\n");
  ws.onmessage = ({ data }) => text += data;
  ws.onclose = ({ code }) => say("raw", { text, code, protocol: ws.protocol });
}

function other() {  // a command whose script does not know this origin
  const ws = new WebSocket(WS + "/run/alice/sh/true?access_token=" + token, "cmdsvc.v1");
  ws.onopen = () => say("other", "opened");
  ws.onclose = ({ code }) => say("other", code);
}
shown(); raw(); other();
</script>"""


class Site:
    """One page; the browser has it loaded when the page says that it is done."""

    def __init__(self) -> None:
        self.page = ""
        done = threading.Event()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/held":
                    done.wait(PATIENCE)
                elif self.path == "/done":
                    done.set()
                body = site.page.encode() if self.path == "/" else b""
                self.send_response(200)
                self.send_header("content-type", "text/html; charset=utf-8")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


def shown(web: Web, script: str) -> str:
    """The code of the page, for a command of this test."""
    match = re.search(r"```js\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert match
    ws = web.service.url.replace("http", "ws")
    url = f"{ws}/run/alice/page/{script}"
    return match[1].replace("wss://cmd.example.org/run/alice/shell", url)


def browsed(url: str, home: Path) -> dict[str, Any]:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"needs a browser: apt-get install {BROWSERS[-1]}")
    done = subprocess.run(
        [browser, "--headless", "--disable-gpu", f"--user-data-dir={home / 'browser'}",
         *(["--no-sandbox"] if os.geteuid() == 0 else []), "--dump-dom", url],
        capture_output=True, timeout=PATIENCE, check=True,
    )  # fmt: skip
    match = re.search(r"<pre id=\"said\">(.*?)</pre>", done.stdout.decode(), re.DOTALL)
    assert match, done
    said: dict[str, Any] = json.loads(html.unescape(match[1]))
    return said


@pytest.mark.slow
def test_a_page_in_a_browser(web: Web, site: Site, tmp_path: Path):
    web.create("page", f'cors = ["{site.url}"]')
    script = "trap 'stty size' WINCH; stty size; while :; do sleep 0.05; done"
    quoted = web.url(script).rpartition("/")[2]
    site.page = (
        HTML.replace("TOKEN", json.dumps(web.token))
        .replace("WS", json.dumps(web.service.url.replace("http", "ws")), 2)
        .replace("SHOWN", shown(web, quoted))
    )
    said = browsed(site.url, tmp_path)
    assert said == {
        "terminal": {"step": 2, "exit": {"type": "exit", "exit_status": 130}, "code": 1000},
        "raw": {"text": "got typed ü\n", "code": 4003, "protocol": ""},
        "other": 1006,
    }
