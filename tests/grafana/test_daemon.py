"""The whole chain, all of it real: planted drift, daemon, Prometheus, Alertmanager, a webhook.

One story in order: drift opens an episode and fires a trigger; the alert arrives; a person
acknowledges it on the page; the retraining ends in a promotion; the all-clear arrives; a day is
judged against the new reference. Then every panel of every dashboard has data.
"""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pytest
import yaml

from support import monitor_world as world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

ROOT = Path(__file__).parents[2]
TOKEN = "correct horse battery staple"  # noqa: S105  # of this test
EXTRA = """\
      max_age: {stock: 1h}
"""
CALM_DAYS, DRIFT_DAYS = 10, 6
LOGS = ("log", "alertmanager.log")
QUIET = {
    "overview: Features with open drift A": "the promotion closed it",
    "overview: Open episodes A": "the promotion closed it",
    "overview: Open episodes B": "the promotion closed it",
    "overview: Open data incidents A": "nothing is broken",
    "overview: Firing alerts A": "nothing is open any more",
    "overview: Invariants violated A": "this world has no store to audit",
    "overview: Since the last audit A": "this world has no store to audit",
    "overview: Invariants A": "this world has no store to audit",
    "overview: Invariants B": "this world has no store to audit",
    "overview: Invariants C": "this world has no store to audit",
    "feature: Skew by kind A": "this world has no store to audit",
    "feature: Skew of all features A": "this world has no store to audit",
    **{
        f"model: {figure} D": "the hold-out of this world has an AUC only"
        for figure in ("accuracy", "f1", "log loss", "calibration error")
    },
    **{
        f"model: {figure} {letter}": "the model of this world is a classifier"
        for figure in ("root mean squared error", "mean absolute error", "r2")
        for letter in ("A", "B", "C", "D")
        if (figure, letter) != ("r2", "D")
    },
    **{
        f"model: {panel}": "the runs of this world name no scored rows"
        for panel in (
            "Prediction drift A",
            "Error of the estimate A",
            "What matters most of what changed A",
            *(f"{f} C" for f in ("roc auc", "accuracy", "f1", "log loss", "calibration error")),
        )
    },
    "model: Relations between features A": "this monitor looks at one feature after the other",
    "model: Relations between features B": "this monitor looks at one feature after the other",
    "model: Segments A": "this monitor splits by nothing",
    "model: Segments B": "this monitor splits by nothing",
    "model: Segments C": "this monitor splits by nothing",
    "model: Challenger against champion A": "the pipeline of this world has no gates",
    "model: Challenger against champion B": "the pipeline of this world has no gates",
    "model: Challenger against champion C": "the pipeline of this world has no gates",
    **{
        f"model: Challenger and champion, run by run {letter}": "its runs have no gates"
        for letter in "ABC"
    },
    **{
        f"serving: {panel} A": "no serving edge runs in this world"
        for panel in (
            "Versions that answer",
            "Champions not served",
            "Requests for predictions",
            "Rows predicted",
            "Time of each stage",
            "Requests for features",
            "Time to answer",
            "Rows served",
            "Values served, by status",
            "Age of features when served",
            "Waiting to be logged",
            "Predictions and labels taken in",
        )
    },
    "operations: Oldest undelivered A": "everything is delivered",
}
"""Queries without data on a daemon at rest, and why."""


