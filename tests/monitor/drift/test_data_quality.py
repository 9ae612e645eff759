"""Broken data, one kind at a time, over real snapshots."""

import math
from dataclasses import replace
from datetime import timedelta

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from steadfeast.monitor.drift.data_quality import (
    BucketFacts,
    Freshness,
    IncidentKind,
    figures,
    freshness,
    incidents,
    repeated_requests,
)
from steadfeast.monitor.drift.reference import build_reference
from steadfeast.monitor.profiles.profile import Profile, Window, profile
from steadfeast.monitor.sources.quarantine import Fault, Quarantined
from steadfeast.monitor.sources.snapshot import REQUEST, Bucket, freeze
from support.drift_world import CONFIG, DAY, FEATURES, T0, profiled, rows, training_set, window

BUCKET = Bucket(T0 + 42 * DAY, T0 + 43 * DAY)
WINDOW = Window(BUCKET.start, BUCKET.end, 300)
HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def con():
    with duckdb.connect() as con:
        yield con


@pytest.fixture(scope="module")
def reference(con, tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    return build_reference(con, training_set(folder, window(0, 42)), CONFIG)


def broken(reference, table, ages=(), config=CONFIG):
    return incidents(reference, profiled(reference, table), ages, config, WINDOW)


def replaced(table, name, values):
    return table.set_column(table.schema.get_field_index(name), name, values)


def with_nulls(table, name, many):
    gone = pa.array(np.arange(table.num_rows) < many)
    held = table[name].combine_chunks()
    return replaced(table, name, pa.compute.if_else(gone, pa.scalar(None, held.type), held))


def test_a_normal_day_has_no_incident_and_nulls_that_were_always_there_are_none(reference):
    assert broken(reference, rows(42, 300), [Freshness("weather", T0, 3600.0)]) == []


@pytest.mark.parametrize(("nulls", "kinds"), [(60, []), (61, ["null_burst"])])
def test_a_null_burst_begins_above_the_allowed_increase(reference, nulls, kinds):
    """0.2 of 300 is 60: at the limit is still well."""
    found = broken(reference, with_nulls(rows(42, 300), "x", nulls))
    assert [one.kind for one in found] == kinds
    for one in found:
        assert (one.subject, one.value, one.limit) == ("x", nulls / 300, 0.2)
        assert one.summary == "20% of x are null; 0% are in the training set"


@pytest.mark.parametrize(("size", "nulls", "kinds"), [(30, 11, []), (30, 30, ["null_burst"])])
def test_in_few_rows_only_what_chance_does_not_do_is_a_burst(reference, size, nulls, kinds):
    """By `scipy.stats.binom`: 11 of 30 at .2 come by chance twice in a hundred, 30 never."""
    found = broken(reference, with_nulls(rows(42, size), "x", nulls))
    assert [one.kind for one in found] == kinds


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ([np.nan] * 270, "90% of x are NaN; 0%"),
        ([np.inf] * 270, "90% of x are infinite; 0%"),
        ([np.nan] * 60 + [-np.inf] * 30, "30% of x are NaN or infinite; 0%"),
    ],
)
def test_nan_and_infinity_are_no_values_either(reference, values, word):
    table = rows(42, 300)
    x = np.array(table["x"].to_numpy(), np.float64)
    x[: len(values)] = values
    [found] = broken(reference, replaced(table, "x", pa.array(x)))
    assert (found.kind, found.subject) == ("null_burst", "x")
    assert word in found.summary


def test_a_column_that_nobody_filled_and_that_has_values_now_is_told(reference):
    table = replaced(rows(42, 300), "level", pa.array([1.5] * 300))
    [found] = broken(reference, table)
    assert (found.kind, found.subject, found.value) == (IncidentKind.FILLED, "level", 1.0)
    assert found.summary == "100% of level have a value; 0% have one in the reference"


def test_rows_in_quarantine_are_an_incident_where_they_are_many(reference):
    def of(*aside):
        facts = BucketFacts(quarantined=aside)
        current = profiled(reference, rows(42, 300))
        return [one.summary for one in incidents(reference, current, [], CONFIG, WINDOW, facts)]

    cell = Quarantined(Fault.UNREADABLE_CELL, 3, "d.csv", 300, "x", "N/A")
    assert of(cell) == []
    assert of(replace(cell, rows=4)) == [
        "4 of 300 cells cannot be read as the column's type (d.csv, column x): N/A"
    ]
    assert of(Quarantined(Fault.UNREADABLE_FILE, 0, "e.csv", example="no such page")) == [
        "the file cannot be read (e.csv): no such page"
    ]


