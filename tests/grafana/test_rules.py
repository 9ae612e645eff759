"""The rules: promtool's unit tests, a real Prometheus, and a runbook entry for each."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from steadfeast.monitor.exporter.metrics import SAMPLES

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
RULES = ROOT / "grafana" / "rules"
ALERTS = [
    rule
    for group in yaml.safe_load((RULES / "steadfeast.rules.yml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
    if "alert" in rule
]
RECORDED = {
    rule["record"]
    for group in yaml.safe_load((RULES / "steadfeast.rules.yml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
    if "record" in rule
}


@pytest.mark.service("promtool")
@pytest.mark.parametrize(
    "arguments",
    [
        "check rules {}/steadfeast.rules.yml",
        "test rules {}/steadfeast.test.yml",
        "test rules {}/burn.test.yml",
    ],
)
def test_promtool(arguments, service_binary: Callable[[str], Path]):
    words = arguments.format(RULES).split(maxsplit=2)
    ran = subprocess.run(
        [service_binary("promtool"), *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("rule", [pytest.param(rule, id=rule["alert"]) for rule in ALERTS])
def test_every_alert_says_what_a_person_needs(rule):
    runbook = (ROOT / "docs" / "runbook.md").read_text("utf-8")
    boards = {path.stem for path in (ROOT / "grafana" / "dashboards").glob("*.json")}
    assert rule["labels"]["severity"] in {"warning", "critical"}
    notes = rule["annotations"]
    assert notes["summary"]
    assert notes["description"].endswith(".")
    assert notes["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"
    assert f"\n## {rule['alert']}\n" in runbook
    assert notes["dashboard"].removeprefix("/d/steadfeast-") in boards
    assert set(re.findall(r"\bsteadfeast_[a-z0-9_]+", rule["expr"])) <= set(SAMPLES)
    assert set(re.findall(r"\bsteadfeast:[a-z0-9_:]+", rule["expr"])) <= RECORDED


def test_the_runbook_and_the_unit_tests_know_every_alert_and_no_other():
    known = {rule["alert"] for rule in ALERTS}
    runbook = (ROOT / "docs" / "runbook.md").read_text("utf-8")
    assert set(re.findall(r"^## (\w+)$", runbook, re.MULTILINE)) == known
    tested = "".join(path.read_text("utf-8") for path in RULES.glob("*.test.yml"))
    assert set(re.findall(r"\bSteadfeast\w+", tested)) == known


@pytest.mark.service("prometheus")
def test_a_daemon_in_trouble_raises_its_alerts(prometheus):
    """What fires without a waiting time fires; what waits is pending; nothing else speaks."""
    expected = {
        ("SteadfeastDataIncident", "firing"),
        ("SteadfeastPerformanceDrop", "firing"),
        ("SteadfeastDriftEpisode", "firing"),
        ("SteadfeastTriggerGivenUp", "firing"),
        ("SteadfeastInvariantViolated", "firing"),
        ("SteadfeastFreshnessBurnFast", "firing"),
        ("SteadfeastFreshnessBurnMedium", "firing"),
        ("SteadfeastFreshnessBurnSlow", "firing"),
        ("SteadfeastAuditStale", "pending"),
        ("SteadfeastEstimatedDrop", "pending"),
        ("SteadfeastRetrainBlocked", "pending"),
        ("SteadfeastOutboxStuck", "pending"),
        ("SteadfeastJobStale", "pending"),
    }
    found = None
    deadline = time.monotonic() + 10  # a rule may have been judged just before the last scrape
    while found != expected and time.monotonic() < deadline:
        time.sleep(0.1)
        alerts = prometheus.get("alerts")["alerts"]
        found = {(alert["labels"]["alertname"], alert["state"]) for alert in alerts}
    assert found == expected
