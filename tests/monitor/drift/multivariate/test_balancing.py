"""All features at once: against naive loops, scikit-learn, NumPy's SVD, and planted changes."""

from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

from steadfeast.monitor.config.schema import MonitorConfig
from steadfeast.monitor.drift.multivariate import domain_classifier
from steadfeast.monitor.drift.multivariate.balancing import (
    FOLDS,
    MOST_COLUMNS,
    Sample,
    joinable,
    paired,
    rows_of,
)
from steadfeast.monitor.drift.multivariate.detector import (
    CLASSIFIER,
    RECONSTRUCTION,
    WINDOW_ROWS,
    judge_together,
    usual_of,
)
from steadfeast.monitor.drift.multivariate.domain_classifier import (
    EXPLAINED,
    area,
    reconstructed,
    told_apart,
)
from steadfeast.monitor.profiles.binning import edges_of
from steadfeast.monitor.profiles.profile import Window
from support.joint_world import DAY, START, days

WEEK = 7 * DAY // timedelta(microseconds=1)
CONFIG = MonitorConfig(service="s", model="m", multivariate=True)


def coded(table, edges, names=None):
    return rows_of(table, edges, names or joinable(edges, {}), "t")


@pytest.fixture(scope="module")
def world():
    """Eight weeks of reference: its edges, its rows, and what is usual of it."""
    return known_from(days(0, 56))


def look(world, table):
    """Compare with the reference; excess over the usual in multiples of what is allowed."""
    edges, rows, usual = world
    pair = paired(rows.spread(3000), coded(table, edges), window_micros=WEEK, seed=9)
    left, apart = reconstructed(pair), told_apart(pair, seed=9, explain=True)
    ratios = {
        CLASSIFIER: (apart.auc - usual[CLASSIFIER].value)
        / usual[CLASSIFIER].allowed(pair.window.rows),
        RECONSTRUCTION: abs(left.error - left.usual - usual[RECONSTRUCTION].value)
        / usual[RECONSTRUCTION].allowed(pair.window.rows),
    }
    return pair, left, apart, ratios


# Planted changes


@pytest.mark.parametrize(("what", "names"), [("flip", {"a", "b"}), ("swap", {"a", "c", "d"})])
def test_a_change_that_no_single_column_shows_is_seen_and_named(world, what, names):
    _, left, apart, ratios = look(world, days(63, 7, what=what))
    assert ratios[CLASSIFIER] > 2
    assert ratios[RECONSTRUCTION] > 1.5
    for by in (left.by_column, apart.by_column):
        assert set(sorted(by, key=by.get)[-len(names) + 1 :]) <= names


def test_what_single_columns_show_is_left_to_them(world):
    """A feature moves by a whole deviation, and the rows hang together as they did."""
    _, _, _, ratios = look(world, days(63, 7, what="mean"))
    assert max(ratios.values()) < 1


@pytest.mark.parametrize("seed", range(1, 9))
def test_a_quiet_window_is_quiet(world, seed):
    _, _, _, ratios = look(world, days(63, 7, seed=seed))
    assert max(ratios.values()) < 1


def test_the_same_rows_and_seed_give_the_same_figures(world):
    first, second = (look(world, days(63, 7, what="flip")) for _ in range(2))
    assert first[1:] == second[1:]


# Oracles

scored = st.lists(
    st.tuples(st.booleans(), st.sampled_from([0.1, 0.2, 0.5, 0.9]), st.integers(0, 4)),
    min_size=2,
    max_size=12,
)


@given(scored)
def test_the_area_is_the_share_of_pairs_and_scikit_learns(rows):
    truth, said, weight = (np.array(column) for column in zip(*rows, strict=True))
    ones, zeros = ([(s, w) for t, s, w in rows if t is side and w > 0] for side in (True, False))
    if not ones or not zeros:
        return
    won = sum(w * v * ((a > b) + 0.5 * (a == b)) for a, w in ones for b, v in zeros)
    pairs = sum(w * v for _, w in ones for _, v in zeros)
    found = area(truth, said, weight.astype(float))
    assert found == pytest.approx(won / pairs)
    assert found == pytest.approx(roc_auc_score(truth, said, sample_weight=weight))


