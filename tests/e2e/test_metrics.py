"""The figures, and what leads from them to a run, of a real server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.http_lab import Web
from tests.e2e.service_lab import PATIENCE, Service

pytestmark = pytest.mark.any_engine

DOCS = Path(__file__).parents[2] / "docs"
TOKEN = "of the figures"
SUFFIXES = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
TRACE = f"00-{'a' * 32}-{'b' * 16}-01"

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


SETTINGS = {
    "CMDSVC_METRICS_TOKEN": TOKEN,
    "CMDSVC_LOG": "json",
    "CMDSVC_MAX_RUNS_PER_USER": "2",
    "CMDSVC_QUEUE_WAIT": "300ms",
}


@pytest.fixture
def hook(web: Web, name: str) -> str:
    """The path of one whose script does what comes."""
    web.service.create(name, "#!cmd alpine\n#!/bin/sh\n. /cmd/body\n").ok()
    words = (":hooks", name, "new", "push", "--scheme", "token", "--secret", "-")
    web.service.ssh(*words, "--retries", "0", stdin=b"secret").ok()
    return f"/hook/alice/{name}/push"


def deliver(web: Web, hook: str, script: str, **headers: str) -> str:
    """The delivery's id."""
    said = httpx.post(
        web.service.url + hook,
        content=script,
        headers={"x-hook-token": "secret", **headers},
        timeout=PATIENCE,
    )
    assert said.status_code == 202, said.text
    return str(said.json()["id"])


def scrape(web: Web, method: str = "GET", **headers: str) -> httpx.Response:
    return httpx.request(method, f"{web.service.url}/metrics", headers=headers, timeout=PATIENCE)


def exposition(web: Web) -> str:
    said = scrape(web, authorization=f"Bearer {TOKEN}")
    assert said.status_code == 200
    return said.text


def series(web: Web) -> Series:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(exposition(web))
        for sample in family.samples
    }


def value(found: Series, name: str, **labels: str) -> float:
    """The sum of what has these labels."""
    wanted = labels.items()
    return sum(v for (n, has), v in found.items() if n == name and wanted <= dict(has).items())


def eventually(web: Web, name: str, wanted: float, **labels: str) -> None:
    until = time.monotonic() + PATIENCE
    while (is_now := value(series(web), name, **labels)) != wanted:
        assert time.monotonic() < until, (name, labels, is_now)
        time.sleep(0.05)


def logged(web: Web, of: Callable[[dict[str, Any]], bool], count: int) -> list[dict[str, Any]]:
    """The lines of the log that are so, once there are as many."""
    until = time.monotonic() + PATIENCE
    while True:
        lines = [json.loads(line) for line in web.service.log.split("\n")[:-1]]
        found = [line for line in lines if of(line)]
        if len(found) >= count or time.monotonic() > until:
            return found
        time.sleep(0.05)


class TestWhoMayAsk:
    def test_with_the_token(self, web: Web):
        for scheme in ("Bearer", "bearer"):
            said = scrape(web, authorization=f"{scheme} {TOKEN}")
            assert said.status_code == 200
            assert said.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"

    @pytest.mark.parametrize(
        "header", [None, "Bearer", f"Bearer {TOKEN}x", TOKEN, f"Basic {TOKEN}", "\xff"]
    )
    def test_without_it(self, web: Web, header: str | None):
        given = {} if header is None else {"authorization": header}
        with httpx.Client(headers={k: v.encode("latin-1") for k, v in given.items()}) as client:
            said = client.get(f"{web.service.url}/metrics")
        assert said.status_code == 401
        assert said.headers["www-authenticate"].startswith("Bearer")
        assert "cmdsvc_" not in said.text

    def test_a_users_token_is_another(self, web: Web):
        assert web.client.get("/metrics").status_code == 401

    def test_methods(self, web: Web):
        own = {"authorization": f"Bearer {TOKEN}"}
        assert scrape(web, "POST", **own).headers["allow"] == "GET, HEAD"
        assert scrape(web, "HEAD", **own).content == b""

    def test_it_is_not_shown(self, web: Web):
        shown = web.service.cli("check")
        assert b"CMDSVC_METRICS_TOKEN" in shown.out
        assert TOKEN.encode() not in shown.out + shown.err
        assert TOKEN not in web.service.log

    def test_everybody_where_there_is_none(self, service: Service):
        said = httpx.get(f"{service.url}/metrics", timeout=PATIENCE)
        assert said.status_code == 200
        engine = service.settings["CMDSVC_ENGINE"]
        assert f'cmdsvc_info{{engine="{engine}",version="' in said.text


