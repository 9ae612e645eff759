"""Gates, against metrics worked out by hand."""

from __future__ import annotations

import math
from datetime import timedelta, timezone

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadfeast.pipeline.config import GatesConfig
from steadfeast.pipeline.gates.gates import (
    Champion,
    HeldOut,
    data_gates,
    metrics,
    model_gates,
    refusal,
)
from support.shop_world import at

CONTRACT = "a" * 64
rows = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 99)), min_size=2, max_size=40).filter(
    lambda pairs: len({label for label, _ in pairs}) == 2
)


@given(rows)
def test_metrics_are_what_their_definitions_count(pairs):
    labels = np.array([label for label, _ in pairs])
    scores = np.array([percent / 100 for _, percent in pairs])
    positive, negative = scores[labels == 1], scores[labels == 0]
    wins = sum((p > n) + (p == n) / 2 for p in positive for n in negative)
    right = sum((s > 0.5) == bool(y) for y, s in zip(labels, scores, strict=True))
    loss = -sum(math.log(s if y else 1 - s) for y, s in zip(labels, scores, strict=True))
    assert metrics(labels, scores) == {
        "auc": pytest.approx(wins / len(positive) / len(negative)),
        "accuracy": pytest.approx(right / len(pairs)),
        "log_loss": pytest.approx(loss / len(pairs)),
    }


def table(labels: list[float | None], feature: list[float | None]) -> pa.Table:
    return pa.table({"sold": pa.array(labels, pa.float64()), "x": pa.array(feature, pa.float64())})


GOOD = table([0, 1, 1], [1, 2, None])


@pytest.mark.parametrize(
    ("train", "holdout", "failed", "detail"),
    [
        (GOOD, GOOD, None, ""),
        (GOOD, GOOD.slice(0, 2), "holdout_rows", "2 labelled rows held out, 3 to train on"),
        (table([1, 1, 1], [1, 2, 3]), GOOD, "train_classes", "sold is 1"),
        (GOOD, table([0, 0, 0], [1, 2, 3]), "holdout_classes", "sold is 0"),
        (table([0, 1, 2], [1, 2, 3]), GOOD, "train_classes", "sold is 0, 1, 2"),
        (table([], []), GOOD, "train_classes", "sold is never known"),
        (table([0, 1, 1], [None] * 3), GOOD, "train_features", "without any value: x"),
        (GOOD, table([0, 1, 1], [None, math.nan, None]), "holdout_features", "any value: x"),
    ],
)
def test_examples_that_teach_nothing_are_refused(train, holdout, failed, detail):
    gates = data_gates(train, holdout, ["x"], "sold", GatesConfig(min_rows=3))
    assert [gate.name for gate in gates if not gate.passed] == ([failed] if failed else [])
    assert detail in refusal(gates)
    assert {gate.name for gate in gates} == {
        "holdout_rows",
        "train_classes",
        "train_features",
        "holdout_classes",
        "holdout_features",
    }


START = at(31)
LABELS = np.array([0, 1] * 50)
PERFECT, USELESS = LABELS * 0.8 + 0.1, np.full(100, 0.5)


def held_out(scores: np.ndarray) -> HeldOut:
    times = np.datetime64("2024-02-01", "us") + np.arange(100) * np.timedelta64(1, "h")
    return HeldOut(times, LABELS, scores, CONTRACT)


def champion(scores: np.ndarray | None, trained_before=START, **fields: str) -> Champion:
    return Champion(
        version="7",
        scores=scores,
        unreadable=fields.get("unreadable", ""),
        contract=fields.get("contract", CONTRACT),
        trained_before=trained_before,
    )


def failed(gates) -> list[str]:
    return [gate.name for gate in gates if not gate.passed]


def test_a_first_model_has_only_the_absolute_limit_to_reach():
    assert failed(model_gates(held_out(PERFECT), None, GatesConfig(minimum=0.9))) == []
    assert failed(model_gates(held_out(USELESS), None, GatesConfig(minimum=0.9))) == ["minimum"]


@given(st.floats(0, 1), st.floats(0, 0.5))
def test_no_regression_passes_exactly_within_the_margin(quality, margin):
    """The champion is better by what its scores say; the margin alone decides."""
    scores = np.where(np.arange(100) < 100 * quality, PERFECT, USELESS)
    config = GatesConfig(minimum=0, max_regression=margin)
    (_, gate) = model_gates(held_out(scores), champion(PERFECT), config)
    lost = 1 - metrics(LABELS, scores)["auc"]
    assert gate.passed == (lost <= margin)
    assert gate.limit == pytest.approx(1 - margin)
    assert (gate.champion, gate.metric) == (1, "auc")
    assert "champion 7 on 100 rows, none of which it was trained on" in gate.detail


def test_an_equal_challenger_passes_at_no_margin():
    assert failed(model_gates(held_out(PERFECT), champion(PERFECT), GatesConfig())) == []


def test_rows_that_the_champion_has_seen_are_left_out_when_enough_remain():
    """The champion shines on the first 60 rows, which it was trained on, and only there."""
    seen = np.where(np.arange(100) < 60, PERFECT, USELESS)
    fair = np.where(np.arange(100) < 60, USELESS, PERFECT)
    boundary = START + timedelta(hours=60)
    (_, gate) = model_gates(held_out(fair), champion(seen, boundary), GatesConfig(min_rows=40))
    assert (gate.passed, gate.value, gate.limit) == (True, 1.0, 0.5)
    assert "on 40 rows, without 60 that it may have been trained on" in gate.detail

    (_, gate) = model_gates(held_out(fair), champion(seen, boundary), GatesConfig(min_rows=41))
    assert not gate.passed
    assert "on 100 rows, 60 of which it may have been trained on" in gate.detail


def test_the_boundary_is_an_instant_whatever_its_zone():
    boundary = (START + timedelta(hours=60)).astimezone(timezone(timedelta(hours=-5)))
    (_, gate) = model_gates(
        held_out(PERFECT), champion(PERFECT, boundary), GatesConfig(min_rows=40)
    )
    assert "without 60" in gate.detail


def test_a_champion_that_cannot_read_the_rows_blocks_and_says_why():
    live = champion(None, unreadable="it reads y, which is served no more")
    gates = model_gates(held_out(PERFECT), live, GatesConfig())
    assert failed(gates) == ["no_regression"]
    assert "champion 7 cannot be compared: it reads y" in refusal(gates)


def test_a_champion_of_another_contract_is_compared_and_named():
    (_, gate) = model_gates(held_out(PERFECT), champion(PERFECT, contract="b" * 64), GatesConfig())
    assert gate.passed
    assert "trained under contract bbbbbbbbbbbb" in gate.detail