def test_the_classifier_is_scikit_learns_on_phases_held_out(world):
    """By a loop over the folds with scikit-learn's own model and area, on the columns alone."""
    edges, rows, _ = world
    window = coded(days(63, 7, what="flip"), edges)
    pair = paired(rows.spread(3000), window, window_micros=WEEK, seed=9)
    both = [pair.reference, pair.window]
    truth = np.repeat([0, 1], [len(one.weights) for one in both])
    phases, scores = (np.concatenate([getattr(o, n) for o in both]) for n in ("phases", "scores"))
    products = np.column_stack([scores, scores[:, 0] * scores[:, 1], scores[:, 2] * scores[:, 3]])
    products = np.round(products, 1)  # of few values, which its binning is quick with
    weights = np.concatenate([one.weights / one.weights.sum() for one in both])
    found = []
    for phase in range(FOLDS):
        asked = phases == phase
        model = HistGradientBoostingClassifier(max_leaf_nodes=8, max_iter=40, random_state=0)
        model.fit(products[~asked], truth[~asked], sample_weight=weights[~asked])
        said = model.predict_proba(products[asked])[:, 1]
        found.append(roc_auc_score(truth[asked], said, sample_weight=weights[asked]))
    assert told_apart(pair, seed=9).auc == pytest.approx(np.mean(found), abs=0.05)


def test_phases_keep_the_same_part_of_the_week_together(world):
    edges, _, _ = world
    rows = coded(days(0, 21), edges)
    pair = paired(rows, rows, window_micros=WEEK, seed=0)
    elapsed = rows.micros % WEEK / WEEK
    for phase in range(FOLDS):
        mine = elapsed[pair.window.phases == phase]
        assert phase / FOLDS <= mine.min() <= mine.max() < (phase + 1) / FOLDS


def test_the_reconstruction_is_the_svds():
    """Of numbers that all have a value: NumPy's SVD of ranks made by sorting, row by row."""
    table = days(0, 21).select(["t", "a", "b", "c", "d", "e"])
    edges = edges_of(table, ("a", "b", "c", "d", "e"))
    window = days(63, 7, what="flip").select(table.column_names)
    pair = paired(coded(table, edges), coded(window, edges), window_micros=WEEK, seed=3)
    old, new = pair.reference.scores, pair.window.scores
    mean, spread = old.mean(axis=0), old.std(axis=0)
    old, new = (old - mean) / spread, (new - mean) / spread
    _, sizes, axes = np.linalg.svd(old, full_matrices=False)
    share = np.cumsum(sizes**2) / np.sum(sizes**2)
    kept = axes[: 1 + int(np.argmax(share >= EXPLAINED))].T
    errors = [
        float(np.sum((one - one @ kept @ kept.T) ** 2) / np.sum(one**2)) for one in (old, new)
    ]
    found = reconstructed(pair)
    assert [found.usual, found.error] == pytest.approx(errors)
    assert sum(found.by_column.values()) == pytest.approx(abs(errors[1] - errors[0]))


def test_both_sides_are_equal_in_every_single_column():
    """Weighted shares of categories, empty rows and point masses; ranks are uniform."""
    table = days(0, 56)
    edges = edges_of(table, ("a", "f", "g", "kind"))
    moved = days(63, 7, what="mean", seed=4)
    kinds = np.array(moved["kind"].to_pylist())
    moved = moved.filter(pa.array((kinds != "u") | (np.arange(len(kinds)) % 3 == 0)))
    old, new = coded(table, edges), coded(moved, edges)
    pair = paired(old, new, window_micros=WEEK, seed=3)
    i = old.names.index("kind")
    for place in range(3):
        shares = [
            np.average(rows.places[:, i] == place, weights=side.weights)
            for rows, side in ((old, pair.reference), (new, pair.window))
        ]
        assert shares[1] == pytest.approx(shares[0], abs=0.005)
    for name in ("a", "g"):
        for side in (pair.reference, pair.window):
            scores = side.scores[:, old.names.index(name)]
            held = ~np.isnan(scores)
            at = np.average(scores[held] < -0.6745, weights=side.weights[held])
            assert at == pytest.approx(0.25, abs=0.02)
    gone = [
        np.average(np.isnan(side.scores[:, old.names.index("g")]), weights=side.weights)
        for side in (pair.reference, pair.window)
    ]
    assert gone[1] == pytest.approx(gone[0], abs=0.005)


