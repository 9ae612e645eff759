"""Verdicts: what is drift, what is not, and what cannot be said."""

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from steadfeast.monitor.drift.detector import Level, Verdict, detect
from steadfeast.monitor.drift.persistence import opens
from steadfeast.monitor.drift.reference import build_reference
from steadfeast.monitor.profiles.profile import Profile, Window
from support.drift_world import CONFIG, DAY, FEATURES, T0, profiled, training_set, window

WINDOW = Window(T0 + 42 * DAY, T0 + 49 * DAY, 2100)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    with duckdb.connect() as con:
        folder = tmp_path_factory.mktemp("training")
        return build_reference(con, training_set(folder, window(0, 42)), CONFIG)


def verdicts(reference, table, config=CONFIG):
    found = detect(reference, profiled(reference, table), WINDOW, config)
    assert [one.ratio for one in found] == sorted((one.ratio for one in found), reverse=True)
    return {one.feature: one for one in found}


def replaced(table, name, values):
    return table.set_column(table.schema.get_field_index(name), name, values)


def test_another_week_of_the_same_is_ok(reference):
    found = verdicts(reference, window(42))
    assert set(found) == set(FEATURES)
    for name in set(FEATURES) - {"level"}:
        one = found[name]
        assert (one.level, one.source, one.statistic, one.window) == (
            Level.OK,
            "served",
            "psi",
            WINDOW,
        )
        assert 0 <= one.value < one.threshold
    level = found["level"]
    assert level.level is Level.INSUFFICIENT_DATA
    assert (level.value, level.threshold, level.ratio) == (None, None, 0)
    assert level.reason == "the reference holds no values"


def test_what_moved_is_drift_and_says_how(reference):
    current = window(42, shift=1.0)
    found = verdicts(reference, current)
    assert [name for name, one in found.items() if one.level is Level.DRIFT] == ["x"]
    x = found["x"]
    assert next(iter(found)) == "x"
    assert x.value > x.threshold
    assert x.ratio > 3
    mean, was = np.mean(current["x"].to_numpy()), reference.profile.columns["x"].mean
    assert x.reason.startswith(f"mean {mean:.4g}, was {was:.4g} (sd ")


def test_a_zero_inflated_column_is_not_blind_on_either_side_of_the_zero(reference):
    rng = np.random.default_rng(1)
    size = 2100
    wetter = np.where(rng.random(size) < 0.7, 0.0, rng.exponential(1, size))
    harder = np.where(rng.random(size) < 0.9, 0.0, rng.exponential(8, size))
    for rain in (wetter, harder):
        found = verdicts(reference, replaced(window(42), "rain", pa.array(rain)))
        assert found["rain"].level is Level.DRIFT


def test_a_new_category_is_drift_and_is_named(reference):
    current = window(42)
    new = np.where(np.arange(2100) % 8 == 0, "new", current["kind"].to_numpy(zero_copy_only=False))
    found = verdicts(reference, replaced(current, "kind", pa.array(new)))["kind"]
    assert found.level is Level.DRIFT
    assert found.reason == (
        "13 % of rows in categories that the reference lacks, was 0 %; 1.4 sd off its like, "
        "in 42 days never more than 0.19, limit 0.17"
    )
    flags = replaced(current, "flag", pa.array(np.arange(2100) % 2 == 0))
    assert verdicts(reference, flags)["flag"].reason.startswith("50 % of rows in 'true', was 30 %")


def test_one_row_less_than_asked_for_is_too_few(reference):
    rows = window(42).slice(0, CONFIG.min_rows)
    assert verdicts(reference, rows)["x"].level is not Level.INSUFFICIENT_DATA
    found = verdicts(reference, rows.slice(1))["x"]
    assert (found.level, found.value) == (Level.INSUFFICIENT_DATA, None)
    assert found.reason == "199 rows with a value; min_rows is 200"


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (pa.nulls(2100, pa.float32()), "all 2100 rows are null or NaN"),
        (pa.array([np.nan] * 2100), "all 2100 rows are null or NaN"),
        (pa.array(["text"] * 2100), "2100 of 2100 rows have a type that cannot be read as numeric"),
        (None, "the window has no such column"),
    ],
)
def test_a_broken_column_has_a_reason_and_does_not_stop_the_others(reference, column, reason):
    current = window(42, shift=1.0)
    broken = current.drop_columns(["x"]) if column is None else replaced(current, "x", column)
    found = verdicts(reference, broken)
    assert (found["x"].level, found["x"].value) == (Level.INSUFFICIENT_DATA, None)
    assert found["x"].reason == reason
    assert found["kind"].level is Level.OK


def test_no_rows_are_no_zero_drift(reference):
    found = detect(reference, Profile.empty(reference.edges), WINDOW, CONFIG)
    assert {one.level for one in found} == {Level.INSUFFICIENT_DATA}
    assert {one.value for one in found} == {None}
    assert "the window has no rows" in {one.reason for one in found}


def test_without_a_reference_named_features_are_told_so(reference):
    config = CONFIG.model_copy(update={"features": ("x", "y")})
    found = detect(None, Profile.empty(reference.edges), WINDOW, config)
    assert [(one.feature, one.level) for one in found] == [
        ("x", Level.INSUFFICIENT_DATA),
        ("y", Level.INSUFFICIENT_DATA),
    ]
    assert detect(None, Profile.empty(reference.edges), WINDOW, CONFIG) == []


def test_one_category_constant_and_a_million_distinct_texts(tmp_path):
    """Degenerate references still see what they never saw."""
    size = 42 * 300
    made = window(0, 42).select(["event_timestamp", "late"])
    made = made.append_column("one", pa.array(["only"] * size))
    made = made.append_column("constant", pa.array([5.0] * size))
    made = made.append_column("texts", pa.array([f"{i:08d}" for i in range(size)]))
    names = ("one", "constant", "texts")
    with duckdb.connect() as con:
        reference = build_reference(con, training_set(tmp_path, made, features=names), CONFIG)
    same = made.slice(0, 2100)
    assert {one.level for one in verdicts(reference, same).values()} == {Level.OK}
    for name, column in {
        "one": pa.array(["only"] * 1600 + ["other"] * 500),
        "constant": pa.array([5.0] * 1600 + [4.0] * 500),
        "texts": pa.array([f"{i:04d}" for i in range(2100)]),
    }.items():
        found = verdicts(reference, replaced(same, name, column))
        assert [key for key, one in found.items() if one.level is Level.DRIFT] == [name]


def test_a_ratio_needs_both_value_and_threshold():
    for value, threshold in ((None, 1.0), (1.0, None), (None, None)):
        one = Verdict("served", "x", "psi", value, threshold, Level.OK, "", WINDOW)
        assert one.ratio == 0


@pytest.mark.parametrize(
    ("value", "decisive", "side", "evidence"),
    [
        (0.3, None, 1, 3.0),
        (0.3, None, -1, -3.0),
        (0.9, None, 1, 9.0),
        (0.9, 1.5, 1, 7.0),
        (0.4, 0.3, -1, -7.007),
        (1.6, 1.5, 1, 16.0),
    ],
)
def test_evidence_is_the_signed_ratio_and_decisive_where_a_day_is(value, decisive, side, evidence):
    bucket = Window(T0, T0 + DAY, 100)
    verdict = Verdict(
        "served", "x", "psi", value, 0.1, Level.DRIFT, "", bucket, side=side, decisive=decisive
    )
    assert verdict.evidence == pytest.approx(evidence)
    assert opens([verdict.evidence]) is (value > (0.7 if decisive is None else decisive))
