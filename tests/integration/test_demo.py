"""`make demo`, on ten weeks of the year: the whole loop through the real processes."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from demo.__main__ import edge, servers
from demo.processes import free_addresses
from demo.replay import REQUEST_COLUMNS
from steadfeast.featurestore.server.metrics import LOGGED
from steadfeast.monitor.exporter.metrics import (
    AUDIT_AT,
    AUDIT_CELLS,
    DRIFT_LEVEL,
    DRIFT_RATIO,
    SPARSE,
)
from steadfeast.pipeline.inference import metrics as inference
from support.boards_world import panels, rules
from support.demo_world import ROOT, Told, steadfeast, tell
from support.prometheus_world import scraping

pytestmark = pytest.mark.timeout(1200)  # the first test waits for the demo, on a busy machine too

SHARE = 0.35
OF_THE_DATA = {"SteadfeastDriftEpisode", "SteadfeastPerformanceDrop", "SteadfeastDataIncident",
               "SteadfeastRetrainBlocked"}  # fmt: skip
"""Alerts that the flights of that spring may cause; all others are of servers in trouble."""
NOBODY = {
    LOGGED,
    inference.REQUESTS,
    inference.ROWS,
    inference.VERSION,
    inference.NOT_SERVED,
    inference.SECONDS,
    f"{inference.SECONDS}_bucket",
}
"""Metrics of what nobody does here: no application sends labels, and no model edge runs."""


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> Told:
    """The demo, once."""
    repo = tmp_path_factory.mktemp("demo") / "feature_repo"
    shutil.copytree(ROOT / "feature_repo", repo, ignore=shutil.ignore_patterns("data"))
    # Two weeks after the last promotion: by then its segments have labels of a whole window.
    return tell(repo, "2013-05-19", SHARE)


@pytest.fixture(scope="module")
def runs(told):
    """The pipeline's runs, oldest first."""
    lines = steadfeast("pipeline", "runs", "--json", cwd=told.repo).splitlines()
    return [json.loads(line) for line in reversed(lines)]


def test_a_trigger_fires_and_its_run_ends_with_a_verdict(told, runs):
    """A month shows a trigger that fired, and the run it caused, promoted or refused."""
    eventful = [row for row in told.rows if "fired" in row["triggers"]]
    assert eventful
    assert any("drift" in row["verdict"] for row in told.rows)
    for row in eventful:
        assert "promoted" in row["runs"] or "refused" in row["runs"]
    by_hand, *caused = runs
    assert by_hand["cause"]["kind"] == "CAUSE_KIND_MANUAL"
    assert caused
    for run in caused:
        kind = run["cause"]["kind"]
        assert kind in {"CAUSE_KIND_DRIFT", "CAUSE_KIND_PERFORMANCE", "CAUSE_KIND_SCHEDULE"}
        assert run["state"] in {"RUN_STATE_PROMOTED", "RUN_STATE_REFUSED"}
        assert run["gates"]


def test_each_trigger_is_one_run(told, runs):
    """What the daemon says was delivered is what the pipeline has, no more and no less."""
    delivered = {
        json.loads(line)["request"]
        for line in (told.repo / "data" / "monitor.log").read_text().splitlines()
        if '"event": "delivered"' in line
    }
    assert sorted(run["request_id"] for run in runs[1:]) == sorted(delivered)


def test_the_champion_is_the_last_promoted_version(told, runs):
    """MLflow's own alias says what the runs say."""
    promoted = [run for run in runs if run["state"] == "RUN_STATE_PROMOTED"]
    [database] = (told.repo / "data" / "pipeline").glob("mlflow*.db")
    with closing(sqlite3.connect(database)) as connection:
        aliases = dict(
            connection.execute("SELECT alias, version FROM registered_model_aliases").fetchall()
        )
    assert str(aliases["champion"]) == promoted[-1]["model_version"]


def test_no_training_set_holds_what_was_not_known(told, runs):
    """Every example of a run's training set was labelled by the run's knowledge time."""
    for run in runs:
        manifest = told.repo / "data" / run["manifest_uri"]
        table = pq.read_table(manifest.parent / "data.parquet", columns=["known_at"])
        newest = max(table["known_at"].to_pylist())
        assert newest <= datetime.fromisoformat(run["as_of"])


def test_every_request_is_logged_once(told):
    """The served log holds each request of the sample once, predicted by a known version."""
    served = ds.dataset(told.repo / "data" / "served" / "late_arrival").to_table()
    assert len(set(served["request_id"].to_pylist())) == len(served)
    assert len(served) == sum(row["rows"] for row in told.rows)
    assert served["prediction"].null_count == 0
    assert served["contract"].unique().to_pylist() == [
        json.loads(steadfeast("store", "contract", "late_arrival", "--json", cwd=told.repo))[
            "sha256"
        ]
    ]


