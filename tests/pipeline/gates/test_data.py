"""Gates of the data: each broken column is found, and drift alone is not taken for one."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadfeast.featurestore.errors import NotFoundError
from steadfeast.measures import Task
from steadfeast.pipeline.config import ChecksConfig, ModelConfig
from steadfeast.pipeline.gates import (
    CheckError,
    Examples,
    Gate,
    data_gates,
    load_checks,
    own_gates,
    refusal,
)
from steadfeast.pipeline.recipes import RecipeError, Target

ROWS = 2_000
FEATURES = ("x", "count", "mood")


def table(seed: int = 0, **columns: object) -> pa.Table:
    rng = np.random.default_rng(seed)
    x = rng.normal(10, 2, ROWS)
    made = {
        "shop": [f"s{number % 40}" for number in range(ROWS)],
        "event_timestamp": pa.array(np.arange(ROWS) * 3_600_000_000, pa.timestamp("us", "UTC")),
        "x": x,
        "count": rng.poisson(20, ROWS),
        "mood": rng.choice(["good", "bad", "fair"], ROWS),
        "sold": (rng.random(ROWS) < 1 / (1 + np.exp(10 - x))).astype(int),
    }
    return pa.table(made | columns)


def judge(now: pa.Table, before: pa.Table | None = None, **checks: object) -> list[Gate]:
    config = ModelConfig(
        service="s", recipe="a:b", entities=__file__, label="sold", min_rows=100,
        checks=ChecksConfig(**checks),
    )  # fmt: skip
    examples = Examples(
        now,
        now.slice(0, 1_500),
        now.slice(1_500),
        FEATURES,
        ("shop",),
        Target(Task.BINARY, "sold", (0, 1)),
        before,
        "the newest known label is of yesterday; lengthen holdout",
    )
    return data_gates(examples, config)


def failed(gates: list[Gate]) -> set[str]:
    return {gate.name for gate in gates if not gate.passed}


def test_good_examples_pass_every_gate_and_each_says_its_limit():
    gates = judge(table(), table(1))
    assert failed(gates) == set()
    assert {gate.name for gate in gates} == {
        "holdout_rows", "train_classes", "holdout_classes", "types", "nulls", "more_nulls", "nans",
        "more_nans", "infinities", "more_infinities", "constants", "duplicates", "label_leak",
        "ranges", "categories", "label_share",
    }  # fmt: skip
    for gate in gates:
        inside = gate.value <= gate.limit or gate.name.startswith(("holdout", "train"))
        assert inside, gate


NULLS = pa.array([None] * (ROWS - 1) + [1.0])


@pytest.mark.parametrize(
    ("columns", "gate", "named"),
    [
        ({"x": NULLS}, "nulls", "x 0.9995"),
        ({"x": np.full(ROWS, math.nan)}, "nans", "x 1"),
        ({"x": np.full(ROWS, math.inf)}, "infinities", "x 1"),
        ({"count": np.full(ROWS, 7)}, "constants", "one value only: count"),
        ({"mood": table()["sold"].cast(pa.string())}, "label_leak", "mood alone says what sold is"),
        ({"x": 1.0 - table()["sold"].to_numpy()}, "label_leak", "x alone says what sold is"),
        ({"event_timestamp": pa.array([0] * ROWS, pa.timestamp("us", "UTC"))}, "duplicates",
         "1,960 of 2,000 rows"),
        ({"sold": [1] * ROWS}, "train_classes", "sold is 1"),
        ({"sold": [1] * 9 + [0] * (ROWS - 9)}, "train_classes", "0 1,491 times, 1 9 times"),
    ],
)  # fmt: skip
def test_what_is_broken_is_found_by_its_gate_without_a_champion(columns, gate, named):
    gates = judge(table(**columns))
    assert gate in failed(gates)
    assert named in refusal(gates)


@pytest.mark.parametrize(
    ("columns", "gate", "named"),
    [
        ({"count": np.arange(ROWS) % 40 / 2}, "types", "count is double, was int64"),
        ({"x": table()["x"].to_numpy() * 1_000}, "ranges", "x 1"),
        ({"mood": ["new"] * 1_500 + ["good"] * 500}, "categories", "mood 0.75"),
        ({"x": pa.array([None, 8.0, 10.0, 12.0] * 500)}, None, ""),
        ({"x": pa.array(([None] * 3 + [10.0]) * 500)}, "more_nulls", "x 0.75"),
        ({"sold": np.r_[np.zeros(200, int), np.ones(ROWS - 200, int)]}, "label_share", "sold is"),
    ],
)
def test_what_has_broken_since_the_champion_is_found(columns, gate, named):
    gates = judge(table(1, **columns), table())
    assert (gate in failed(gates)) if gate else not failed(gates)
    assert named in refusal(gates)


def test_drift_is_no_fault():
    """A season further: warmer, busier, another mix, a tenth more sales."""
    rng = np.random.default_rng(2)
    moved = table(
        3,
        x=rng.normal(18, 3, ROWS),
        count=rng.poisson(45, ROWS),
        mood=rng.choice(["good", "bad", "fair", "new"], ROWS, p=[0.6, 0.1, 0.1, 0.2]),
        sold=(rng.random(ROWS) < 0.6).astype(int),
    )
    assert failed(judge(moved, table())) == set()


def test_a_constant_that_was_one_before_and_a_column_that_is_ignored_pass():
    same = np.full(ROWS, 7)
    assert failed(judge(table(count=same), table(1, count=same))) == set()
    assert failed(judge(table(count=same), ignore=("count",))) == set()
    assert failed(judge(table(x=NULLS), nulls=1.0, ignore=("x",))) == set()


def test_a_hold_out_that_is_too_small_says_what_would_fill_it():
    small = judge(table().slice(0, 1_550))
    assert "50 labelled rows held out, 1500 to train on; the newest known label" in refusal(small)


@given(st.floats(0, 0.4), st.integers(0, 10**6))
def test_a_feature_that_says_little_more_than_chance_never_counts_as_the_label(noise, seed):
    """A copy of the label with a share of wrong values is a leak only while it is nearly one."""
    rng = np.random.default_rng(seed)
    sold = (rng.random(ROWS) < 0.5).astype(int)
    copy = np.where(rng.random(ROWS) < noise, 1 - sold, sold)
    leak = {gate.name: gate for gate in judge(table(sold=sold, count=copy))}["label_leak"]
    share = np.mean(copy != sold)
    left = 0 if share in (0, 1) else -(share * np.log2(share) + (1 - share) * np.log2(1 - share))
    assert leak.value == pytest.approx(max(1 - left, 0.0), abs=0.08)
    assert leak.passed is (leak.value <= leak.limit)


def test_numbers_are_given_away_by_rank():
    now = table(sold=np.exp(table()["x"].to_numpy() / 3))
    config = ModelConfig(
        service="s", recipe="a:b", entities=__file__, label="sold", task="regression", min_rows=100
    )
    target = Target(Task.REGRESSION, "sold")
    examples = Examples(now, now.slice(0, 1_500), now.slice(1_500), FEATURES, (), target)
    assert failed(data_gates(examples, config)) == {"label_leak"}
    noisy = now["sold"].to_numpy() * np.random.default_rng(9).lognormal(0, 0.5, ROWS)
    fair = now.set_column(now.column_names.index("sold"), "sold", pa.array(noisy))
    parts = (fair, fair.slice(0, 1_500), fair.slice(1_500))
    assert failed(data_gates(replace(examples, table=parts[0], train=parts[1], holdout=parts[2]),
                             config)) == set()  # fmt: skip


# -- checks of others ----------------------------------------------------------------------

SCHEMAS = """
import pandera.pandas as pa
from steadfeast import Gate

