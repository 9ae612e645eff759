"""Profiles: laws of a commutative monoid, and counts against Python's own."""

import json
import math
import re
from collections import Counter
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steadfeast.monitor.drift.distances import total_variation
from steadfeast.monitor.profiles.binning import ColumnKind, Edges, edges_of
from steadfeast.monitor.profiles.profile import EdgesMismatchError, Profile, Window, profile, total

T0 = datetime(2013, 1, 1, tzinfo=UTC)
TYPES = {
    "x": pa.float64(),
    "n": pa.int64(),
    "b": pa.bool_(),
    "c": pa.string(),
    "t": pa.timestamp("us", "UTC"),
    "s": pa.string(),
    "e": pa.list_(pa.float32()),
    "m": pa.float64(),
    "k": pa.string(),
}
SCHEMA = pa.schema(list(TYPES.items()))
rows = st.lists(
    st.fixed_dictionaries(
        {
            "x": st.none() | st.floats(width=32) | st.sampled_from([0.0, -0.0, 1.0]),
            "n": st.none() | st.integers(-(2**40), 2**40) | st.just(0),
            "b": st.none() | st.booleans(),
            "c": st.none() | st.sampled_from(["a", "b", "never seen", ""]),
            "t": st.none() | st.datetimes(datetime(1990, 1, 1), datetime(2030, 1, 1)),  # noqa: DTZ001
            "s": st.none() | st.text("aZé9 0-\t", max_size=6),
            "e": st.none()
            | st.lists(st.none() | st.floats(-9, 9, width=32), max_size=4)
            | st.lists(st.floats(-9, 9, width=32), min_size=3, max_size=3),
            "m": st.none() | st.sampled_from([7.0, 7.5, math.nan, -math.inf]),
            "k": st.none() | st.sampled_from([f"k{i}" for i in range(0, 400, 7)]),
        }
    ),
    max_size=30,
)


def table(records):
    return pa.Table.from_pylist(
        [{**r, "t": r["t"] and r["t"].replace(tzinfo=UTC)} for r in records], schema=SCHEMA
    )


def reference():
    rng = np.random.default_rng(1)
    size = 500
    return pa.table(
        {
            "x": np.where(rng.random(size) < 0.3, 0.0, rng.normal(size=size)),
            "n": rng.poisson(3, size),
            "b": rng.random(size) < 0.2,
            "c": rng.choice(["a", "b", "c"], size, p=[0.8, 0.15, 0.05]),
            "t": [T0 + timedelta(hours=i) for i in range(size)],
            "s": [f"N{i * 37} é" for i in range(size)],
            "e": rng.normal(size=(size, 3)).tolist(),
            "m": np.full(size, 7.0),
            "k": [f"k{i * i // 1000}" for i in range(size)],
        },
        schema=SCHEMA,
    )


EDGES = edges_of(reference(), list(TYPES))


NUMBERS = ("x", "n", "m")
ASPECTS = ("s.pattern", "e.length", "e.norm", "e.distance")


def of(records):
    return profile(table(records).to_batches(), EDGES)


def same(a, b):
    """Exact but for the two floating-point sums."""
    assert (a.rows, a.types) == (b.rows, b.types)
    assert list(EDGES.columns) == [*TYPES, *ASPECTS]
    for name in EDGES.columns:
        left, right = a.columns[name].to_json(), b.columns[name].to_json()
        for key in ("mean", "m2"):
            scale = max(1.0, abs(left["maximum"] or 0), abs(left["minimum"] or 0))
            scale **= 1 if key == "mean" else 2
            assert left.pop(key) == pytest.approx(right.pop(key), rel=1e-9, abs=1e-9 * scale)
        assert left == right


@given(rows, rows, rows)
@settings(max_examples=60)
def test_profiles_are_a_commutative_monoid_and_merging_is_profiling_together(a, b, c):
    p, q, r = of(a), of(b), of(c)
    zero = Profile.empty(EDGES)
    assert zero + p == p + zero == p
    same(p + q, q + p)
    same((p + q) + r, p + (q + r))
    same(p + q + r, of(a + b + c))
    same(total([p, q, r], EDGES), of(c + a + b))


@given(rows)
@settings(max_examples=60)
def test_json_gives_back_the_same_profile(a):
    p = of(a)
    edges = Edges.from_json(json.loads(json.dumps(EDGES.to_json())))
    assert edges == EDGES
    assert Profile.from_json(p.to_json(), edges) == p


