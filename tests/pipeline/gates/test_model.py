"""Gates of the model: how often they are right in simulated worlds, and what they say."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from steadfeast import Gate
from steadfeast.measures import Sample, measure_named
from steadfeast.pipeline.config import GateConfig, ModelConfig
from steadfeast.pipeline.gates import HeldOut, Judged, Rival, model_gates, refusal

MARGIN = 0.02


def world(rng, days: int, per_day: int, worse: float, shops: int = 0):
    """Two models of one world, the challenger `worse` than the champion, in units of log odds.

    A day has a label rate of its own, and each model good days and bad days of its own; with
    `shops`, so has each shop, on all its days.
    """
    rows = days * per_day
    day = np.repeat(np.arange(days), per_day)
    shop = rng.integers(0, shops or 1, rows)
    signal = rng.normal(size=rows)
    rate = rng.normal(0, 0.7, days)[day]
    truth = (rng.random(rows) < 1 / (1 + np.exp(1 - 1.2 * signal - rate))).astype(float)

    def model(extra: float) -> np.ndarray:
        skill = 1 - extra + rng.normal(0, 0.15, days)[day]
        skill = skill + rng.normal(0, 0.4 if shops else 0, shops or 1)[shop]
        return 1 / (1 + np.exp(-(skill * signal + rng.normal(0, 0.5, rows))))

    champion, challenger = model(0), model(worse)
    times = np.datetime64("2024-01-01T05", "us") + day * np.timedelta64(1, "D")
    table = pa.table({"shop": shop, "truth": truth})
    keys = ("shop",) if shops else ()
    return HeldOut(table, Sample(truth, challenger), times, keys), champion


def judged(**fields) -> Judged:
    config = GateConfig(**{"metric": "roc_auc", "not_worse_by": MARGIN} | fields)
    return Judged(config, measure_named(str(config.metric), config.options))


def outcome(rows: HeldOut, champion: np.ndarray, *gates: Judged) -> list[Gate]:
    rival = Rival("7", champion, np.ones(len(rows), bool))
    return model_gates(gates or [judged()], rows, rival, None, min_rows=100)


def figure_without(worse: float) -> float:
    """How much AUC a loss of skill costs on average, from a million rows."""
    rng = np.random.default_rng(0)
    rows, champion = world(rng, 4_000, 250, worse)
    auc = measure_named("roc_auc").value
    return auc(rows.sample.predicting(champion)) - auc(rows.sample)


@pytest.mark.parametrize("shops", [0, 40])
def test_an_equally_good_challenger_is_hardly_ever_refused(shops):
    """At most 5 % of the time in truth; 150 worlds show more than 23 with a chance below 1e-6."""
    rng = np.random.default_rng(1)
    refused = sum(bool(refusal(outcome(*world(rng, 14, 60, 0, shops)))) for _ in range(150))
    assert refused <= 23


def test_one_that_is_three_margins_worse_is_hardly_ever_let_through():
    """At most 5 % of the time in truth, where days have good and bad luck of their own."""
    worse = 0.55
    assert figure_without(worse) == pytest.approx(3 * MARGIN, rel=0.15)
    rng = np.random.default_rng(2)
    passed = sum(not refusal(outcome(*world(rng, 28, 60, worse))) for _ in range(150))
    assert passed <= 23


def test_a_list_of_many_gates_refuses_no_more_often_than_one():
    gates = [
        judged(not_worse_by=0),
        judged(metric="log_loss", not_worse_by=0),
        judged(metric="recall", at=0.4, by="shop", not_worse_by=0, min_rows=20),
    ]
    rng = np.random.default_rng(4)
    refused = 0
    for _ in range(100):
        rows, champion = world(rng, 14, 60, 0, 6)
        refused += bool(refusal(outcome(rows, champion, *gates)))
    assert refused <= 18


def test_a_gate_that_cannot_decide_passes_and_says_what_it_would_need():
    rng = np.random.default_rng(5)
    rows, champion = world(rng, 7, 30, 0.1)
    (gate,) = outcome(rows, champion, judged(not_worse_by=0.001))
    assert gate.passed
    assert gate.undecided
    assert gate.low < -0.001 < gate.high
    assert gate.difference == pytest.approx(gate.value - gate.champion)
    assert "cannot decide, so it passes: about" in gate.detail
    assert "times as many rows would" in gate.detail


def test_rows_that_the_champion_was_fitted_on_take_no_part():
    """It shines on the first half, which it knows, and only there."""
    rng = np.random.default_rng(6)
    rows, champion = world(rng, 20, 50, 0)
    known = np.arange(len(rows)) < 500
    flattered = np.where(known, rows.sample.truth, champion)
    rival = Rival("7", flattered, ~known)
    (gate,) = model_gates([judged()], rows, rival, None, min_rows=100)
    assert gate.passed
    assert "on 500 rows in 10 blocks of time, none of which it was trained on" in gate.detail
    (gate,) = model_gates([judged()], rows, rival, None, min_rows=501)
    assert gate.passed
    assert gate.undecided
    assert "only 500 of 1000 held-out rows are new to champion 7" in gate.detail


def test_a_floor_is_compared_with_the_figure_itself():
    rng = np.random.default_rng(7)
    rows, _ = world(rng, 14, 100, 0)
    value = measure_named("roc_auc").value(rows.sample)
    for limit, passes in ((value - 0.001, True), (value + 0.001, False), (value, True)):
        (gate,) = model_gates(
            [judged(not_worse_by=None, at_least=limit)], rows, None, None, min_rows=100
        )
        assert gate.passed is passes
        assert gate.undecided
        assert gate.low < value < gate.high
    (gate,) = model_gates(
        [judged(metric="log_loss", not_worse_by=None, at_most=0.01)], rows, None, None, min_rows=1
    )
    assert not gate.passed
    assert not gate.undecided


def test_the_worst_slice_decides_and_is_named():
    rng = np.random.default_rng(8)
    rows, champion = world(rng, 28, 120, 0, 4)
    table = rows.table.set_column(0, "shop", pa.array(rows.table["shop"].to_numpy()))
    at_two = rows.table["shop"].to_numpy() == 2
    ruined = np.where(at_two, rng.random(len(rows)), champion)
    spoiled = HeldOut(table, rows.sample.predicting(ruined), rows.times)
    (gate,) = outcome(spoiled, champion, judged(by="shop"))
    assert not gate.passed
    assert gate.detail.startswith("1 of 4 slices fail; the worst: shop=2: roc_auc")
    (gate,) = outcome(spoiled, champion, judged(by="shop", min_rows=100_000))
    assert gate.passed
    assert gate.undecided


def test_a_champion_that_cannot_read_the_rows_blocks_and_says_why():
    rng = np.random.default_rng(9)
    rows, _ = world(rng, 14, 10, 0)
    rival = Rival("7", None, np.ones(len(rows), bool), "it reads y, which is served no more")
    gates = model_gates([judged()], rows, rival, None, min_rows=10)
    assert "champion 7 cannot be compared: it reads y" in refusal(gates)


@pytest.mark.parametrize(
    ("given", "passed", "detail"),
    [
        (Gate("mine", False, 1, 2, "too bad"), False, "too bad"),
        (True, True, "as the check says"),
        (None, False, "returned NoneType; return a steadfeast.Gate"),
    ],
)
def test_a_check_of_ones_own_is_given_the_model_and_the_rows(given, passed, detail):
    seen = []
    model = SimpleNamespace(name="the challenger")

    def check(*arguments):
        seen.append(arguments)
        return given

    rows, _ = world(np.random.default_rng(10), 14, 10, 0)
    (gate,) = model_gates([Judged(GateConfig(check="c:f"), check=check)], rows, None, model, 1)
    assert seen == [(model, rows.table)]
    assert (gate.passed, detail in gate.detail) == (passed, True)


@pytest.mark.parametrize(
    ("gate", "problem"),
    [
        ({}, "give either metric or check"),
        ({"metric": "roc_auc"}, "say what is asked for"),
        ({"metric": "roc_auc", "check": "a:b", "at_least": 1}, "give either metric or check"),
        ({"check": "a:b", "at_least": 1}, "a check says itself whether it passes"),
        ({"metric": "roc_auc", "at_least": 0.5, "at_most": 0.9}, "are two gates"),
        ({"metric": "rmse", "at_most": 3}, "root_mean_squared_error is no measure of task binary"),
        ({"metric": "roc_auk", "at_least": 0.5}, "did you mean roc_auc"),
        ({"metric": "roc_auc", "at": 0.4, "at_least": 0.5}, "has no option at"),
    ],
)
def test_a_gate_that_says_nothing_or_fits_nothing_is_an_error(gate, problem):
    with pytest.raises(ValidationError, match=problem):
        ModelConfig(
            service="s", recipe="a:b", entities=__file__, label="y", gates=(GateConfig(**gate),)
        )


def test_the_margin_may_be_a_share_of_the_champions_figure():
    assert GateConfig(metric="rmse", not_worse_by="2%").margin(50) == 1
    assert GateConfig(metric="rmse", not_worse_by=0.3).margin(50) == 0.3
