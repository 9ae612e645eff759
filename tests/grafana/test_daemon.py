"""The whole chain, all of it real: planted drift, daemon, Prometheus, Alertmanager, a webhook.

One story in order: drift opens an episode and fires a trigger; the alert arrives; a person
acknowledges it on the page; the retraining ends in a promotion; the all-clear arrives; a day is
judged against the new reference. Then every panel of every dashboard has data.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import monitor_world as world
import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

ROOT = Path(__file__).parents[2]
TOKEN = "correct horse battery staple"  # noqa: S105  # of this test
EXTRA = f"""\
      max_age: {{stock: 1h}}
  operator_token: {TOKEN}
"""
DRIFT_DAY = world.TRAINED_DAYS + 10
QUIET = {
    "overview: Open episodes A": "the promotion closed it",
    "overview: Open episodes B": "the promotion closed it",
    "overview: Open data incidents A": "nothing is broken",
    "overview: Firing alerts A": "nothing is open any more",
    "overview: Invariants violated A": "this world has no store to audit",
    "overview: Since the last audit A": "this world has no store to audit",
    "overview: Invariants A": "this world has no store to audit",
    "overview: Invariants B": "this world has no store to audit",
    "feature: Skew by kind A": "this world has no store to audit",
    "model: accuracy B": "the hold-out of this world has an AUC only",
    "model: log loss B": "the hold-out of this world has an AUC only",
    "model: Challenger against champion A": "the pipeline of this world has no gates",
    "model: Challenger against champion B": "the pipeline of this world has no gates",
    "model: Challenger against champion C": "the pipeline of this world has no gates",
    "model: Retrain history A": "the pipeline of this world dates no run",
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


@pytest.fixture(scope="module")
def story(  # noqa: PLR0915  # one story, in order
    tmp_path_factory: pytest.TempPathFactory,
    free_port: Callable[[], int],
    service_binary: Callable[[str], Path],
    scraping: Callable[..., AbstractContextManager[Any]],
) -> Iterator[tuple[Running, dict[str, Any]]]:
    """Give the daemon after the story, and what was seen on the way."""
    folder = tmp_path_factory.mktemp("world")
    drift_at = world.START + DRIFT_DAY * world.DAY
    pipeline = world.Pipeline(folder, drift_at=drift_at)
    pipeline.hold.clear()
    pipeline.first(world.train(folder, "aaaa", world.START, drift_at))
    world.serve(folder, world.START + world.TRAINED_DAYS * world.DAY, 16, drift_at)
    seen: dict[str, Any] = {}
    with ExitStack() as stack:
        webhook = Webhook()
        webhook.start(stack)
        ringing = free_port()
        _alertmanager(
            service_binary("prometheus-alertmanager"), folder, ringing, webhook.port, stack
        )
        server = world.PipelineServer(pipeline).start()
        stack.callback(server.stop)
        port = free_port()
        config = world.configure(folder, pipeline=server.port, http=port, extra=EXTRA)
        command = [Path(sys.executable).with_name("steadfeast"), "monitor", "run", "-c", config]
        log = stack.enter_context((folder / "log").open("wb"))
        process = subprocess.Popen(command, stdout=log, stderr=log)
        stack.callback(process.wait, 30)
        stack.callback(process.terminate)
        url = f"http://127.0.0.1:{port}"
        running = Running(url, webhook, None)
        try:
            drift = '{kind="drift",monitor="prices"} 1.0'
            world.wait_for(running.exports(f"steadfeast_episodes_open{drift}"), 60, "an episode")
            prometheus = stack.enter_context(scraping(url, f"127.0.0.1:{ringing}"))
            running = Running(url, webhook, prometheus)
            name = "SteadfeastDriftEpisode"
            world.wait_for(lambda: webhook.got(name, "firing"), 60, "a notification")
            seen["page"] = running.get()
            seen["episode"] = _acknowledge(running)
            acknowledged = running.exports(f"steadfeast_episode_acknowledged{drift}")
            world.wait_for(acknowledged, 20, "the acknowledgement")
            seen["acknowledged"] = running.get()
            pipeline.hold.set()
            world.wait_for(lambda: webhook.got(name, "resolved"), 60, "the all-clear")
            after = world.START + (world.TRAINED_DAYS + 16) * world.DAY
            [run] = pipeline.runs()
            world.serve(folder, after, 2, drift_at, version=run.model_version)
            ended = 'steadfeast_monitor_window_superseded{monitor="prices"} 0.0'
            world.wait_for(running.exports(ended), 60, "a verdict against the new reference")
            world.wait_for(running.exports("steadfeast_idle 1.0"), 60, "a daemon at rest")
            scraped = "steadfeast_idle == 1 and on () steadfeast_drift_ratio and on () "
            scraped += "steadfeast_performance_auc"
            world.wait_for(lambda: prometheus.query(scraped), 30, "a scrape of it")
        except AssertionError as error:
            logs = [(folder / one).read_text("utf-8") for one in ("log", "alertmanager.log")]
            pytest.fail("\n".join([str(error), *logs]))
        yield running, seen


def _acknowledge(running: Running) -> str:
    """Press the button, as a program does; returns the episode."""
    articles = running.get().split('id="episode-')[1:]
    episode = next(one for one in articles if "drift: x" in one).partition('"')[0]
    form = {"verb": "acknowledge", "subject": episode, "actor": "night shift", "comment": "on it"}
    request = urllib.request.Request(  # noqa: S310  # a server of ours
        running.url + "/act",
        urllib.parse.urlencode(form).encode(),
        {"Authorization": f"Bearer {TOKEN}"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        assert answer.status == 200
    return episode


SERVICES = pytest.mark.service("prometheus", "prometheus-alertmanager")


@SERVICES
def test_the_notification_says_what_a_person_needs_and_the_all_clear_follows(story):
    running, _ = story
    first = running.webhook.got("SteadfeastDriftEpisode", "firing")[0]
    assert first["labels"]["monitor"] == "prices"
    assert first["labels"]["severity"] == "warning"
    assert "moved away from the reference" in first["annotations"]["summary"]
    assert first["annotations"]["runbook"] == "docs/runbook.md#steadfeastdriftepisode"
    assert first["annotations"]["dashboard"] == "/d/steadfeast-overview"
    cleared = running.webhook.got("SteadfeastDriftEpisode", "resolved")[0]
    assert cleared["fingerprint"] == first["fingerprint"]
    assert cleared["endsAt"] > first["startsAt"]


@SERVICES
def test_the_page_told_the_same_story(story):
    running, seen = story
    for words in ("Drift", "drift: x", "Nobody has acknowledged it yet"):
        assert words in seen["page"], words
    assert "Acknowledged by night shift" in seen["acknowledged"]
    after = running.get()
    for words in ("No problem is open", "promoted"):
        assert words in after, words
    assert seen["episode"] not in after.partition('id="monitors"')[0]


@SERVICES
def test_every_panel_has_data_on_a_real_daemon(story):
    running, _ = story
    prometheus, empty = running.prometheus, set()
    for path in sorted((ROOT / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text("utf-8"))["panels"]:
            for target in panel["targets"]:
                expr = target["expr"].replace("$feature", "x")
                for variable in ("$monitor", "$view"):
                    expr = expr.replace(variable, ".*")
                if not prometheus.query(expr.replace("$__rate_interval", "1m")):
                    empty.add(f"{path.stem}: {panel['title']} {target['refId']}")
    runs = prometheus.query('steadfeast_runs{state="promoted"}')
    assert [one["value"][1] for one in runs] == ["1"]
    verdicts = prometheus.query("steadfeast_drift_level")
    assert {one["metric"]["feature"] for one in verdicts} == {"x", "kind"}
    assert empty == set(QUIET)


@SERVICES
def test_the_distribution_is_that_of_the_world(story):
    """After the promotion `kind` is what it always was: half a, three tenths b, a fifth c."""
    running, _ = story
    shares = running.prometheus.query('steadfeast_feature_share_ratio{feature="kind"}')
    by_side: dict[str, dict[str, float]] = {"reference": {}, "current": {}}
    for one in shares:
        labels = one["metric"]
        by_side[labels["side"]][labels["bin"]] = float(one["value"][1])
    for side in by_side.values():
        assert side == pytest.approx({"00 a": 0.5, "01 b": 0.3, "02 c": 0.2}, abs=0.08)