def test_a_column_that_vanished_or_changed_type_is_an_incident(reference):
    table = rows(42, 300)
    [gone] = broken(reference, table.drop_columns(["kind"]))
    assert (gone.kind, gone.subject, gone.value) == (IncidentKind.SCHEMA, "kind", 300)
    assert gone.summary == "kind is not there in 300 of 300 rows"
    [typed] = broken(reference, replaced(table, "x", pa.array(["1.5"] * 300)))
    assert typed.summary == "x is string, which cannot be read as numeric"
    # A whole number is a number, and an added column breaks nobody.
    whole = replaced(table, "x", pa.array([1] * 300)).append_column("new", pa.array([1] * 300))
    assert broken(reference, whole) == []


def test_no_requests_are_an_incident_where_there_always_were_some(con, reference, tmp_path):
    empty = Profile.empty(reference.edges)
    [found] = incidents(reference, empty, [], CONFIG, WINDOW)
    assert (found.kind, found.subject, found.value) == (IncidentKind.MISSING_DATA, "late", 0)
    assert "2013-02-12 00:00 to 2013-02-13 00:00" in found.summary
    assert "300 rows or more" in found.summary
    # A training set with empty days of its own makes an empty day normal.
    gappy = pa.concat_tables([window(0, 20), window(21, 21)])
    with_gap = build_reference(con, training_set(tmp_path, gappy), CONFIG)
    assert incidents(with_gap, Profile.empty(with_gap.edges), [], CONFIG, WINDOW) == []
    assert incidents(None, empty, [], CONFIG, WINDOW) == []


def test_a_view_is_stale_beyond_its_age_and_only_where_one_is_configured(reference):
    table = rows(42, 300)
    at, beyond = 3 * 3600.0, 3 * 3600.0 + 1
    assert (
        broken(reference, table, [Freshness("weather", T0, at), Freshness("other", T0, 1e9)]) == []
    )
    [stale] = broken(reference, table, [Freshness("weather", T0, beyond)])
    assert (stale.kind, stale.subject, stale.value, stale.limit) == ("stale", "weather", beyond, at)
    assert stale.summary == "weather was 3:00:01 old at the median, 3:00:00 at most is expected"
    [nothing] = broken(reference, table, [Freshness("weather", None, None)])
    assert nothing.value is None
    assert nothing.summary == "more than half of the requests found no value in weather"
    # It can be said without a reference.
    current = profiled(reference, table)
    assert incidents(None, current, [Freshness("weather", None, None)], CONFIG, WINDOW) == [nothing]


def snapshot(con, folder, **columns):
    size = len(next(iter(columns.values())))
    kind = pa.timestamp("us", "UTC")
    table = pa.table(
        {
            "request_id": [str(i) for i in range(size)],
            "request_time": pa.array([BUCKET.start + 5 * HOUR] * size, kind),
            **{name: pa.array(values, kind) for name, values in columns.items()},
        }
    )
    folder.mkdir()
    pq.write_table(table, folder / "served.parquet")
    return freeze(con, [folder / "served.parquet"], BUCKET, folder / "m" / "s.parquet")


def test_freshness_is_the_median_age_at_request_time_per_view(con, tmp_path):
    asked = BUCKET.start + 5 * HOUR
    ages = [asked - HOUR, asked - 2 * HOUR, asked - 9 * HOUR]
    found = snapshot(
        con,
        tmp_path / "a",
        weather__event_timestamp=ages,
        **{'odd"view__event_timestamp': [asked, None, asked]},
        lost__event_timestamp=[asked, None, None],
        never__event_timestamp=[None] * 3,
    )
    assert {one.view: (one.latest, one.median_age_seconds) for one in freshness(con, found)} == {
        "weather": (asked - HOUR, 7200.0),
        'odd"view': (asked, 0.0),
        "lost": (asked, None),
        "never": (None, None),
    }


def test_an_empty_snapshot_has_no_freshness(con, tmp_path):
    empty = freeze(con, [], BUCKET, tmp_path / "m" / "s.parquet")
    assert freshness(con, empty) == []