@given(rows)
@settings(max_examples=60)
def test_counts_are_those_of_plain_python(a):
    p = of(a)
    assert p.rows == len(a)
    for name in TYPES:
        column, given_ = p.columns[name], [record[name] for record in a]
        held = [value for value in given_ if value is not None]
        assert (column.rows, column.nulls) == (len(a), len(a) - len(held))
        if name in NUMBERS:
            nans = [value for value in held if math.isnan(value)]
            finite = [float(value) for value in held if math.isfinite(value)]
            assert (column.nans, column.infinities) == (
                len(nans),
                len(held) - len(nans) - len(finite),
            )
            assert column.finite == len(finite)
            if finite:
                assert (column.minimum, column.maximum) == (min(finite), max(finite))
                assert column.mean == pytest.approx(
                    math.fsum(v / len(finite) for v in finite), rel=1e-9, abs=1e-9
                )
            cuts = EDGES.columns[name].cuts
            expected = Counter(
                sum(cut < value for cut in cuts) for value in held if not math.isnan(value)
            )
            assert dict(enumerate(column.counts)) == {i: expected[i] for i in range(len(cuts) + 1)}
    c = p.columns["c"]
    seen = Counter(record["c"] for record in a)
    categories = EDGES.columns["c"].categories
    assert categories == ("a", "b", "c")
    assert c.counts.tolist() == [
        *(seen[name] for name in categories),
        seen["never seen"] + seen[""],
    ]
    b = Counter(record["b"] for record in a)
    assert p.columns["b"].counts.tolist() == [b[False], b[True], 0]


def one(values, kind=None):
    made = pa.table({"v": pa.array(values, kind)})
    return edges_of(made, ["v"]).columns["v"], made


def counted(edges, values, kind=None):
    batches = pa.table({"v": pa.array(values, kind)}).to_batches()
    return profile(batches, Edges({"v": edges})).columns["v"]


def test_nan_is_not_null_and_infinities_are_outermost():
    edges, _ = one([1.0, 2.0, 3.0, 4.0])
    found = counted(edges, [None, math.nan, math.inf, -math.inf, 2.0])
    assert (found.rows, found.nulls, found.nans, found.infinities) == (5, 1, 1, 2)
    assert found.counts[0] == found.counts[-1] == 1
    assert found.usable == 3
    assert (found.minimum, found.maximum, found.mean) == (2.0, 2.0, 2.0)
    assert found.null_share == 0.2


def test_a_point_mass_has_a_bin_of_its_own():
    """Rain: zero nearly always. The zero is apart from what is just above and below it."""
    rng = np.random.default_rng(2)
    rain = np.where(rng.random(10_000) < 0.93, 0.0, rng.exponential(0.1, 10_000))
    edges, made = one(rain)
    zeros = counted(edges, [0.0, -0.0])
    assert zeros.counts.max() == 2
    for other in (5e-324, -5e-324):
        assert (counted(edges, [other]).counts * zeros.counts).sum() == 0
    groups = edges.coarse(profile(made.to_batches(), Edges({"v": edges})).columns["v"].counts)
    assert groups.max() == (rain == 0).sum()
    assert (groups > 100).sum() >= 4  # the zero, and the wet hours in several groups


@pytest.mark.parametrize("value", [7.0, 0.0, -1e300, 1e300, 5e-324])
def test_a_constant_column_sees_values_on_either_side(value):
    edges, _ = one([value] * 50)
    at = [
        int(edges.coarse(counted(edges, [v]).counts).argmax()) for v in (-math.inf, value, math.inf)
    ]
    assert at[0] < at[1] < at[2]


def test_values_outside_the_reference_have_bins_of_their_own():
    rng = np.random.default_rng(3)
    values = rng.normal(size=5000)
    edges, made = one(values)
    inside = profile(made.to_batches(), Edges({"v": edges})).columns["v"]
    assert inside.counts[0] == inside.counts[-1] == 0
    outside = counted(edges, [values.min() - 1e-9, values.max() + 1e-9])
    assert outside.counts[0] == outside.counts[-1] == 1
    assert 10 <= len(edges.groups) <= 12
    assert edges.coarse(inside.counts).min() > 250
    positions = edges.positions(inside.minimum, inside.maximum)
    assert len(positions) == edges.bins
    assert (np.diff(positions) > 0).all()


@pytest.mark.parametrize(
    ("values", "kind", "bins"),
    [([], pa.float64(), 1), ([None, None], pa.float64(), 1), ([math.nan], None, 1), ([1], None, 3)],
)
def test_degenerate_references_have_edges_all_the_same(values, kind, bins):
    edges, _ = one(values, kind)
    assert edges.bins == bins
    assert counted(edges, [1.0, None]).counts.sum() == 1


