"""What MLflow's own client and its page show of a run, from a file and from a server."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest
import sklearn
from mlflow.data import get_source
from mlflow.models import get_model_info
from sklearn.metrics import roc_auc_score

from steadfeast import TrainingSet
from steadfeast.pipeline.training import RunCancelledError, RunInterruptedError
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb
from support.mlflow_server import mlflow_server
from support.shop_pipeline import Pipeline
from support.shop_world import MODEL, at, configure, trigger


def run_by(pipeline: Pipeline, name: str, day: float = 40) -> pb.Run:
    run, _ = pipeline.queue.accept(trigger(at(day)), asked_by=name)
    pipeline.retrain(pipeline.queue.claim(), lambda: None)
    return pipeline.queue.get(run.run_id)


def only_run(pipeline: Pipeline) -> mlflow.entities.Run:
    client = pipeline.registry.runs.client
    (found,) = client.search_runs([client.get_experiment_by_name(MODEL).experiment_id])
    return found


def check(pipeline: Pipeline, uri: str, ended: pb.Run, folder: Path) -> mlflow.entities.Run:
    """Compare what MLflow's client reads with what the run itself keeps."""
    assert ended.state == pb.RUN_STATE_PROMOTED, ended.reason
    client = mlflow.MlflowClient(tracking_uri=uri)
    run = client.get_run(client.get_model_version_by_alias(MODEL, "champion").run_id)
    training = TrainingSet.load(pipeline.place(ended.manifest_uri))
    check_origin(run, ended)
    check_data_set(run, training)
    check_figures(client, run, pipeline, ended, training)
    check_artifacts(client, run, training, folder)
    check_description(ended, training, folder)
    return run


def check_origin(run: mlflow.entities.Run, ended: pb.Run) -> None:
    tags, params = run.data.tags, run.data.params
    assert run.info.status == "FINISHED"
    assert run.info.end_time > run.info.start_time
    assert run.info.run_name == ended.run_id
    assert tags["mlflow.user"] == "ann"
    assert tags["steadfeast.cause"] == "drift"
    assert tags["steadfeast.cause.policy"] == "sale"
    assert tags["steadfeast.cause.summary"] == "x drifted"
    assert tags["steadfeast.contract"] == ended.contract
    assert tags["steadfeast.outcome"] == "promoted"
    assert json.loads(tags["steadfeast.platform"])["python"] == platform.python_version()
    assert params["estimator"] == "Pipeline"
    assert params["estimator.histgradientboostingclassifier__max_iter"] == "20"
    assert params["config.holdout"] == "P7D"
    assert params["config.recipe"] == "train:fit"


def check_data_set(run: mlflow.entities.Run, training: TrainingSet) -> None:
    (given,) = run.inputs.dataset_inputs
    assert given.dataset.name == training.manifest.service
    assert given.dataset.digest == training.manifest.id
    assert {tag.key: tag.value for tag in given.tags} == {"mlflow.data.context": "training"}
    assert json.loads(given.dataset.profile)["num_rows"] == training.table.num_rows
    columns = json.loads(given.dataset.schema)["mlflow_colspec"]
    assert {"name": "visits", "type": "long", "required": False} in columns
    manifest = Path(get_source(given.dataset).load())
    assert json.loads(manifest.read_text())["id"] == training.manifest.id


def check_figures(client, run, pipeline, ended, training) -> None:
    """By slice and over time, against scikit-learn on the predictions that the run has kept."""
    scored = pq.read_table(pipeline.place(ended.scored_uri)).to_pandas()
    held = scored.held_out.to_numpy()
    mood = training.table["mood"].to_pandas().to_numpy()[held]
    truth, said = scored.sold.to_numpy()[held], scored.prediction.to_numpy()[held]
    assert run.data.metrics["roc_auc"] == pytest.approx(roc_auc_score(truth, said))
    for value in ("good", "bad"):
        expected = roc_auc_score(truth[mood == value], said[mood == value])
        assert run.data.metrics[f"roc_auc/mood/{value}"] == pytest.approx(expected)
    order = np.argsort(scored.event_timestamp.to_numpy()[held], kind="stable")
    history = client.get_metric_history(run.info.run_id, "roc_auc/over_time")
    expected = [roc_auc_score(truth[part], said[part]) for part in np.array_split(order, 2)]
    steps = [one.value for one in sorted(history, key=lambda one: one.step)]
    assert steps == pytest.approx(expected)