class TestWhatIsCounted:
    def test_runs_by_their_door(self, web: Web):
        before = series(web)
        web.run("exit 3")
        web.run("kill -9 $$")
        web.service.ssh("sh", "echo x").ok()
        after = series(web)
        for count, labels in [
            (1, {"door": "http", "outcome": "exit", "engine": "bubblewrap"}),
            (1, {"door": "http", "outcome": "signal"}),
            (1, {"door": "ssh", "outcome": "exit"}),
            (3, {}),
        ]:
            name = "cmdsvc_runs_total"
            assert value(after, name, **labels) - value(before, name, **labels) == count
        for door, name, count in [
            ("http", "cmdsvc_run_seconds_count", 2),
            ("http", "cmdsvc_run_first_byte_seconds_count", 0),
            ("ssh", "cmdsvc_run_first_byte_seconds_count", 1),
        ]:
            assert value(after, name, door=door) - value(before, name, door=door) == count
        assert value(after, "cmdsvc_sandboxes_warm") > 0

    def test_the_first_byte_is_not_the_end(self, web: Web):
        before = series(web)
        web.run("sleep 0.3; echo x; sleep 0.7")
        after = series(web)

        def seconds(name: str) -> float:
            return value(after, name, door="http") - value(before, name, door="http")

        first, end = seconds("cmdsvc_run_first_byte_seconds_sum"), seconds("cmdsvc_run_seconds_sum")
        assert 0.3 <= first <= end - 0.6

    def test_what_finds_no_room(self, web: Web):
        before = series(web)
        going = [web.service.popen("sh", "echo begun; read x") for _ in range(2)]
        try:
            for client in going:
                assert client.stdout is not None
                assert client.stdout.readline() == b"begun\n"
            assert value(series(web), "cmdsvc_sandboxes_running") == 2
            assert web.run("echo x").status_code == 429
        finally:
            for client in going:
                client.communicate(b"x\n", timeout=PATIENCE)
        after = series(web)
        labels = {"door": "http", "exit_status": "75"}
        name = "cmdsvc_runs_refused_total"
        assert value(after, name, **labels) - value(before, name, **labels) == 1
        eventually(web, "cmdsvc_sandboxes_running", 0)

    def test_a_build(self, web: Web, name: str):
        before = value(series(web), "cmdsvc_build_seconds_count", outcome="failed")
        web.service.create(name, "#!cmd alpine no-such-package\n#!/bin/sh\n").failed(65)
        assert value(series(web), "cmdsvc_build_seconds_count", outcome="failed") == before + 1

    def test_deliveries(self, web: Web, hook: str):
        name = "cmdsvc_delivery_attempts_total"
        before = series(web)
        done = value(before, name, door="hook", state="done")
        failed = value(before, name, door="hook", state="failed")
        deliver(web, hook, "echo done")
        deliver(web, hook, "exit 1")
        eventually(web, name, done + 1, door="hook", state="done")
        eventually(web, name, failed + 1, door="hook", state="failed")
        eventually(web, "cmdsvc_deliveries", 0, state="waiting")
        eventually(web, "cmdsvc_deliveries", failed + 1, state="failed")
        assert value(series(web), "cmdsvc_deliveries_oldest_seconds") == 0

    def test_what_waits(self, web: Web, hook: str):
        going = web.service.ssh(":hooks", hook.split("/")[3], "log").ok()
        assert going.text == ""
        before = value(series(web), "cmdsvc_delivery_attempts_total", state="waiting")
        words = (":hooks", hook.split("/")[3], "new", "later", "--scheme", "token", "--secret", "-")
        web.service.ssh(*words, stdin=b"secret").ok()
        deliver(web, hook.replace("/push", "/later"), "exit 75")
        eventually(web, "cmdsvc_delivery_attempts_total", before + 1, state="waiting")
        eventually(web, "cmdsvc_deliveries", 1, state="waiting")
        assert value(series(web), "cmdsvc_deliveries_oldest_seconds") > 0
        web.service.ssh(":delete", hook.split("/")[3]).ok()
        eventually(web, "cmdsvc_deliveries", 0, state="waiting")

    @pytest.mark.slow
    def test_nothing_that_a_caller_chooses(self, web: Web, hook: str):
        """60 names, paths, methods, arguments and statuses."""

        def one_each(number: int) -> None:
            web.run(f"echo x; exit {number * 67 % 256}")
            web.client.request(f"M{number}", f"/p{number}/x", headers={f"x-{number}": "x"})
            web.run("", f"command{number}", query=f"a{number}=b&stream", headers=web.bearer("x"))
            web.client.post(f"/hook/a{number}/b/c")

        one_each(0)
        one_each(1)
        deliver(web, hook, "exit 0")
        eventually(web, "cmdsvc_deliveries", 0, state="running")
        known = set(series(web))
        for number in range(60):
            one_each(number)
        for number in range(5):
            deliver(web, hook, f"exit {number}", **{"x-github-event": f"e{number}"})
        assert set(series(web)) <= known


