"""Alertmanager's webhook as a cause: a real Alertmanager, and what else may be posted there."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from steadfeast.featurestore.security import Ports, Security
from steadfeast.monitor.exporter import registry
from steadfeast.monitor.web.alertmanager import MAX_WEBHOOK_BYTES, SUMMARY, parse
from steadfeast.monitor.web.app import Operator, app
from support import monitor_world as world
from support.daemon_world import NEVER, SERVED, Here
from support.monitor_world import wait_for
from support.tokens import access_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TOKEN, READER = "trigger-token-0123456789", "reader-token-0123456789"
TOKENS = {"pager": (TOKEN, ["trigger"]), "ann": (READER, ["read", "approve"])}
ROUTE = """\
route: {{receiver: steadfeast, group_wait: 0s, group_interval: 1s, repeat_interval: 1s}}
receivers:
  - name: steadfeast
    webhook_configs:
      - url: {url}/alertmanager
        http_config: {{authorization: {{credentials: {token}}}}}
"""


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    made = Here(tmp_path, extra="      causes: [{alertname: Churn}]\n")
    made.daemon.champions.follow()
    yield made
    made.close()
    made.server.stop()


@pytest.fixture
def url(here: Here) -> Iterator[str]:
    evaluator = here.daemon.evaluator
    people = Operator(
        access_of(**TOKENS),
        here.ledger.acknowledge,
        evaluator.decide,
        here.daemon.causes.told,
    )
    state, healthy = here.daemon.state, here.daemon.healthy
    served = app(state, healthy, registry(state), people)
    with Ports(Security(), http_address="127.0.0.1:0", app=served) as ports:
        yield f"http://127.0.0.1:{ports.http_port}"


@pytest.fixture
def alertmanager(
    url: str,
    service_binary: Callable[[str], Path],
    free_port: Callable[[], int],
    tmp_path: Path,
) -> Iterator[str]:
    config = tmp_path / "alertmanager.yml"
    config.write_text(ROUTE.format(url=url, token=TOKEN))
    port = free_port()
    command = [str(service_binary("prometheus-alertmanager")), f"--config.file={config}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", f"--storage.path={tmp_path}"]
    command += ["--cluster.listen-address="]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: send(f"{address}/-/ready") == 200, 30)
        yield address
    finally:
        process.terminate()
        process.wait()


def send(url: str, body: bytes | None = None, token: str = "") -> int:
    """Get, or post JSON; returns the status, 0 without an answer."""
    headers = {"content-type": "application/json"}
    headers |= {"authorization": f"Bearer {token}"} if token else {}
    try:
        request = urllib.request.Request(url, body, headers)  # noqa: S310
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def message(**changes: object) -> bytes:
    one = {
        "status": "firing",
        "labels": {"alertname": "Churn"},
        "annotations": {"summary": "too many leave"},
        "startsAt": "2024-02-12T06:00:00.123456789Z",
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "",
        "fingerprint": "0123456789abcdef",
    }
    told = {"version": "4", "status": "firing", "truncatedAlerts": 0, "alerts": [one | changes]}
    return json.dumps(told).encode()


@pytest.mark.service("prometheus-alertmanager")
def test_an_alert_of_a_real_alertmanager_is_one_trigger(here: Here, alertmanager: str):
    """It is told every second while it fires, ends, and fires again later: another cause."""
    world.serve(here.folder, SERVED, 4, NEVER)
    here.daemon.evaluate("")
    began = datetime.now(UTC) - timedelta(minutes=5)

    def tell(begin: datetime, **more: str) -> None:
        alert = {"labels": {"alertname": "Churn", "shop": "b"}, "startsAt": begin.isoformat()}
        alert |= {"annotations": {"summary": "too many leave"}, **more}
        assert send(f"{alertmanager}/api/v2/alerts", json.dumps([alert]).encode()) == 200

    def acts() -> list[tuple[str, str]]:
        return [(one.act, one.actor) for one in here.ledger.audit(0, 100)]

    tell(began)
    wait_for(lambda: acts() == [("cause", "alertmanager (pager)")])
    tell(began)
    wait_for(lambda: repeated(alertmanager) > 2)
    assert len(here.ledger.pending()) == 1
    (trigger,) = here.daemon.state().triggers
    tell(began, endsAt=datetime.now(UTC).isoformat())
    wait_for(lambda: ("resolve", "alertmanager (pager)") in acts())
    assert not [one for one in here.daemon.state().episodes if one.open]
    tell(datetime.now(UTC))
    wait_for(lambda: len(acts()) == 3)
    later, first = here.daemon.state().triggers
    assert first.request_id == trigger.request_id
    assert "under way" in later.reason


def repeated(alertmanager: str) -> float:
    """Return how many messages Alertmanager has sent to us."""
    with urllib.request.urlopen(f"{alertmanager}/metrics", timeout=5) as answer:  # noqa: S310
        for line in answer.read().decode().splitlines():
            if line.startswith('alertmanager_notifications_total{integration="webhook"'):
                return float(line.rpartition(" ")[2])
    return 0.0


def test_what_may_be_posted(here: Here, url: str):
    hook = f"{url}/alertmanager"
    assert send(hook, message(), TOKEN) == 503  # no window is judged: it is to be sent again
    world.serve(here.folder, SERVED, 4, NEVER)
    here.daemon.evaluate("")
    assert send(hook, message()) == 401
    assert send(hook, message(), "nobody's-token-0123456789") == 401
    assert send(hook, message(), READER) == 403
    assert send(hook, b"{", TOKEN) == 400
    assert send(hook, message(startsAt="yesterday"), TOKEN) == 400
    assert send(hook, message().replace(b'"4"', b'"3"'), TOKEN) == 400
    assert send(hook, message() + b" " * MAX_WEBHOOK_BYTES, TOKEN) == 413
    assert send(hook) == 405
    assert not here.daemon.state().triggers
    assert send(hook, message(), TOKEN) == 200
    assert send(hook, message(), TOKEN) == 200
    (trigger,) = here.daemon.state().triggers
    assert trigger.state == "pending"


def test_a_summary_is_one_short_line():
    (alert,) = parse(message(annotations={"summary": "a\nb " * 200}))
    assert alert.summary.startswith("Churn: a b a b")
    assert len(alert.summary) == SUMMARY
    (alert,) = parse(message(annotations={}))
    assert alert.summary == "Churn"
    assert alert.starts_at == datetime(2024, 2, 12, 6, 0, 0, 123456, UTC)
