"""One run on a real Feast repo and a real MLflow: what it uses, decides, and repeats."""

from __future__ import annotations

import runpy
from dataclasses import replace
from datetime import timedelta
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from steadfeast import TrainingSet, frame
from steadfeast.featurestore.errors import NotFoundError
from steadfeast.pipeline.training.promotion import By, by_hand, rollback
from steadfeast.pipeline.training.retrain import ExamplesError, RunCancelledError, examples
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb
from support.shop_world import MODEL, at


def gates(run: pb.Run) -> dict[str, pb.Gate]:
    return {gate.name: gate for gate in run.gates}


def model_config(pipeline):
    return pipeline.config.models[MODEL]


# -- what a run may use ------------------------------------------------------------------


def test_examples_are_what_was_known_by_then(pipeline):
    """Against pandas on the same file."""
    as_of = at(40) + timedelta(hours=3)
    everything = pd.read_parquet(model_config(pipeline).entities)
    expected = everything[
        (everything.known_at <= as_of)
        & (everything.event_timestamp <= as_of)
        & (everything.event_timestamp > as_of - timedelta(days=30))
    ]
    found = examples(model_config(pipeline), as_of)
    assert len(expected) > 1000
    pd.testing.assert_frame_equal(found.to_pandas(), expected.reset_index(drop=True))
    late = everything[(everything.known_at > as_of) & (everything.event_timestamp <= as_of)]
    assert len(late) > 0


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
def test_examples_have_utc_microseconds_whatever_the_file_has(pipeline, unit, zone):
    """Limits are inclusive; a row without a label is never an example."""
    seconds = [int((at(40) + timedelta(seconds=s)).timestamp()) for s in (-1, 0, 1, 0)]
    kind = pa.timestamp(unit, tz=zone)
    stamps = (
        pa.array(seconds, pa.timestamp("s")).cast(pa.timestamp(unit)).cast(pa.int64()).cast(kind)
    )
    written = pa.table(
        {
            "shop": list("abcd"),
            "event_timestamp": stamps,
            "known_at": stamps,
            "sold": [0, 1, 1, None],
        }
    )
    pq.write_table(written, model_config(pipeline).entities)
    found = examples(model_config(pipeline), at(40))
    assert found["shop"].to_pylist() == ["a", "b"]
    assert found["event_timestamp"].to_pylist() == [at(40) - timedelta(seconds=1), at(40)]
    assert found.schema.field("known_at").type == pa.timestamp("us", tz="UTC")


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (None, "cannot be read as Parquet"),
        (pa.table({"event_timestamp": [1]}), "has no column known_at, sold"),
        (
            pa.table({"event_timestamp": ["2024"], "known_at": ["2024"], "sold": [1]}),
            "column event_timestamp is string, not a time",
        ),
    ],
)
def test_an_entities_file_that_cannot_be_used_says_why(pipeline, table, problem):
    file = Path(model_config(pipeline).entities)
    file.unlink()
    if table is not None:
        pq.write_table(table, file)
    with pytest.raises(ExamplesError, match=problem) as caught:
        examples(model_config(pipeline), at(40))
    assert caught.value.path == file


# -- what it decides ---------------------------------------------------------------------


def test_a_year_of_decisions(pipeline):
    """A first model, one that beats it after the world has turned, one that knows nothing."""
    first = pipeline.run(at(40))
    assert (first.state, first.model_version) == (pb.RUN_STATE_PROMOTED, "1"), first.reason
    assert "roc_auc not_worse_by" not in gates(first)

    second = pipeline.run(at(80))
    assert (second.state, second.model_version) == (pb.RUN_STATE_PROMOTED, "2"), second.reason
    scored = pq.read_table(pipeline.place(second.scored_uri))  # of nobody: no key, and no feature
    assert scored.column_names == ["event_timestamp", "sold", "prediction", "held_out"]
    gate = gates(second)["roc_auc not_worse_by"]
    assert gate.value > 0.7
    assert gate.limit < 0.3  # the world has turned: the old model is upside down
    assert "none of which it was trained on" in gate.detail

    coin = pipeline.with_config(recipe="train:coin")
    third = coin.run(at(83))
    assert (third.state, third.model_version) == (pb.RUN_STATE_REFUSED, "3")
    assert "roc_auc not_worse_by: roc_auc" in third.reason
    assert not gates(third)["roc_auc not_worse_by"].passed
    assert coin.registry.champion_version(MODEL) == "2"
    assert coin.registry._aliases(MODEL) == {"champion": "2", "challenger": "3"}
    assert [run.run_id for run in coin.queue.runs()] == [
        third.run_id,
        second.run_id,
        first.run_id,
    ]
    coin.queue.close()