def test_edges_do_not_depend_on_the_order_of_rows():
    made = reference()
    shuffled = made.take(np.random.default_rng(5).permutation(made.num_rows))
    assert edges_of(shuffled, list(TYPES)) == EDGES


def test_edges_of_a_long_stream_come_from_evenly_spread_rows():
    """A column that rises all the way: leaving out the end would show."""
    batches = (pa.record_batch({"v": np.arange(i * 1000.0, i * 1000 + 1000)}) for i in range(1300))
    edges = edges_of(batches, ["v"]).columns["v"]
    assert edges.cuts[-1] == pytest.approx(1_300_000, rel=1e-4)
    assert min(abs(cut - 650_000) for cut in edges.cuts) < 20


def test_text_with_many_values_is_profiled_by_length():
    edges, _ = one([f"tail{i}" for i in range(1000)])
    assert edges.kind is ColumnKind.TEXT
    found = counted(edges, ["tail1", "äöü", None])
    assert (found.minimum, found.maximum, found.nulls) == (3, 5, 1)


def test_a_dictionary_column_is_its_values():
    edges, _ = one(["a", "b", "a"])
    assert counted(edges, pa.array(["b", "x", None]).dictionary_encode()).counts.tolist() == [
        0,
        1,
        1,
    ]


def test_other_numbers_and_times_are_read_too():
    edges, _ = one([1, 2, 3], pa.int32())
    for kind in (pa.float16(), pa.uint8(), pa.decimal128(21, 2), pa.float32()):
        assert counted(edges, pa.array([1, 2], pa.int64()).cast(kind)).mean == 1.5
    days, _ = one([T0.date()])
    assert counted(days, [T0], pa.timestamp("ns", "UTC")).minimum == T0.timestamp()


@given(rows)
@settings(max_examples=60)
def test_aspects_are_those_of_plain_python(a):
    p = of(a)
    center = [float(v) for v in np.mean(np.float32(reference()["e"].to_pylist()), axis=0)]
    lists = [record["e"] for record in a if record["e"] is not None]
    whole = [one for one in lists if None not in one]
    assert p.columns["e.length"].usable == len(lists)
    for name, expected in {
        "e.length": [len(one) for one in lists],
        "e.norm": [math.hypot(*one) for one in whole],
        "e.distance": [math.dist(one, center) for one in whole if len(one) == 3],
    }.items():
        column = p.columns[name]
        assert (column.rows, column.nulls) == (len(a), len(a) - len(lists))
        assert column.usable == len(expected)
        assert column.nans == len(lists) - len(expected)
        if expected:
            assert column.mean == pytest.approx(np.mean(expected), rel=1e-5, abs=1e-5)
            assert column.maximum == pytest.approx(max(expected), rel=1e-5, abs=1e-5)
    texts = [record["s"] for record in a if record["s"] is not None]
    pattern = EDGES.columns["s.pattern"]
    assert pattern.categories == ("a9 a",)
    fits = sum(re.fullmatch(r"[^\W\d_]+\d+\s+[^\W\d_]+", one) is not None for one in texts)
    assert p.columns["s.pattern"].counts.tolist() == [fits, len(texts) - fits]


def test_an_embedding_that_shrinks_turns_or_changes_its_length_shows_in_its_aspects():
    rng = np.random.default_rng(6)
    vectors = rng.normal([3, 0, 0, 0], 1, (2000, 4))
    kind = pa.list_(pa.float64(), 4)
    made = pa.table({"v": pa.array(vectors.tolist(), kind)})
    edges = edges_of(made, ["v"])
    base = profile(made.to_batches(), edges)
    far = {}
    for name, moved in {"half": vectors / 2, "turned": vectors[:, ::-1]}.items():
        now = profile(pa.table({"v": pa.array(moved.tolist(), kind)}).to_batches(), edges)
        far[name] = {
            aspect: total_variation(base.columns[aspect].counts, now.columns[aspect].counts)
            for aspect in ("v.norm", "v.distance")
        }
    assert far["half"]["v.norm"] > 0.6
    # Turned, each is as long as before: only the distance from the centroid tells.
    assert far["turned"]["v.norm"] < 0.01
    assert far["turned"]["v.distance"] > 0.8
    longer = pa.table({"v": pa.array([[1.0] * 5] * 3)})
    assert profile(longer.to_batches(), edges).columns["v.distance"].nans == 3
    # A column that is no list any more, or gone, breaks neither its aspects nor the others.
    now = profile(pa.table({"v": ["x"], "w": [1]}).to_batches(), edges)
    assert (now.columns["v.norm"].mistyped, now.columns["v.norm"].rows) == (1, 1)
    assert profile(pa.table({"w": [1]}).to_batches(), edges).columns["v.norm"].rows == 0


