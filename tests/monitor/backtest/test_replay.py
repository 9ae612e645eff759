"""A backtest against the real daemon's own history, and against what was planted."""

import json
import os
import re
import shutil
import subprocess
import sys
from datetime import datetime, timedelta

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from steadfeast.monitor.backtest import promotions
from steadfeast.monitor.backtest import replay as backtest
from steadfeast.monitor.config.schema import load
from steadfeast.monitor.decisions.model import EpisodeKind
from steadfeast.pipeline.queue import RunQueue
from steadfeast.protos.steadfeast.v1 import monitor_pb2, pipeline_pb2
from support import monitor_world as world
from support.monitor_world import DAY, PER_DAY, START, TRAINED_DAYS

SERVED = START + TRAINED_DAYS * DAY
CALM, DRIFT = 10, 12
DRIFT_AT = SERVED + CALM * DAY
END = SERVED + (CALM + DRIFT) * DAY


@pytest.fixture(scope="module")
def lived(tmp_path_factory):
    """A world that a real daemon has watched to its end, with a pipeline that promotes."""
    folder = tmp_path_factory.mktemp("lived")
    manifest = world.train(folder, "first", START, START + 1000 * DAY)
    pipeline = world.Pipeline(folder, drift_at=DRIFT_AT)
    pipeline.first(manifest)
    server = world.PipelineServer(pipeline).start()
    daemon = world.Daemon(folder, server.port, extra="      segments: [kind]\n")
    world.serve(folder, SERVED, CALM, DRIFT_AT)
    daemon.start()
    # Day by day, so that a promotion comes before the bucket that follows its trigger.
    for day in range(CALM, CALM + DRIFT + 1):
        version = pipeline.runs()[-1].model_version if pipeline.runs() else "1"
        world.serve(folder, SERVED + day * DAY, 1, DRIFT_AT, version=version)
        daemon.idle(SERVED + (day + 1) * DAY)
    yield folder, daemon, manifest
    daemon.stop()
    server.stop()


def told(daemon):
    """Episodes as the daemon's alerts tell of them: (opening, what it said)."""
    answer = daemon.stub.ListAlerts(monitor_pb2.ListAlertsRequest(limit=1000), timeout=10)
    return sorted(
        (one.at.ToSeconds(), one.summary)
        for one in answer.alerts
        if one.kind == monitor_pb2.ALERT_KIND_EPISODE and not one.resolved
    )


def replay(folder, *arguments):
    command = "import sys; from steadfeast.featurestore.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", command, "monitor", "backtest", "--config",
         str(folder / "steadfeast.yaml"), "--from", f"{SERVED:%Y-%m-%d}", "--to",
         f"{END:%Y-%m-%d}", *arguments],
        capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip


def test_it_raises_what_the_daemon_raised_and_leaves_it_alone(lived):
    """While the daemon holds its ledger; promotions are followed as they happened."""
    folder, daemon, _ = lived
    calls = daemon.stub.GetStatus(monitor_pb2.GetStatusRequest(), timeout=10)
    done = replay(folder, "--json")
    assert done.returncode == 0, done.stderr
    [found] = json.loads(done.stdout).values()
    alarms = sorted((one["opened_at"], one["summary"]) for one in found["alarms"])
    live = [(at, summary) for at, summary in told(daemon) if at <= END.timestamp()]
    assert [(datetime.fromisoformat(at).timestamp(), summary) for at, summary in alarms] == live
    assert live
    assert found["promotions"][0]["version"] == "1"
    assert len(found["promotions"]) > 1
    assert found["alarms"][0]["fires"] is True
    assert {one["value"] for one in found["segments"]} == {"a", "b", "c"}
    after = daemon.stub.GetStatus(monitor_pb2.GetStatusRequest(), timeout=10)
    assert after == calls
    assert daemon.alive()