@dataclass
class Webhook:
    """Where notifications arrive, on a port of its own."""

    alerts: list[dict[str, Any]] = field(default_factory=list)
    port: int = 0

    def start(self, stack: ExitStack) -> None:
        alerts = self.alerts

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                alerts.extend(body["alerts"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        stack.callback(thread.join)
        stack.callback(server.server_close)
        stack.callback(server.shutdown)
        self.port = server.server_port

    def got(self, name: str, status: str) -> list[dict[str, Any]]:
        return [
            one
            for one in self.alerts
            if one["labels"]["alertname"] == name and one["status"] == status
        ]


@dataclass(frozen=True)
class Running:
    """The daemon of the story, and who hears of it."""

    url: str
    webhook: Webhook
    prometheus: Any

    def get(self, path: str = "") -> str:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:  # noqa: S310  # ours
            return answer.read().decode()

    def exports(self, line: str) -> Callable[[], bool]:
        def _exports() -> bool:
            try:
                return line in self.get("/metrics")
            except urllib.error.URLError:
                return False

        return _exports


def _alertmanager(binary: Path, folder: Path, port: int, webhook: int, stack: ExitStack) -> None:
    """Run an Alertmanager with the routes and inhibitions that are deployed."""
    config = yaml.safe_load((ROOT / "deploy" / "alertmanager.yml").read_text("utf-8"))
    hook = {"url": f"http://127.0.0.1:{webhook}/", "send_resolved": True}
    config["receivers"][0]["webhook_configs"] = [hook]
    config["route"] |= {"group_wait": "100ms", "group_interval": "300ms"}
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(config), "utf-8")
    command = [
        binary,
        f"--config.file={folder / 'alertmanager.yml'}",
        f"--storage.path={folder / 'alertmanager'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ]
    log = stack.enter_context((folder / "alertmanager.log").open("wb"))
    process = subprocess.Popen(command, stdout=log, stderr=log)
    stack.callback(process.wait, 30)
    stack.callback(process.terminate)


@pytest.mark.service("prometheus", "prometheus-alertmanager")
def test_the_whole_chain(  # noqa: PLR0915  # one story, in order
    tmp_path: Path,
    free_port: Callable[[], int],
    service_binary: Callable[[str], Path],
    scraping: Callable[..., AbstractContextManager[Any]],
):
    first = world.START + world.TRAINED_DAYS * world.DAY
    drift_at = first + CALM_DAYS * world.DAY
    pipeline = world.Pipeline(tmp_path, drift_at=drift_at)
    pipeline.hold.clear()
    pipeline.first(world.train(tmp_path, "aaaa", world.START, drift_at))
    world.serve(tmp_path, first, CALM_DAYS, drift_at)
    with ExitStack() as stack:
        webhook = Webhook()
        webhook.start(stack)
        ringing = free_port()
        alertmanager = service_binary("prometheus-alertmanager")
        _alertmanager(alertmanager, tmp_path, ringing, webhook.port, stack)
        server = world.PipelineServer(pipeline).start()
        stack.callback(server.stop)
        port = free_port()
        config = world.configure(tmp_path, pipeline=server.port, http=port, extra=EXTRA)
        tokens = f"security:\n  tokens: {{ann: {{token: {TOKEN}, roles: [acknowledge]}}}}\n"
        config.write_text(tokens + config.read_text())
        command = [Path(sys.executable).with_name("steadfeast"), "monitor", "run", "-c", config]
        log = stack.enter_context((tmp_path / "log").open("wb"))
        process = subprocess.Popen(command, stdout=log, stderr=log)
        stack.callback(process.wait, 30)
        stack.callback(process.terminate)
        url = f"http://127.0.0.1:{port}"

        def wait(condition: Callable[[], Any], what: str) -> None:
            try:
                world.wait_for(condition, 60, what)
            except AssertionError as error:
                logs = [(tmp_path / one).read_text("utf-8") for one in LOGS]
                pytest.fail("\n".join([str(error), *logs]))

        running = Running(url, webhook, None)
        wait(running.exports("steadfeast_idle 1.0"), "a daemon at rest")
        assert "No problem is open" in running.get()
        prometheus = stack.enter_context(scraping(url, f"127.0.0.1:{ringing}"))
        running = Running(url, webhook, prometheus)
        assert not webhook.alerts

        world.serve(tmp_path, drift_at, DRIFT_DAYS, drift_at)
        name = "SteadfeastDriftEpisode"
        wait(lambda: webhook.got(name, "firing"), "a notification")
        page = running.get()
        for words in ("x has moved away from the reference", "Nobody has acknowledged it yet"):
            assert words in page, words

        episode = _acknowledge(running)
        drift = '{kind="drift",monitor="prices"} 1.0'
        wait(running.exports(f"steadfeast_episode_acknowledged{drift}"), "the acknowledgement")
        assert "Acknowledged by night shift" in running.get()

        pipeline.hold.set()
        wait(lambda: webhook.got(name, "resolved"), "the all-clear")
        _notified(webhook)
        [run] = pipeline.runs()
        after = drift_at + DRIFT_DAYS * world.DAY
        world.serve(tmp_path, after, 2, drift_at, version=run.model_version)
        judged = 'steadfeast_monitor_window_superseded{monitor="prices"} 0.0'
        wait(running.exports(judged), "a verdict against the new reference")
        wait(running.exports("steadfeast_idle 1.0"), "a daemon at rest")
        scraped = "steadfeast_idle == 1 and on () steadfeast_drift_ratio and on () "
        wait(lambda: prometheus.query(scraped + "steadfeast_performance_roc_auc"), "a scrape of it")
        page = running.get()
        assert "No problem is open" in page
        assert episode not in page.partition('id="monitors"')[0]
        _panels_have_data(prometheus)
        _annotations_have_data(prometheus)
        _distribution_is_the_worlds(prometheus)

        process.terminate()
        assert process.wait(30) == 0
        _page_is_the_ledger(page, tmp_path / "data" / "monitor" / "monitor.duckdb")


def _acknowledge(running: Running) -> str:
    """Press the button, as a program does; returns the episode."""
    articles = running.get().split('id="episode-')[1:]
    episode = next(one for one in articles if "x has moved" in one).partition('"')[0]
    form = {"verb": "acknowledge", "subject": episode, "actor": "night shift", "comment": "on it"}
    request = urllib.request.Request(  # noqa: S310  # a server of ours
        running.url + "/act",
        urllib.parse.urlencode(form).encode(),
        {"Authorization": f"Bearer {TOKEN}"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        assert answer.status == 200
    return episode


def _notified(webhook: Webhook) -> None:
    """The notification says what a person needs, and the all-clear is of the same alert."""
    first = webhook.got("SteadfeastDriftEpisode", "firing")[0]
    assert first["labels"]["monitor"] == "prices"
    assert first["labels"]["severity"] == "warning"
    assert "moved away from the reference" in first["annotations"]["summary"]
    assert first["annotations"]["runbook"] == "docs/runbook.md#steadfeastdriftepisode"
    assert first["annotations"]["dashboard"] == "/d/steadfeast-overview"
    cleared = webhook.got("SteadfeastDriftEpisode", "resolved")[0]
    assert cleared["fingerprint"] == first["fingerprint"]
    assert cleared["endsAt"] > first["startsAt"]


def _boards() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted((ROOT / "grafana" / "dashboards").glob("*.json")):
        yield path.stem, json.loads(path.read_text("utf-8"))


def _filled(expr: str) -> str:
    expr = expr.replace("$feature", "x").replace("$__rate_interval", "1m")
    for variable in ("$monitor", "$view"):
        expr = expr.replace(variable, ".*")
    return expr


def _panels_have_data(prometheus: Any) -> None:
    empty = {
        f"{name}: {panel['title']} {target['refId']}"
        for name, board in _boards()
        for panel in board["panels"]
        for target in panel["targets"]
        if not prometheus.query(_filled(target["expr"]))
    }
    runs = prometheus.query('steadfeast_runs{state="promoted"}')
    assert [one["value"][1] for one in runs] == ["1"]
    verdicts = prometheus.query("steadfeast_drift_level")
    assert {one["metric"]["feature"] for one in verdicts} == {"x", "kind"}
    assert empty == set(QUIET)


def _annotations_have_data(prometheus: Any) -> None:
    """Each marks what happened in the story; no run ended without a promotion."""
    now = time.time()
    span = {"start": str(now - 120), "end": str(now), "step": "1"}
    for _, board in _boards():
        marked = {
            one["name"]: bool(
                prometheus.get("query_range", query=_filled(one["target"]["expr"]), **span)[
                    "result"
                ]
            )
            for one in board["annotations"]["list"]
        }
        assert marked == {
            "Retraining asked for": True,
            "Daemon deployed": True,
            "Promoted": True,
            "Retrained without promotion": False,
        }


def _distribution_is_the_worlds(prometheus: Any) -> None:
    """`kind` is what it always was: half a, three tenths b, a fifth c."""
    by_side: dict[str, dict[str, float]] = {"reference": {}, "current": {}}
    for one in prometheus.query('steadfeast_feature_share_ratio{feature="kind"}'):
        labels = one["metric"]
        by_side[labels["side"]][labels["bin"]] = float(one["value"][1])
    for side in by_side.values():
        assert side == pytest.approx({"00 a": 0.5, "01 b": 0.3, "02 c": 0.2}, abs=0.08)


def _page_is_the_ledger(page: str, path: Path) -> None:
    """What the page said is in the daemon's file, read with DuckDB alone."""
    text = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", "", page)))
    with duckdb.connect(str(path), read_only=True) as con:
        episodes = [json.loads(body) for (body,) in con.sql("SELECT body FROM episodes").fetchall()]
        states = con.sql("SELECT state, reason FROM triggers").fetchall()
        query = "SELECT verdicts FROM windows ORDER BY end_time DESC LIMIT 1"
        [(verdicts,)] = con.sql(query).fetchall()
        query = "SELECT actor, act, remark FROM audit WHERE act <> 'configure'"
        assert con.sql(query).fetchall() == [("night shift (ann)", "acknowledge", "on it")]
    closed = page.partition('id="closed"')[2].partition('id="daemon"')[0]
    assert len(episodes) == closed.count('<th scope="row">')
    for episode in episodes:
        assert episode["summary"] in text
        assert episode["reason"] in text
    for state, reason in states:
        assert state in text
        assert reason in text
    shown = re.findall(r'<span class="name">(.+?)</span>', page)
    multiples = re.findall(r'<span class="times">(.+?)</span>', page)
    judged = json.loads(verdicts)
    assert [name.replace("<wbr>", "") for name in shown] == [one["feature"] for one in judged]
    expected = [
        one["value"] / one["threshold"] if one.get("times") is None else one["times"]
        for one in judged
    ]
    assert [float(one[:-1]) for one in multiples] == pytest.approx(expected, abs=0.006)