def test_empty_texts_and_other_shapes_show_in_the_pattern():
    texts = [f"N{i}{'AB'[i % 2]}" for i in range(1000)] + [f"{i}" for i in range(1000, 1500)]
    edges = edges_of(pa.table({"v": texts}), ["v"])
    assert edges.columns["v.pattern"].categories == ("a9a", "9")
    now = profile(pa.table({"v": ["N1C", "", "77", "a b", None]}).to_batches(), edges)
    assert now.columns["v.pattern"].counts.tolist() == [1, 1, 2]
    assert now.columns["v"].minimum == 0


def test_many_categories_keep_the_most_frequent_and_the_size_of_the_others():
    rng = np.random.default_rng(9)
    codes = np.minimum(rng.zipf(1.3, 50_000), 3000)
    made = pa.table({"v": [f"c{code}" for code in codes]})
    edges = edges_of(made, ["v"])
    column = edges.columns["v"]
    assert (column.kind, len(column.categories), len(edges.columns)) == (
        ColumnKind.CATEGORICAL,
        200,
        1,
    )
    found = profile(made.to_batches(), edges).columns["v"]
    most = Counter(f"c{code}" for code in codes).most_common(200)
    assert sorted(found.counts[:-1].tolist()) == sorted(count for _, count in most)
    assert found.counts.sum() == 50_000


def test_a_million_categories_are_bounded():
    made = pa.table({"v": pc.cast(pa.array(range(1_000_000)), pa.string())})
    edges = edges_of(made, ["v"])
    assert list(edges.columns) == ["v", "v.pattern"]
    assert edges.columns["v"].kind is ColumnKind.TEXT
    assert len(json.dumps(edges.to_json())) < 10_000
    found = profile(made.to_batches(max_chunksize=32_768), edges)
    assert found.columns["v.pattern"].counts.tolist() == [1_000_000, 0]
    # And where the reference had few, all of the new ones are counted as such.
    few = edges_of(pa.table({"v": ["a", "b"] * 50}), ["v"])
    new = profile(made.to_batches(), few).columns["v"]
    assert new.counts.tolist() == [0, 0, 1_000_000]


def test_lists_of_anything_else_are_counted_but_not_compared():
    edges, _ = one([["a"], ["b"]])
    assert (edges.kind, edges.bins) == (ColumnKind.OPAQUE, 0)
    found = counted(edges, [["a"], None])
    assert (found.rows, found.nulls, found.usable) == (2, 1, 0)


def test_a_column_that_is_gone_or_of_another_type_does_not_stop_the_others():
    batches = [
        *pa.table({"n": ["one", None], "b": [True, False]}).to_batches(),
        *pa.table({"n": pa.nulls(1), "extra": [1]}).to_batches(),
    ]
    found = profile(batches, EDGES)
    assert found.rows == 3
    assert (found.columns["n"].rows, found.columns["n"].mistyped, found.columns["n"].nulls) == (
        3,
        1,
        2,
    )
    assert found.columns["b"].counts.tolist() == [1, 1, 0]
    assert found.columns["x"].rows == 0
    assert found.types == {"b": ("bool",), "n": ("null", "string")}


def test_mean_and_variance_hold_far_from_zero():
    """A million rows near 1e9, merged from a thousand pieces, against a sum without rounding."""
    values = 1e9 + np.random.default_rng(4).normal(size=100_000)
    edges, made = one(values)
    merged = profile(made.to_batches(max_chunksize=100), Edges({"v": edges})).columns["v"]
    mean = math.fsum(values) / len(values)
    assert merged.mean == pytest.approx(mean, rel=1e-12)
    m2 = math.fsum((v - mean) ** 2 for v in values)
    assert merged.m2 == pytest.approx(m2, rel=1e-6)
    assert merged.sd == pytest.approx(1, rel=0.02)


def test_the_largest_floats_do_not_overflow():
    edges, _ = one([1.7e308, -1.7e308, 1.6e308])
    found = counted(edges, [1.7e308, 1.7e308, -1.7e308])
    assert math.isfinite(found.mean)
    assert math.isfinite(found.m2)
    json.loads(json.dumps(found.to_json(), allow_nan=False))


def test_profiles_over_other_edges_do_not_merge():
    other = edges_of(reference().slice(0, 100), list(TYPES))
    with pytest.raises(EdgesMismatchError):
        Profile.empty(EDGES) + Profile.empty(other)


def test_a_window_survives_json():
    window = Window(T0, T0 + timedelta(microseconds=1), 3)
    assert Window.from_json(json.loads(json.dumps(window.to_json()))) == window