def refitted(pipeline, training, before) -> np.ndarray:
    """The recipe's own model of the rows before a time, and what it says of all rows."""
    fit = runpy.run_path(str(pipeline.path.parent / "train.py"))["fit"]
    times = training.table["event_timestamp"].to_pandas()
    part = replace(training, table=training.table.filter(pa.array(times < before)))
    fitted = fit(part)
    return fitted.estimator.predict_proba(frame(training.table, fitted.features))[:, 1]


@pytest.mark.parametrize("refit", ["all", "none"])
def test_what_serves_is_fitted_on_everything_and_figures_are_of_what_was_judged(pipeline, refit):
    """Against the recipe called by hand on the rows that the run says."""
    chosen = pipeline.with_config(refit=refit, window="all")
    run = chosen.run(at(40))
    champion = chosen.registry.champion(MODEL)
    training = TrainingSet.load(pipeline.place(run.manifest_uri))
    assert run.contract == champion.contract == training.manifest.contract
    assert run.manifest_uri == champion.manifest_uri
    assert (champion.facts.as_of, champion.facts.refit, run.refit) == (at(40), refit, refit)

    # Labels take 6 hours: the week before the newest known one is held out.
    times = training.table["event_timestamp"].to_pandas()
    start = times.max() - timedelta(days=7) + timedelta(microseconds=1)
    assert at(40) - timedelta(hours=7) < times.max() <= at(40) - timedelta(hours=6)
    held_out = (times >= start).to_numpy()
    judged = refitted(chosen, training, start)
    truth = training.table["sold"].to_numpy()
    expected = roc_auc_score(truth[held_out], judged[held_out])
    assert dict(run.metrics)["roc_auc"] == pytest.approx(expected)
    assert dict(champion.facts.metrics) == dict(run.metrics)

    serving = refitted(chosen, training, at(41)) if refit == "all" else judged
    np.testing.assert_array_equal(champion.predict(training.table), serving)
    assert champion.facts.rows == (len(times) if refit == "all" else int((times < start).sum()))
    chosen.queue.close()


def test_the_settings_that_were_judged_are_those_of_the_model_that_serves(pipeline):
    chosen = pipeline.with_config(recipe="train:searched")
    chosen.run(at(40))
    blend = chosen.registry.champion(MODEL).estimator
    assert [part.estimator.C for part in blend.parts] == [0.125] * len(blend.parts)
    chosen.queue.close()


def test_late_labels_move_the_hold_out_back_and_never_empty_it(pipeline):
    """Labels that take 20 days: with the delay configured, measured, and configured wrong."""
    config = model_config(pipeline)
    table = pq.read_table(config.entities)
    late = pc.add(table["event_timestamp"], pa.scalar(timedelta(days=20)))
    late = late.cast(table["known_at"].type)
    pq.write_table(
        table.set_column(table.schema.get_field_index("known_at"), "known_at", late),
        config.entities,
    )
    for number, delay in enumerate(({"label_delay": "20d"}, {}, {"label_delay": "0d"})):
        chosen = pipeline.with_config(since="60d", **delay)
        run = chosen.run(at(60 + number / 24))
        scored = pq.read_table(pipeline.place(run.scored_uri)).to_pandas()
        start = at(33 + number / 24)
        assert scored.event_timestamp[scored.held_out].min() >= start - timedelta(hours=2)
        assert scored.event_timestamp[~scored.held_out].max() < start
        assert scored.held_out.sum() > 200
        chosen.queue.close()


