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
    """What fires without a waiting time fires; what waits is pending at least; nothing else is."""
    at_once = {
        "SteadfeastDataIncident",
        "SteadfeastPerformanceDrop",
        "SteadfeastDriftEpisode",
        "SteadfeastTriggerGivenUp",
        "SteadfeastInvariantViolated",
        "SteadfeastFreshnessBurnFast",
        "SteadfeastFreshnessBurnMedium",
        "SteadfeastFreshnessBurnSlow",
    }
    waiting = {
        "SteadfeastAuditStale",
        "SteadfeastEstimatedDrop",
        "SteadfeastRetrainBlocked",
        "SteadfeastOutboxStuck",
        "SteadfeastJobStale",
    }
    firing: set[str] = set()
    raised: set[str] = set()
    deadline = time.monotonic() + 120  # a busy machine judges its rules late
    while (firing < at_once or raised < at_once | waiting) and time.monotonic() < deadline:
        time.sleep(0.2)
        alerts = prometheus.get("alerts")["alerts"]
        raised = {alert["labels"]["alertname"] for alert in alerts}
        firing = {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}
    assert raised == at_once | waiting
    assert at_once <= firing