def test_a_model_left_alone_decays_and_the_alarm_is_timed(lived):
    """Onset, worst drop and lead, counted here from the files with scikit-learn."""
    folder, _, manifest = lived
    config, store = load(folder / "steadfeast.yaml")
    settings = backtest.chosen(config, "prices", {"reference": manifest})
    monitor = settings.monitors["prices"]
    [found] = backtest.run(settings, store.data, SERVED, END, {})
    [drift] = [one for one in found.alarms if one.episode.kind is EpisodeKind.DRIFT]
    assert drift.episode.features[0].feature == "x"
    assert timedelta(0) <= drift.delay <= 2 * DAY
    assert drift.episode.opened_at - DRIFT_AT <= 3 * DAY
    assert found.decays == ()  # the training set alone does not say what to expect
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        for past in found.windows:
            rows = con.execute(
                "SELECT label, prediction FROM read_parquet($served) JOIN read_parquet($labels) "
                "USING (request_id) WHERE request_time >= $start AND request_time < $end "
                "AND known_at <= $end",
                {
                    "served": str(folder / "data/served/prices/*.parquet"),
                    "labels": str(folder / "data/labels/prices/*.parquet"),
                    "start": past.window.end - monitor.window,
                    "end": past.window.end,
                },
            ).fetchall()
            truth = roc_auc_score([y for y, _ in rows], [p for _, p in rows])
            assert past.performance["roc_auc"] == pytest.approx(truth)
    expected = [{"roc_auc": 0.9}] * len(found.windows)
    episodes = [one.episode for one in found.alarms]
    [decay] = backtest.decays_of(found.windows, expected, episodes, monitor)
    fallen = [p.window.end for p in found.windows if 0.9 - p.performance["roc_auc"] > 0.1]
    assert (decay.start, decay.end) == (fallen[0], fallen[-1])
    worst = min(p.performance["roc_auc"] for p in found.windows)
    assert decay.worst == pytest.approx((0.9 - worst) / 0.1)
    assert decay.alarm == drift.episode.opened_at
    assert decay.ahead == fallen[0] - drift.episode.opened_at
    ranked = {one.feature: one for one in found.ranked}
    assert ranked["x"].over > 5
    assert ranked["kind"].over == 0
    assert sum(bar.current for bar in ranked["x"].spread.bars) == pytest.approx(1)
    assert {one.column for one in found.monitor.segments} == {"kind"}
    assert sum(one.rows for one in found.monitor.segments) == 3 * PER_DAY


def test_the_page_is_one_file_that_shows_what_the_table_says(lived, tmp_path):
    folder, _, manifest = lived
    page = tmp_path / "backtest.html"
    done = replay(folder, "--reference", str(manifest), "--html", str(page))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert f"Drawn in {page}." in done.stdout.replace("\n", "")
    assert "drift" in done.stdout
    text = page.read_text(encoding="utf-8")
    assert "Content-Security-Policy" in text
    assert "<script" not in text
    assert '<th scope="row">kind a</th>' in text
    assert not re.search(r"(?:src|href)=\"(?!#)", text)
    assert text.count('<svg class="chart"') >= 4  # the figures of the model, and each feature
    assert "The current side of each distribution is the worst window." in text


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--scored", "x.parquet"], "goes with --reference"),
        (["--monitor", "price"], "prices"),
        (["--reference", "nowhere/manifest.json"], "nowhere/manifest.json"),
        (["--to", "2020-01-01"], "must be after --from"),
    ],
)
def test_what_cannot_be_done_is_said(lived, arguments, problem):
    done = replay(lived[0], *arguments)
    assert done.returncode == 2
    assert problem in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_without_rows_or_a_pipeline_it_says_what_to_do(lived, tmp_path):
    folder, _, manifest = lived
    config, store = load(folder / "steadfeast.yaml")
    settings = backtest.chosen(config, "", {"reference": manifest})
    with pytest.raises(backtest.NoHistoryError, match="nothing was served"):
        backtest.run(settings, store.data, START - 99 * DAY, START - 90 * DAY, {})
    gone = config.model_copy(
        update={"pipelines": load(world.configure(tmp_path, pipeline=1))[0].pipelines}
    )
    with pytest.raises(backtest.NoHistoryError, match="--reference"):
        promotions.promoted(folder / "steadfeast.yaml", gone, "prices")