def check_artifacts(client, run, training: TrainingSet, folder: Path) -> None:
    names = {one.path for one in client.list_artifacts(run.info.run_id)}
    assert names >= {
        "report.html", "manifest.json", "feature_importance.json", "environment.json", "plots",
    }  # fmt: skip
    got = Path(client.download_artifacts(run.info.run_id, "", str(folder)))
    plots = {path.name: path.read_bytes()[:4] for path in (got / "plots").iterdir()}
    assert plots == dict.fromkeys(("feature_importance.png", "roc_auc_over_time.png"), b"\x89PNG")
    assert json.loads((got / "manifest.json").read_text())["id"] == training.manifest.id
    assert set(json.loads((got / "feature_importance.json").read_text())) == {"x", "visits", "mood"}
    libraries = json.loads((got / "environment.json").read_text())["libraries"]
    assert libraries["scikit-learn"] == sklearn.__version__
    for name in ("duckdb", "mlflow", "googleapis-common-protos"):
        assert libraries[name] == version(name)
    assert "mypy" not in libraries  # installed, and not loaded
    assert f"mlflow=={version('mlflow')}\n" in (got / "model" / "requirements.txt").read_text()
    assert "roc_auc" in (got / "report.html").read_text()


def check_description(ended: pb.Run, training: TrainingSet, folder: Path) -> None:
    """Signature and example, by MLflow's own reader; the tracking URI is in the environment."""
    info = get_model_info(f"models:/{MODEL}/{ended.model_version}")
    assert info.signature.inputs.input_names() == ["x", "visits", "mood"]
    assert [str(kind) for kind in info.signature.inputs.input_types()] == [
        "DataType.double", "DataType.double", "DataType.string",
    ]  # fmt: skip
    assert info.signature.outputs.input_names() == ["prediction"]
    example = json.loads((folder / "model" / "input_example.json").read_text())
    assert example["columns"] == ["x", "visits", "mood"]
    visits = np.median(training.table["visits"].to_numpy())
    assert example["data"][0][1] == pytest.approx(visits, abs=0.5)


def commit(folder: Path, *names: str) -> str:
    """Commit files of a folder, a Git repository from then on; return the commit."""
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    for words in (("init", "-q"), ("add", *names), ("commit", "-qm", "start")):
        subprocess.run(["git", "-C", folder, *identity, *words], check=True)
    head = ["git", "-C", folder, "rev-parse", "HEAD"]
    return subprocess.run(head, check=True, capture_output=True, text=True).stdout.strip()


def test_the_file_holds_what_users_of_mlflow_look_for(shops, monkeypatch):
    uri = f"sqlite:///{shops}/data/pipeline/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    pipeline = Pipeline(configure(shops, slices="[mood]", window="all"))
    (shops / ".gitignore").write_text("data/\n__pycache__/\n")
    head = commit(shops, ".")
    run = check(pipeline, uri, run_by(pipeline, "ann"), shops)
    assert run.data.tags["mlflow.source.git.commit"] == head
    assert run.data.tags["mlflow.source.git.dirty"] == "false"
    (shops / "notes.txt").write_text("not committed")
    later = run_by(pipeline, "ann", day=42)
    client = pipeline.registry.runs.client
    run = client.get_run(client.get_model_version(MODEL, later.model_version).run_id)
    assert run.data.tags["mlflow.source.git.dirty"] == "true"
    pipeline.queue.close()