def test_the_tables_auc_is_that_of_what_was_served(told):
    """Counted here from the raw examples, by request."""
    served = ds.dataset(told.repo / "data" / "served" / "late_arrival").to_table(
        columns=["request_id", "request_time", "prediction"]
    )
    examples = pq.read_table(
        told.repo / "data" / "sources" / "examples.parquet",
        columns=["request_id", "late", "known_at"],
    )
    end = max(served["request_time"].to_pylist())
    rows = [
        row
        for row in served.join(examples, "request_id", join_type="inner").to_pylist()
        if row["late"] is not None and row["known_at"] <= end
    ]
    for month in told.rows:
        own = [
            row
            for row in rows
            if f"{row['request_time'] - timedelta(hours=5):%Y-%m}" == month["name"]
        ]
        expected = roc_auc_score([r["late"] for r in own], [r["prediction"] for r in own])
        assert month["auc_live"] == pytest.approx(expected, abs=2e-3)  # an hour of DST is off


def test_served_vectors_equal_their_replay(told):
    """The store's own audit, over everything that was served and everything that is stored."""
    report = json.loads(
        steadfeast("store", "audit", "late_arrival", "--json", cwd=told.repo, COLUMNS="200")
    )
    assert report["ok"] is True


@pytest.fixture(scope="module")
def watched(told, service_binary, tmp_path_factory):
    """A Prometheus on what `make up` runs, with the rules; some requests have been served."""
    binary = service_binary("prometheus")
    daemon, (grpc_address, http) = free_addresses(3), free_addresses(2)
    with (
        servers(told.repo, daemon, at_rest=True),
        edge(told.repo, [grpc_address, http]),
        scraping(
            binary, f"http://{daemon[0]}", tmp_path_factory.mktemp("prometheus"), others=[http]
        ) as prometheus,
    ):
        rows = ds.dataset(told.repo / "data" / "served" / "late_arrival").head(2).to_pylist()
        entities = {name: [row[name] for row in rows] for name in REQUEST_COLUMNS}
        body = json.dumps({"feature_service": "late_arrival", "entities": entities}, default=str)
        request = urllib.request.Request(f"http://{http}/get-online-features", body.encode())
        deadline = time.monotonic() + 100
        audited = f"{AUDIT_AT} and on (monitor) {AUDIT_CELLS}"
        served = "steadfeast_serving_requests_total > 2"
        while not (prometheus.query(audited) and prometheus.query(served)):
            assert time.monotonic() < deadline
            urllib.request.urlopen(request, timeout=30).close()  # noqa: S310
            time.sleep(0.3)
        yield prometheus


@pytest.mark.service("prometheus")
def test_every_panel_has_data_on_the_demos_prometheus(watched):
    """For every value of every variable; what is empty is so for want of a metric of `SPARSE`.

    A feature whose data are broken at the end of the replay has a level and no ratio.
    """
    levels = watched.query(f"{DRIFT_LEVEL} == 3")
    broken = {one["metric"]["feature"] for one in levels}
    asked = panels(watched)
    empty = {one for one in asked if not one.answered(watched)}
    sparse = {*SPARSE, *NOBODY, "ALERTS"}
    wrong = {
        f"{one.where}: {one.expr}"
        for one in empty
        if not one.missing(watched) & sparse
        and not (
            one.missing(watched) == {DRIFT_RATIO} and any(f'"{b}"' in one.expr for b in broken)
        )
    }
    assert not wrong
    assert len(asked) > len(empty) > 0


@pytest.mark.service("prometheus")
def test_every_rule_finds_what_it_reads(watched):
    """Prometheus judges each; a rule that reads a series that nobody exports would never fire."""
    judged = [rule for group in watched.get("rules")["groups"] for rule in group["rules"]]
    assert {(rule["name"], rule["health"]) for rule in judged} == {
        (one.where, "ok") for one in rules()
    }
    missing = {(one.where, name) for one in rules() for name in one.missing(watched)}
    assert {name for _, name in missing} <= set(SPARSE)
    speaking = {alert["labels"]["alertname"] for alert in watched.get("alerts")["alerts"]}
    assert speaking <= OF_THE_DATA


def test_nothing_is_left_running(told):
    """No process has the demo's folder on its command line."""
    listed = subprocess.run(["ps", "axo", "args"], capture_output=True, text=True, check=True)
    assert str(told.repo) not in listed.stdout


def test_up_without_state_says_what_to_do(tmp_path):
    """`make up` before `make demo` is one message and exit code 2."""
    done = subprocess.run(
        [sys.executable, "-m", "demo", "--repo", str(tmp_path), "--up"],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "run: make demo" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_utc_is_what_the_demo_counts_in(told):
    """Request times are full hours in UTC."""
    served = ds.dataset(told.repo / "data" / "served" / "late_arrival").to_table(
        columns=["request_time"]
    )
    times = set(served["request_time"].to_pylist())
    assert all(t.tzinfo is not None and t.astimezone(UTC).minute == 0 for t in times)
