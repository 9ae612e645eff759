"""Two versions side by side, over the command line, on the shops' world."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from steadfeast import featurestore
from steadfeast.featurestore import store_cli
from steadfeast.featurestore.errors import NotFoundError, UserError
from steadfeast.pipeline import cli
from steadfeast.pipeline.reports import ComparisonError
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb
from support import shop_world as world
from support.shop_pipeline import Pipeline
from support.shop_world import MODEL, at


@pytest.fixture(scope="module")
def shops(applied, tmp_path_factory):
    """Versions 1 (day 40) and 2 (day 80, of other features), and a run that failed; read only."""
    folder = tmp_path_factory.mktemp("compare") / "shops"
    shutil.copytree(applied, folder)
    pipeline = Pipeline(folder / "steadfeast.yaml").with_config(window="all")
    first = pipeline.run(at(40))
    failed = pipeline.queue.accept(world.trigger(at(41)))[0]
    pipeline.queue.cancel(failed.run_id, "not needed")
    features = folder / "features.py"
    text = features.read_text()
    features.write_text(text.replace("ttl=timedelta(days=3)", "ttl=timedelta(days=4)"))
    with featurestore.Store.open(pipeline.path) as store:
        store.apply()
    gates = "[{metric: f1, at_least: 0.1}]"
    pipeline = pipeline.with_config(recipe="train:searched", window="all", gates=gates)
    second = pipeline.run(at(80))
    assert second.state == pb.RUN_STATE_PROMOTED, second.reason
    pipeline.queue.close()
    return pipeline, first, second, failed


def compare(shops, *words):
    return CliRunner().invoke(cli.app, ["compare", "--config", str(shops[0].path), *words])


def test_what_serves_is_compared_on_rows_that_are_new_to_both(shops, tmp_path):
    """Against each model, asked by hand for the same rows."""
    pipeline, first, second, _ = shops
    page = tmp_path / "compared.html"
    done = compare(shops, "1", second.run_id[:8], "--json", "--html", str(page))
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (said["a"]["run"], said["b"]["version"]) == (first.run_id, "2")
    compared = said["comparison"]
    assert compared["fits"] == ["serving", "serving"]
    rows = pq.read_table(pipeline.path.parent / "data/examples.parquet")
    times = rows["event_timestamp"].to_pandas()
    rows = rows.filter(pa.array((times > at(80) - (at(1) - at(0)) / 4).to_numpy()))
    assert 0.95 * rows.num_rows < compared["rows"] <= rows.num_rows
    by_name = {one["metric"]: one for one in compared["measures"]}
    auc = by_name["roc_auc"]
    assert auc["a"] < 0.3  # the world turned between the two
    assert auc["b"] > 0.7
    assert auc["difference"] == pytest.approx(auc["b"] - auc["a"])
    assert 0 < auc["low"] < auc["difference"] < auc["high"]
    assert (auc["verdict"], by_name["f1"]["verdict"]) == ("better", "better")
    text = page.read_text("utf-8")
    assert "Content-Security-Policy" in text
    assert f"{auc['b']:.4f}" in text

    differs = said["differences"]
    assert any(one["what"] == "training set" for one in differs["data"])
    assert any("ttl" in one["what"] for one in differs["contract"][1:])
    recipe = {"what": "config.recipe", "a": "train:fit", "b": "train:searched"}
    assert recipe in differs["parameters"]
    assert {"what": "recipe.rate", "a": "", "b": "0.125"} in differs["parameters"]
    assert differs["code"] == [{"what": "recipe", "a": "train:fit", "b": "train:searched"}]
    assert all("record" not in one["what"] for one in differs["libraries"])


def test_the_other_way_round_and_for_a_person(shops):
    done = compare(shops, "champion", "1")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0] == f"{MODEL}: version 2 and version 1"
    (auc,) = (line for line in lines if line.startswith("roc_auc"))
    assert auc.split()[-1] == "worse"
    assert "  recipe: train:searched -> train:fit" in lines


def test_on_a_training_set_the_newer_model_answers_by_its_judged_fit(shops):
    """Its hold-out is new to the judged fit alone; the rows are those of a set that replays."""
    pipeline, _, second, _ = shops
    done = compare(shops, "1", "2", "--on", second.manifest_uri.split("/")[-2], "--json")
    assert done.exit_code == 0, done.output
    compared = json.loads(done.stdout)["comparison"]
    assert compared["fits"] == ["serving", "judged"]
    scored = pq.read_table(pipeline.place(second.scored_uri))
    held = scored.filter(scored["held_out"])
    # Rows whose labels were not all known are newer than the hold-out, and left out.
    newest = np.sort(held["event_timestamp"].to_numpy())[: compared["rows"]][-1]
    held = held.filter(pa.array(held["event_timestamp"].to_numpy() <= newest))
    auc = roc_auc_score(held["sold"].to_numpy(), held["prediction"].to_numpy())
    (found,) = (one for one in compared["measures"] if one["metric"] == "roc_auc")
    assert found["b"] == pytest.approx(auc)


def test_where_no_rows_are_new_to_both_what_differs_is_shown_all_the_same(shops):
    early = f"{at(40):%Y-%m-%d}"
    done = compare(shops, "1", "2", "--as-of", early, "--json")
    assert done.exit_code == 1
    said = json.loads(done.stdout)
    assert said["comparison"] is None
    assert "0 labelled rows are new to both version 1 and version 2" in said["problem"]
    assert said["differences"]["parameters"]
    assert "not compared: only 0" in compare(shops, "1", "2", "--as-of", early).stdout


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        (["1", "9"], NotFoundError, "no version of model sale '9'; did you mean"),
        (["1", "1"], ComparisonError, "1 and 1 are both version 1 of sale"),
        (["1", "abcdef"], NotFoundError, "no run or version 'abcdef'"),
        (["1", "challenger"], NotFoundError, "no alias of model sale 'challenger'"),
        (["1", "2", "--on", "nowhere"], NotFoundError, "no training set 'nowhere'; did you mean"),
        (["1", "2", "--model", "sales"], NotFoundError, "no model 'sales'; did you mean sale?"),
        (["1", "2", "--html", "/proc/none/x.html"], UserError, "/proc/none/x.html: cannot be"),
    ],
)
def test_what_cannot_be_compared_is_named(shops, words, kind, said):
    done = compare(shops, *words)
    assert isinstance(done.exception, kind), done.output
    assert said in str(done.exception)


def test_a_run_without_a_version_says_why_it_has_none(shops):
    done = compare(shops, shops[3].run_id, "1")
    assert str(done.exception) == f"run {shops[3].run_id} has registered no version: not needed"


def test_runs_side_by_side_as_a_page(shops, tmp_path):
    page = tmp_path / "runs.html"
    words = ["runs", "--config", str(shops[0].path), "--html", str(page)]
    assert CliRunner().invoke(cli.app, words).exit_code == 0
    text = page.read_text("utf-8")
    for run in shops[1:]:
        assert run.run_id in text
    assert "<th>roc_auc</th>" in text


def test_a_card_has_what_is_known_and_names_what_is_not(shops, tmp_path):
    pipeline, _, second, _ = shops
    page = tmp_path / "card.html"
    words = ["card", "2", "--config", str(pipeline.path), "--json", "--html", str(page)]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["version"]["run"] == second.run_id
    assert said["version"]["aliases"] == ["champion"]
    assert said["use"]["description"] == "Settings that are found the first time, and only then."
    (feature,) = said["features"]
    assert (feature["feature"], feature["view"], feature["type"]) == ("x", "sales", "double")
    auc = next(one for one in said["metrics"] if one["measure"] == "roc_auc")
    assert auc["value"] == pytest.approx(second.metrics["roc_auc"])
    assert auc["low"] < auc["value"] < auc["high"]
    assert [one["gate"] for one in said["gates"]] == [gate.name for gate in second.gates]
    assert [one["cause"] for one in said["promotions"]] == ["drift"]
    assert said["importance"].keys() == {"x"}
    assert said["notes"] == ["Its licence: pipeline.models.sale.licence is not set."]
    text = page.read_text("utf-8")
    assert "Settings that are found" in text
    assert f"{auc['low']:.5g}" in text
    shown = CliRunner().invoke(cli.app, [*words[:4], "--model", MODEL]).stdout
    assert f"{auc['high']:.4f}" in shown
    assert "licence is not set" in shown


def test_features_are_found_with_who_reads_them(shops):
    def found(*words):
        every = ["features", *words, "--config", str(shops[0].path)]
        return CliRunner().invoke(store_cli.app, every)

    (visits,) = json.loads(found("VISIT", "--json").stdout)
    assert (visits["feature"], visits["view"], visits["type"]) == ("visits", "sales", "Int64")
    assert (visits["services"], visits["models"]) == (["sale"], [])
    assert [len(one) for one in visits["contracts"]] == [64]
    assert [line.split()[0] for line in found("sales").stdout.splitlines()] == [
        "feature", "mood", "visits", "x",
    ]  # fmt: skip
    assert "did you mean visits" in str(found("visist").exception)