def test_figures_are_those_of_the_rows(reference):
    table = rows(42, 300, shift=0.5)
    x = np.array(table["x"].to_numpy(), dtype=np.float64)
    x[:4] = [np.nan, np.inf, 1000.0, -1000.0]
    table = replaced(table, "x", pa.array(x, mask=np.arange(300) == 4))
    kinds = table["kind"].to_pylist()
    kinds[:2] = ["new", "newer"]
    table = replaced(table, "kind", pa.array(kinds))
    found = {one.feature: one for one in figures(profiled(reference, table))}
    assert list(found) == list(FEATURES)
    one = found["x"]
    held = np.delete(x, [0, 1, 4])
    assert (one.rows, one.nulls, one.nans, one.infinities, one.mistyped) == (300, 1, 1, 1, 0)
    assert one.null_share == 1 / 300
    assert one.unseen == 3 + sum(abs(held) > 5) - 2
    assert (one.minimum, one.maximum) == (-1000.0, 1000.0)
    assert one.mean == pytest.approx(held.mean(), rel=1e-9)
    assert one.sd == pytest.approx(held.std(), rel=1e-9)
    assert found["kind"].unseen == 2
    assert (found["kind"].mean, found["flag"].unseen) == (None, 0)
    assert (found["level"].null_share, found["level"].mean, found["level"].minimum) == (
        1,
        None,
        None,
    )
    empty = figures(profile([], reference.edges))
    assert {(one.rows, one.null_share, one.mean) for one in empty} == {(0, None, None)}
    assert not any(isinstance(v, float) and math.isnan(v) for v in (one.mean, one.sd))


@pytest.mark.parametrize(
    ("earlier", "kinds"),
    [
        ([1500] * 6, []),
        ([1501] * 6, ["missing_data"]),
        ([3000, 1500, 9000, 2000, 4000, 3500], []),
        ([60] * 6, []),  # so few that nothing can be said
        ([100] * 6, []),
        ([9000] * 5, []),  # a week is not seen yet
    ],
)
def test_far_fewer_rows_than_ever_in_the_window_are_an_incident(reference, earlier, kinds):
    current = profiled(reference, rows(42, 300))
    found = incidents(reference, current, [], CONFIG, WINDOW, BucketFacts(earlier=earlier))
    assert [one.kind for one in found] == kinds
    for one in found:
        assert (one.subject, one.value, one.limit) == ("late", 300, min(earlier) / 5)
        assert one.summary == "300 rows; the quietest of the 6 buckets before has 1501"


def test_far_more_rows_than_ever_are_one_too(reference):
    current = profiled(reference, rows(42, 501))
    assert incidents(reference, current, [], CONFIG, WINDOW, BucketFacts(earlier=[101] * 7)) == []
    [found] = incidents(reference, current, [], CONFIG, WINDOW, BucketFacts(earlier=[100] * 7))
    assert (found.kind, found.value, found.limit) == (IncidentKind.SURPLUS_DATA, 501, 500)


def test_requests_that_are_there_twice_are_counted_and_more_than_retries_are_an_incident(
    con, reference, tmp_path
):
    at = pa.array([BUCKET.start] * 9, pa.timestamp("us", "UTC"))
    ids = ["b", "a", "c", "a", None, "d", "a", None, "d"]
    path = tmp_path / "served.parquet"
    pq.write_table(pa.table({"request_id": ids, "request_time": at, "x": range(9)}), path)
    frozen = freeze(con, [path], BUCKET, tmp_path / "m" / "s.parquet")
    assert repeated_requests(con, frozen) == len(ids) - 2 - len(set(ids) - {None})
    assert repeated_requests(con, freeze(con, [], BUCKET, tmp_path / "n" / "s.parquet")) == 0
    current = profiled(reference, rows(42, 300))
    assert incidents(reference, current, [], CONFIG, WINDOW, BucketFacts({REQUEST: 3})) == []
    [found] = incidents(reference, current, [], CONFIG, WINDOW, BucketFacts({REQUEST: 4}))
    assert (found.kind, found.value, found.limit) == ("duplicates", 4 / 300, 0.01)
    assert found.summary == "4 of 300 rows repeat the request of another row"