@pytest.mark.service("chromium")
def test_a_server_holds_the_same_and_its_page_shows_it(
    shops, tmp_path, free_port, service_binary, monkeypatch
):
    """Model files too go over HTTP, and come back; Chromium opens the run's page."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415

    folder = tmp_path / "server"
    folder.mkdir()
    with mlflow_server(folder, free_port()) as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        path = configure(shops, slices="[mood]", window="all")
        text = path.read_text()
        path.write_text(text.replace("  grpc:", f"  tracking_uri: {url}\n  grpc:"))
        pipeline = Pipeline(path)
        ended = run_by(pipeline, "ann")
        run = check(pipeline, url, ended, shops)
        training = TrainingSet.load(pipeline.place(ended.manifest_uri))
        champion = pipeline.registry.champion(MODEL)
        assert np.isfinite(champion.predict(training.table)).all()
        pipeline.queue.close()
        with sync_playwright() as play:
            browser = play.chromium.launch(
                executable_path=str(service_binary("chromium")),
                args=["--no-sandbox", "--disable-gpu"],
            )
            try:
                page = browser.new_page(viewport={"width": 1600, "height": 2400})
                page.goto(f"{url}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}")
                for shown in ("ann", "config.holdout", "roc_auc", training.manifest.id):
                    page.get_by_text(shown, exact=False).first.wait_for()
            finally:
                browser.close()


def test_a_run_that_is_told_twice_says_the_same_once(pipeline, monkeypatch):
    """Cut off after MLflow was told and before the version is there."""

    class CutOff(BaseException):
        pass

    def cut_off(*_: object) -> None:
        raise CutOff

    run = pipeline.accept(at(40))
    claimed = pipeline.queue.claim()
    with monkeypatch.context() as patch:
        patch.setattr(type(pipeline.registry), "register", cut_off)
        with pytest.raises(CutOff):
            pipeline.retrain(claimed, lambda: None)
    assert only_run(pipeline).info.status == "RUNNING"
    pipeline.retrain(pipeline.queue.claim(), lambda: None)
    found = only_run(pipeline)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == run.run_id
    assert len(found.inputs.dataset_inputs) == 1
    history = pipeline.registry.runs.client.get_metric_history(
        found.info.run_id, "roc_auc/over_time"
    )
    steps = [one.step for one in history]
    assert len(steps) == len(set(steps)) > 1


def test_a_run_whose_examples_are_refused_has_its_data_set_and_no_model(shops):
    pipeline = Pipeline(configure(shops, min_rows=5000))
    ended = run_by(pipeline, "ann")
    assert ended.state == pb.RUN_STATE_REFUSED
    found = only_run(pipeline)
    assert (found.info.status, found.data.tags["steadfeast.outcome"]) == ("FINISHED", "refused")
    assert found.data.tags["steadfeast.refused_by"] == "holdout_rows"
    assert found.data.params["config.min_rows"] == "5000"
    assert len(found.inputs.dataset_inputs) == 1
    client = pipeline.registry.runs.client
    names = {one.path for one in client.list_artifacts(found.info.run_id)}
    assert {"report.html", "manifest.json", "gates.json"} <= names
    assert not names & {"model", "feature_importance.json"}
    pipeline.queue.close()


def test_a_run_that_fails_is_shown_as_such(shops):
    pipeline = Pipeline(configure(shops, recipe="train:broken"))
    pipeline.accept(at(40))
    with pytest.raises(ZeroDivisionError):
        pipeline.retrain(pipeline.queue.claim(), lambda: None)
    found = only_run(pipeline)
    assert (found.info.status, found.data.tags["steadfeast.outcome"]) == ("FAILED", "failed")
    assert "no shop is open" in found.data.tags["mlflow.note.content"]
    assert found.data.tags["steadfeast.cause"] == "drift"
    pipeline.queue.close()


def test_a_run_that_is_cancelled_is_killed_and_one_that_is_interrupted_goes_on(pipeline):
    def stop_by(error: Exception) -> None:
        def check() -> None:
            raise error

        with pytest.raises(type(error)):
            pipeline.retrain(claimed, check)

    pipeline.accept(at(40))
    claimed = pipeline.queue.claim()
    stop_by(RunInterruptedError())
    assert only_run(pipeline).info.status == "RUNNING"
    stop_by(RunCancelledError("not today"))
    found = only_run(pipeline)
    assert (found.info.status, found.data.tags["steadfeast.outcome"]) == ("KILLED", "cancelled")
    assert "not today" in found.data.tags["mlflow.note.content"]


def test_names_that_mlflow_cannot_have_are_written_as_near_as_can_be(shops):
    """Values of a slice that are empty, a path, null, or the same after cleaning."""
    names = ["", ".", "../up", "a/b", "a?b", "n" * 400]
    path = shops / "data" / "examples.parquet"
    table = pq.read_table(path)
    texts = [None if row % 8 == 7 else names[row % 8 % 6] for row in range(table.num_rows)]
    pq.write_table(table.append_column("odd", [texts]), path)
    pipeline = Pipeline(configure(shops, slices="[odd, nowhere]", window="all", min_rows=20))
    ended = run_by(pipeline, "ann")
    assert ended.state == pb.RUN_STATE_PROMOTED, ended.reason
    metrics = only_run(pipeline).data.metrics
    found = {name.removeprefix("roc_auc/odd/")[:9] for name in metrics if "/odd/" in name}
    assert found == {"_", "_.", ".._up", "a_b", "a_b 2", "n" * 9, "_null_"}
    pipeline.queue.close()