@pytest.fixture(scope="module")
def families(web: Web) -> dict[str, list[str]]:
    """The names of the series of each, by the family's."""
    web.run("echo x")
    return {
        family.name: [family.name + s for s in SUFFIXES.get(family.type, [""])]
        for family in text_string_to_metric_families(exposition(web))
    }


class TestTheFiles:
    """docs/metrics.md, docs/alerts.yml and docs/grafana-dashboard.json speak of what there is."""

    @pytest.mark.parametrize("file", ["metrics.md", "alerts.yml", "grafana-dashboard.json"])
    def test_name_what_exists(self, file: str, families: dict[str, list[str]]):
        names = {*families, *(name for names in families.values() for name in names)}
        named = set(
            re.findall(r"\b(?:cmdsvc|process|python)_[a-z_]*[a-z]", (DOCS / file).read_text())
        )
        assert named
        assert named <= names

    def test_all_is_explained(self, families: dict[str, list[str]]):
        text = (DOCS / "metrics.md").read_text()
        for family, names in families.items():
            if family.startswith("cmdsvc_"):
                assert f"`{family}`" in text or f"`{names[0]}`" in text

    @pytest.mark.skipif(shutil.which("promtool") is None, reason="apt-get install prometheus")
    def test_promtool_finds_nothing(self, web: Web, tmp_path: Path):
        dashboard = json.loads((DOCS / "grafana-dashboard.json").read_text())
        asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
        for block in re.findall(
            r"```promql\n(.*?)```", (DOCS / "metrics.md").read_text(), re.DOTALL
        ):
            asked += re.split(r"\n\n", block)
        for variable, instead in (("$__rate_interval", "5m"), ("$instance", ".*")):
            asked = [words.replace(variable, instead) for words in asked]
        rules = [{"record": f"asked:{n}", "expr": words} for n, words in enumerate(asked)]
        made = tmp_path / "rules.yml"
        made.write_text(json.dumps({"groups": [{"name": "asked", "rules": rules}]}))
        for words, stdin in [
            (["check", "rules", str(DOCS / "alerts.yml"), str(made)], ""),
            (["check", "metrics"], exposition(web)),
        ]:
            done = subprocess.run(
                ["promtool", *words], input=stdin, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr


class TestTheLog:
    def test_a_run(self, web: Web):
        run = web.run("exit 3").headers["x-cmd-run-id"]
        lines = logged(web, lambda line: line.get("run") == run, 2)
        assert sorted(line["logger"] for line in lines) == ["cmdsvc.http", "cmdsvc.run"]
        [line] = [line for line in lines if line["message"] == "run"]
        assert line.pop("seconds") > 0
        assert {key: line[key] for key in ("command", "version", "user", "door")} == {
            "command": "alice/sh", "version": 1, "user": "alice", "door": "http",
        }  # fmt: skip
        assert (line["exit_status"], line["reason"]) == (3, "exit")

    def test_a_delivery(self, web: Web, hook: str):
        id_ = deliver(web, hook, "exit 1")
        [line] = logged(web, lambda line: line.get("delivery") == id_, 1)
        assert (line["logger"], line["message"]) == ("cmdsvc.delivery", "delivery")
        assert (line["hook"], line["state"], line["exit_status"]) == ("push", "failed", 1)
        assert (line["command"], line["attempt"]) == (hook[6:].removesuffix("/push"), 1)
        of_run = logged(web, lambda other: other.get("run") == line["run"], 2)
        assert sorted(one["logger"] for one in of_run) == ["cmdsvc.delivery", "cmdsvc.run"]
        assert line["run"] in web.service.ssh(":runs", "-j").text


class TestTheTrace:
    SCRIPT = 'printf %s "${TRACEPARENT-none}"'

    def test_of_a_request(self, web: Web):
        assert web.run(self.SCRIPT, headers={"traceparent": TRACE}).text == TRACE

    @pytest.mark.parametrize(
        "wrong",
        [
            "",
            "x",
            TRACE.upper(),
            TRACE + "-00",
            TRACE.replace("00-", "ff-", 1),
            TRACE.replace("a" * 32, "0" * 32),
            TRACE.replace("b" * 16, "0" * 16),
            TRACE[:-1],
        ],
    )
    def test_that_is_none(self, web: Web, wrong: str):
        assert web.run(self.SCRIPT, headers={"traceparent": wrong}).text == "none"

    def test_of_a_delivery(self, web: Web, hook: str):
        id_ = deliver(web, hook, self.SCRIPT, traceparent=TRACE)
        [line] = logged(web, lambda line: line.get("delivery") == id_, 1)
        assert web.service.ssh(":logs", line["run"]).text == TRACE
