"""Alerts to a webhook on a real port, and to a real Alertmanager."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from steadfeast.monitor.config.endpoints import AlertTargetConfig
from steadfeast.monitor.decisions.model import Alert, AlertKind, OpenIncident, PolicyState, Severity
from steadfeast.monitor.delivery import alerts as sent
from steadfeast.monitor.delivery.alerts import AlertSenders
from steadfeast.monitor.delivery.threads import Backoff
from steadfeast.monitor.drift.data_quality import Incident, IncidentKind
from steadfeast.monitor.drift.detector import Level, Verdict
from steadfeast.monitor.ledger.ledger import Ledger, Position
from steadfeast.monitor.profiles.profile import Window
from support.http_world import TOKEN, Api
from support.monitor_world import DAY, START, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

WINDOW = Window(START, START + 3 * DAY, 600)
VERDICT = Verdict("served", "x", "psi", 0.5, 0.1, Level.DRIFT, "moved", WINDOW)
WORKING = Backoff(first=0.02, most=0.05)


class Webhook(Api):
    """Takes everything."""

    def answer(self, method, path, query, headers, body):  # noqa: ARG002
        return 200, None

    def bodies(self) -> list[dict]:
        return [json.loads(body) for *_, body in self.calls]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path) as made:
        yield made


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    made = Webhook()
    yield made
    made.close()


def tell(ledger: Ledger, summary: str, **more: object) -> None:
    plain = {
        "kind": AlertKind.EPISODE,
        "severity": Severity.WARNING,
        "episodes": {"e1": summary},
    } | more
    with ledger.transaction():
        ledger.add_alerts(
            [Alert(monitor="w", at=WINDOW.end, summary=summary, features=(VERDICT,), **plain)]
        )


def sinks(ledger: Ledger, url: str, kind: str) -> AlertSenders:
    config = AlertTargetConfig(kind=kind, url=url, token=TOKEN)
    made = AlertSenders(ledger, {"there": config}, WORKING)
    made.start()
    # A target gets what comes after it was configured.

    def known() -> bool:
        with ledger.changed:
            return bool(ledger._rows("SELECT 1 FROM sinks WHERE name = 'there'"))

    wait_for(known)
    return made


def test_cloudevents_arrive_once_each_and_in_order_over_a_restart(ledger: Ledger, webhook: Webhook):
    tell(ledger, "before anybody listened")
    here = sinks(ledger, f"{webhook.url}/hook", "cloudevents")
    tell(ledger, "one")
    wait_for(lambda: len(webhook.calls) == 1)
    here.close()
    tell(ledger, "two")
    webhook.broken = [503, 429]
    here = sinks(ledger, f"{webhook.url}/hook", "cloudevents")
    tell(ledger, "three", kind=AlertKind.RUN)
    wait_for(lambda: len(webhook.calls) == 5)
    assert not here.problem()
    here.close()
    method, path, headers, _ = webhook.calls[0]
    assert (method, path) == ("POST", "/hook")
    assert headers["content-type"] == "application/cloudevents+json"
    first, *_, last = webhook.bodies()
    required = {"specversion": "1.0", "id": "2", "source": "/steadfeast/monitors/w"}
    assert {name: first[name] for name in required} == required
    assert first["type"] == "dev.steadfeast.alert.episode"
    assert first["time"] == "2024-01-04T00:00:00Z"
    assert first["data"]["features"][0]["threshold"] == 0.1
    said = [body["data"]["summary"] for body in webhook.bodies()]
    assert said == ["one", "two", "two", "two", "three"]  # two were answered 503 and 429
    assert last["type"] == "dev.steadfeast.alert.run"


def test_slack_reads_no_markup_out_of_a_summary(ledger: Ledger, webhook: Webhook):
    here = sinks(ledger, webhook.url, "slack")
    tell(ledger, "x < 3 & <!channel>")
    wait_for(lambda: webhook.calls)
    here.close()
    assert webhook.bodies() == [
        {"text": "[warning] w: x &lt; 3 &amp; &lt;!channel&gt; (2024-01-04 00:00 UTC)"}
    ]


def test_what_is_refused_holds_nothing_back(ledger: Ledger, webhook: Webhook):
    webhook.broken = [400]
    here = sinks(ledger, webhook.url, "slack")
    tell(ledger, "one")
    tell(ledger, "two")
    wait_for(lambda: len(webhook.calls) == 2)
    here.close()
    assert ledger.sent("there") == 2


def test_it_stops_while_nobody_answers(ledger: Ledger):
    here = sinks(ledger, "http://127.0.0.1:1", "slack")
    tell(ledger, "one")
    time.sleep(0.1)
    began = time.monotonic()
    here.close()
    assert time.monotonic() - began < 5
    assert ledger.sent("there") == 0


@pytest.fixture
def alertmanager(
    service_binary: Callable[[str], Path], free_port: Callable[[], int], tmp_path: Path
) -> Iterator[str]:
    config = tmp_path / "alertmanager.yml"
    config.write_text("route: {receiver: nobody}\nreceivers: [{name: nobody}]\n")
    port = free_port()
    command = [str(service_binary("prometheus-alertmanager")), f"--config.file={config}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", f"--storage.path={tmp_path}"]
    command += ["--cluster.listen-address="]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        try:
            with urllib.request.urlopen(f"{url}/-/ready", timeout=2) as answer:  # noqa: S310
                return answer.status == 200
        except OSError:
            return False

    try:
        wait_for(ready, 30)
        yield url
    finally:
        process.terminate()
        process.wait()


@pytest.mark.service("prometheus-alertmanager")
def test_alertmanager_sees_an_episode_until_it_ends(ledger: Ledger, alertmanager: str):
    def standing() -> dict[str, dict]:
        with urllib.request.urlopen(f"{alertmanager}/api/v2/alerts", timeout=5) as answer:  # noqa: S310
            return {one["labels"]["alertname"]: one for one in json.loads(answer.read())}

    incident = Incident(IncidentKind.NULL_BURST, "x", 0.9, 0.2, "x is null in 90 % of rows")
    broken = PolicyState(
        watermark=WINDOW.end, incidents=(OpenIncident(incident, WINDOW.end, WINDOW.end),)
    )
    ledger.hold("w", Position(WINDOW.end, broken))
    here = sinks(ledger, alertmanager, "alertmanager")
    broke = {"kind": AlertKind.DATA_INCIDENT, "severity": Severity.CRITICAL, "episodes": {}}
    tell(ledger, "x moved")
    tell(ledger, "x is null", **broke)
    tell(ledger, "retraining fired", kind=AlertKind.TRIGGER)
    wait_for(lambda: len(standing()) == 2)
    found = standing()
    assert set(found) == {"SteadfeastEpisode", "SteadfeastDataIncident"}
    episode = found["SteadfeastEpisode"]
    assert episode["labels"]["episode_id"] == "e1"
    assert episode["annotations"]["summary"] == "x moved"
    ends = datetime.fromisoformat(episode["endsAt"])
    assert ends > datetime.now(UTC) + timedelta(days=300)
    tell(ledger, "closed", resolved=True, severity=Severity.INFO)
    tell(ledger, "passed: y", **broke | {"resolved": True})  # another incident stays open
    wait_for(lambda: ledger.sent("there") == 5)
    wait_for(lambda: set(standing()) == {"SteadfeastDataIncident"})
    ledger.hold("w", Position(WINDOW.end, PolicyState(watermark=WINDOW.end)))
    tell(ledger, "passed: x", **broke | {"resolved": True})
    wait_for(lambda: not standing())
    here.close()


def test_an_alert_of_a_clock_ahead_begins_before_it_ends():
    """Event time may be ahead of the wall clock; the other way round it begins when it began."""
    now = WINDOW.end
    for ahead in (timedelta(days=2), timedelta(0), -timedelta(days=2)):
        alert = Alert(
            AlertKind.EPISODE, Severity.WARNING, "w", now + ahead, "x", {"e1": "x", "e2": "y"}
        )
        made = sent.alertmanager(alert, now, ended=False)
        assert [one["labels"]["episode_id"] for one in made] == ["e1", "e2"]
        for one in made:
            begins = datetime.fromisoformat(one["startsAt"])
            assert begins == (now if ahead > timedelta(0) else now + ahead)
            assert datetime.fromisoformat(one["endsAt"]) > now
    (ended, _) = sent.alertmanager(alert, now, ended=True)
    assert datetime.fromisoformat(ended["endsAt"]) == now
    assert "startsAt" not in ended