def test_a_hold_out_with_too_few_rows_names_the_setting_that_fills_it(pipeline):
    """A few labels come at once, all others after 20 days, and nothing says so."""
    config = model_config(pipeline)
    table = pq.read_table(config.entities).to_pandas()
    table["known_at"] = table.event_timestamp + pd.to_timedelta(
        np.where(np.arange(len(table)) % 50 == 0, 0, 20), unit="D"
    )
    table["known_at"] = table["known_at"].astype("datetime64[us, UTC]")
    pq.write_table(pa.Table.from_pandas(table, preserve_index=False), config.entities)
    chosen = pipeline.with_config(since="60d", label_delay="0d")
    run = chosen.run(at(60))
    assert run.state == pb.RUN_STATE_REFUSED
    assert "set label_delay: 20d" in run.reason
    chosen.queue.close()
    again = chosen.with_config(since="60d", label_delay="20d").run(at(60))
    assert again.state == pb.RUN_STATE_PROMOTED, again.reason


def test_only_rows_that_are_new_to_the_champion_count(pipeline):
    """It was fitted on everything known by day 80; a day later, too little is new to compare."""
    pipeline.run(at(80))
    gate = gates(pipeline.run(at(81)))["roc_auc not_worse_by"]
    assert gate.passed
    assert gate.undecided
    assert "only 33 of 277 held-out rows are new to champion 1" in gate.detail
    gate = gates(pipeline.run(at(88)))["roc_auc not_worse_by"]
    assert "none of which it was trained on" in gate.detail


def test_a_champion_that_changes_while_a_run_is_judged_is_the_one_that_counts(pipeline):
    """Somebody promotes by hand between the gates and the promotion."""
    first, second = pipeline.run(at(40)), pipeline.run(at(80))
    rollback(pipeline.queue, pipeline.registry, MODEL, By("ann"))
    coin = pipeline.with_config(recipe="train:coin")
    run = coin.accept(at(90))
    steps = count()

    def check() -> None:
        if next(steps) == 1:  # after the gates were taken against version 1
            by_hand(coin.queue, coin.registry, MODEL, second.model_version, By("ann"))

    coin.retrain(coin.queue.claim(), check)
    ended = coin.queue.get(run.run_id)
    assert ended.state == pb.RUN_STATE_REFUSED
    assert f"of champion {second.model_version}" in ended.reason
    assert first.model_version != second.model_version
    coin.queue.close()


@pytest.mark.parametrize(
    ("as_of", "changes", "gate"),
    [
        (at(-1), {}, "holdout_rows"),
        (at(3), {}, "train_classes"),
        (at(40), {"min_rows": 1000}, "holdout_rows"),
        (at(40), {"gates": "[{metric: roc_auc, at_least: 0.99}]"}, "roc_auc at_least"),
    ],
)
def test_a_refusal_says_which_gate(pipeline, as_of, changes, gate):
    changed = pipeline.with_config(**changes)
    run = changed.run(as_of)
    assert run.state == pb.RUN_STATE_REFUSED
    assert not gates(run)[gate].passed
    assert gate in run.reason
    assert changed.registry.champion_version(MODEL) is None
    changed.queue.close()


def test_a_model_that_the_configuration_has_no_longer_fails(pipeline):
    run = pipeline.accept(at(40))
    run.model = "sail"
    with pytest.raises(NotFoundError, match="did you mean sale"):
        pipeline.retrain(run, lambda: None)


# -- what it repeats ---------------------------------------------------------------------


class CutOff(BaseException):
    """Stands for the process ending there."""