sales = pa.DataFrameSchema(
    {"x": pa.Column(float, pa.Check.in_range(0, 30)), "count": pa.Column(int)}
)


def gaps(rows):
    return [Gate("gaps", rows.num_rows > 10, rows.num_rows, 10, "rows")]


def fine(rows):
    return True


def odd(rows):
    return 3
"""
SUITE = {
    "name": "sales",
    "expectations": [
        {"type": "expect_column_values_to_be_between",
         "kwargs": {"column": "x", "min_value": 0, "max_value": 30}},
        {"type": "expect_column_to_exist", "kwargs": {"column": "count"}},
    ],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "schemas.py").write_text(SCHEMAS)
    (tmp_path / "suite.json").write_text(json.dumps(SUITE))
    return tmp_path


@pytest.mark.parametrize(
    "plug", [{"pandera": "schemas:sales"}, {"great_expectations": "suite.json"}]
)
def test_schemas_and_suites_of_other_libraries_are_gates(folder, plug):
    ((name, check),) = load_checks([plug], folder)
    (gate,) = own_gates(name, check, table())
    assert (gate.passed, gate.value, gate.limit) == (True, 0, 0)
    values = table()["x"].to_numpy().copy()
    values[:3] = [-1, 99, 100]
    (gate,) = own_gates(name, check, table(x=values))
    assert not gate.passed
    assert gate.value >= 1
    assert "x" in gate.detail


def test_checks_of_ones_own_give_gates_or_true_or_false(folder):
    names = ["schemas:gaps", "schemas:fine", "schemas:odd"]
    gates = [
        gate
        for name, check in load_checks(names, folder)
        for gate in own_gates(name, check, table())
    ]
    assert [(gate.name, gate.passed) for gate in gates] == [
        ("gaps", True),
        ("schemas:fine", True),
        ("schemas:odd", False),
    ]
    assert "returned int; return a steadfeast.Gate" in gates[-1].detail


def test_a_check_that_cannot_be_loaded_says_why(folder):
    with pytest.raises(RecipeError, match="has no function nothing"):
        load_checks(["schemas:nothing"], folder)
    with pytest.raises(NotFoundError, match="no kind of check 'pandora'; did you mean pandera"):
        load_checks([{"pandora": "schemas:sales"}], folder)
    with pytest.raises(CheckError, match="cannot be read as a suite"):
        load_checks([{"great_expectations": "other.json"}], folder)