def test_without_a_running_pipeline_its_state_folder_is_read(lived, tmp_path):
    """A queue as the pipeline keeps one, of the runs that a running one tells of."""
    folder, _, _ = lived
    path = folder / "steadfeast.yaml"
    live = promotions.promoted(path, load(path)[0], "prices")
    assert len(live) > 1
    with RunQueue(tmp_path / "pipeline" / "runs.db") as queue:
        for run in live:
            request = pipeline_pb2.TriggerRetrainRequest(request_id=run.request_id, model=run.model)
            request.as_of.CopyFrom(run.as_of)
            queue.accept(request, run)
        refused = pipeline_pb2.TriggerRetrainRequest(request_id="refused", model=live[0].model)
        queue.accept(refused, pipeline_pb2.Run(state=pipeline_pb2.RUN_STATE_REFUSED))
    offline = folder / "offline.yaml"
    text = re.sub(r"127\.0\.0\.1:[1-9]\d*", "127.0.0.1:1", path.read_text())
    assert "127.0.0.1:1" in text
    offline.write_text(
        f"{text}\npipeline:\n  state: {tmp_path / 'pipeline'}\n  models:\n"
        f"    price: {{service: prices, recipe: 'm:f', entities: e.parquet, label: sold}}\n"
    )
    found = promotions.promoted(offline, load(offline)[0], "prices")
    told = [(run.manifest_uri, run.model_version, run.as_of.seconds) for run in found]
    assert told == [(run.manifest_uri, run.model_version, run.as_of.seconds) for run in live]
    done = replay(folder, "--config", str(offline), "--json")
    assert done.returncode == 0, done.stderr
    [answer] = json.loads(done.stdout).values()
    assert {one["version"] for one in answer["promotions"]} == {run.model_version for run in live}
    shutil.rmtree(tmp_path / "pipeline")
    with pytest.raises(backtest.NoHistoryError, match="state folder has no promoted run"):
        promotions.promoted(offline, load(offline)[0], "prices")


def test_labels_that_take_days_are_waited_for_and_the_estimate_is_scored_then(lived, tmp_path):
    """The figure of each window is that of the window two days before; its estimate came first."""
    folder, _, manifest = lived
    table = pq.read_table(manifest.with_name("data.parquet"))
    said = 1 / (1 + np.exp(-3 * table["x"].to_numpy()))
    scored = tmp_path / "scored.parquet"
    pq.write_table(table.append_column("prediction", pa.array(said)), scored)
    config, store = load(folder / "steadfeast.yaml")
    found = {}
    for days in (0, 2):
        performance = config.monitors["prices"].performance.model_copy(
            update={"label_delay": days * DAY}
        )
        update = {"reference": manifest, "scored": scored, "performance": performance}
        settings = backtest.chosen(config, "prices", update)
        [found[days]] = backtest.run(settings, store.data, SERVED, END, {})
    at_once = {past.window.end: past for past in found[0].windows}
    delayed = [past for past in found[2].windows if past.measured_until is not None]
    assert len(delayed) >= CALM + DRIFT - 3
    for past in delayed:
        assert past.measured_until == past.window.end - 2 * DAY
        # By then the labels of its last hour are in, too.
        before = at_once[past.measured_until].performance
        for name in ("roc_auc", "accuracy", "log_loss"):
            assert past.performance[name] == pytest.approx(before[name], abs=0.05)
        assert past.estimated == at_once[past.window.end].estimated
    last = delayed[-1]
    thought, known = at_once[last.measured_until].estimated, last.performance
    errors = {name: value - known[name] for name, value in thought.items()}
    assert found[2].monitor.estimate_errors == errors
    # While nothing has changed the estimate is good; of a changed meaning it knows nothing.
    calm = at_once[DRIFT_AT]
    assert calm.estimated["roc_auc"] == pytest.approx(calm.performance["roc_auc"], abs=0.04)
    assert min(past.performance["roc_auc"] for past in delayed) < 0.6