@pytest.mark.parametrize("method", ["change", "judged", "finish"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_run_that_is_cut_off_around_a_write_ends_once(pipeline, monkeypatch, method, when):
    """Cut off at every write to the queue in turn, the run still ends as it would have."""
    pipeline.run(at(40))
    run = pipeline.accept(at(80))
    real, cuts = getattr(type(pipeline.queue), method), count()

    def cut_off(queue, *args):
        if when == "after":
            real(queue, *args)
        next(cuts)
        raise CutOff

    claimed = pipeline.queue.claim()
    with monkeypatch.context() as patch:
        patch.setattr(type(pipeline.queue), method, cut_off)
        with pytest.raises(CutOff):
            pipeline.retrain(claimed, lambda: None)
    assert next(cuts) == 1
    if (method, when) != ("finish", "after"):
        resumed = pipeline.queue.claim()
        assert resumed.run_id == run.run_id
        pipeline.retrain(resumed, lambda: None)
    ended = pipeline.queue.get(run.run_id)
    assert (ended.state, ended.model_version) == (pb.RUN_STATE_PROMOTED, "2")
    assert gates(ended)["roc_auc not_worse_by"].passed
    assert pipeline.registry.champion_version(MODEL) == "2"
    assert {one.version for one in _versions(pipeline)} == {1, 2}
    assert pipeline.queue.claim() is None


@pytest.mark.parametrize("method", ["register", "set_champion"])
def test_a_run_that_is_cut_off_after_a_registry_write_ends_once(pipeline, monkeypatch, method):
    pipeline.run(at(40))
    run = pipeline.accept(at(80))
    real = getattr(type(pipeline.registry), method)

    def cut_off(registry, *args):
        real(registry, *args)
        raise CutOff

    claimed = pipeline.queue.claim()
    with monkeypatch.context() as patch:
        patch.setattr(type(pipeline.registry), method, cut_off)
        with pytest.raises(CutOff):
            pipeline.retrain(claimed, lambda: None)
    pipeline.retrain(pipeline.queue.claim(), lambda: None)
    ended = pipeline.queue.get(run.run_id)
    assert (ended.state, ended.model_version) == (pb.RUN_STATE_PROMOTED, "2"), ended.reason
    assert (
        gates(ended)["roc_auc not_worse_by"].limit < 0.3
    )  # against version 1, never against itself
    assert {one.version for one in _versions(pipeline)} == {1, 2}


def _versions(pipeline):
    return pipeline.registry._client.search_model_versions(f"name = '{MODEL}'")


def test_a_cancelled_run_stops_at_its_next_step(pipeline):
    """Each step asks; whichever answers first, no champion comes of it."""
    asked = count()

    def run_until(step: int) -> pb.Run:
        run = pipeline.accept(at(40))
        claimed, left = pipeline.queue.claim(), iter(range(step))

        def check() -> None:
            next(asked)
            if next(left, None) is None:
                raise RunCancelledError("enough")

        with pytest.raises(RunCancelledError):
            pipeline.retrain(claimed, check)
        pipeline.queue.finish(run.run_id, pb.RUN_STATE_CANCELLED, "enough")
        return run

    for step in range(3):
        run_until(step)
    assert next(asked) == 1 + 2 + 3
    assert pipeline.registry.champion_version(MODEL) is None


# -- by hand -----------------------------------------------------------------------------


def test_promotion_and_rollback_by_hand_are_runs_that_the_monitor_can_follow(pipeline):
    first, second = pipeline.run(at(40)), pipeline.run(at(80))

    back = rollback(pipeline.queue, pipeline.registry, MODEL, By("ann"))
    assert pipeline.registry.champion_version(MODEL) == "1"
    assert back.state == pb.RUN_STATE_PROMOTED
    assert back.reason == "rolled back from 2"
    assert back.cause.kind == pb.CAUSE_KIND_MANUAL
    for field in ("model", "manifest_uri", "contract", "model_version", "metrics", "as_of"):
        assert getattr(back, field) == getattr(first, field)
    promoted = {"states": [pb.RUN_STATE_PROMOTED], "limit": 1}
    assert pipeline.queue.runs(MODEL, **promoted) == [back]

    again = by_hand(pipeline.queue, pipeline.registry, MODEL, "2", By("ann", "was better"))
    assert pipeline.registry.champion_version(MODEL) == "2"
    assert again.reason == "by hand, in place of 1: was better"
    assert again.asked_by == "ann"
    assert again.manifest_uri == second.manifest_uri
    assert pipeline.queue.runs(MODEL, **promoted) == [again]
    assert pipeline.queue.claim() is None  # a record, nothing to work on