# Bad input


class Limits:
    """What of a reference is read here."""

    def __init__(self, usual):
        self.joint = usual


def verdicts(known, table):
    """Judge a window of `table` against a world."""
    edges, rows, usual = known
    window = coded(table, edges, rows.names)
    end = START + 70 * DAY
    return judge_together(
        Limits(usual), rows, window, Window(end - 7 * DAY, end, len(window)), CONFIG
    )


def known_from(table):
    edges = edges_of(table, tuple(name for name in table.column_names if name != "t"))
    rows = coded(table, edges)
    return edges, rows, usual_of(rows, CONFIG, 0.4)


def replaced(table, **columns):
    for name, one in columns.items():
        at = table.column_names.index(name)
        table = table.set_column(at, name, one)
    return table


@pytest.mark.parametrize("what", ["all null", "all NaN", "gone", "one category", "retyped"])
def test_a_broken_column_does_not_stop_the_others(world, what):
    table = days(63, 7, what="flip")
    n = table.num_rows
    broken = {
        "all null": lambda: replaced(table, e=pa.nulls(n, pa.float64())),
        "all NaN": lambda: replaced(table, e=pa.array(np.full(n, np.nan))),
        "gone": lambda: table.drop_columns(["e", "kind"]),
        "one category": lambda: replaced(table, kind=pa.array(["u"] * n)),
        "retyped": lambda: replaced(table, e=pa.array([str(i) for i in range(n)])),
    }[what]()
    found = {one.statistic: one for one in verdicts(world, broken)}
    assert {one.level for one in found.values()} == {"drift"}
    assert found[CLASSIFIER].feature == "(told apart)"
    assert "most by" in found[CLASSIFIER].reason


def test_a_million_categories_and_constant_columns_cost_nothing_and_say_nothing():
    many = pa.array([f"id{i}" for i in range(56 * 200)])
    constant = pa.array(np.ones(56 * 200))
    reference = days(0, 56).append_column("id", many).append_column("one", constant)
    table = days(63, 7)
    table = table.append_column("id", pa.array([f"new{i}" for i in range(table.num_rows)]))
    table = table.append_column("one", pa.array(np.ones(table.num_rows)))
    found = verdicts(known_from(reference), table)
    assert {one.level for one in found} == {"ok"}
    assert not any("id" in one.reason.split("most by")[-1].split(", ") for one in found)


@pytest.mark.parametrize(
    ("table", "reference", "why"),
    [
        (lambda: days(63, 1, size=1), None, "min_rows is 200"),
        (lambda: days(63, 7), lambda: days(0, 1), "three windows"),
        (lambda: days(63, 7), lambda: days(0, 1, size=1), "three windows"),
        (
            lambda: replaced(
                days(63, 7), **{n: pa.nulls(1400, pa.float64()) for n in "abcdefg"}
            ).drop_columns(["kind"]),
            None,
            "fewer than two features",
        ),
    ],
)
def test_what_cannot_be_judged_has_a_reason_and_no_value(world, table, reference, why):
    found = verdicts(world if reference is None else known_from(reference()), table())
    assert [one.level for one in found] == ["insufficient_data"] * 2
    assert all(one.value is None and why in one.reason for one in found)


def test_of_very_many_columns_those_that_matter_are_taken():
    table = pa.table({f"x{i:03}": np.arange(50.0) for i in range(MOST_COLUMNS + 50)})
    edges = edges_of(table, table.column_names)
    names = joinable(edges, {"x149": 1.0, "x120": 0.5})
    assert len(names) == MOST_COLUMNS
    assert {"x149", "x120"} <= set(names)
    assert list(names) == sorted(names)


def test_fewer_rows_may_be_farther_off(world):
    _, _, usual = world
    one = usual[CLASSIFIER]
    assert one.allowed(100) > one.allowed(one.rows) == one.allowed(10 * WINDOW_ROWS)
    assert one.allowed(one.rows) >= domain_classifier.FLOOR


def test_rows_hold_bins_and_no_values(world):
    _, rows, _ = world
    assert rows.places.dtype == np.int16
    assert (
        Sample.joined([rows, rows]).take(np.arange(3)).places.tolist() == rows.places[:3].tolist()
    )
    assert len(rows.spread(10)) == 10
