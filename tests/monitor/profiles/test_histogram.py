"""Counts by cells against a search for each value, on what could part them."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steadfeast.monitor.profiles.binning import edges_of
from steadfeast.monitor.profiles.histogram import CELLS, WORTHWHILE, Counter
from steadfeast.monitor.profiles.profile import profile

FLOATS = st.floats(allow_nan=False, allow_infinity=False)
HARD = st.sampled_from([0.0, -0.0, 5e-324, 1.7e308, -1.7e308, 1.0, 1e-300, 2.0**53])
CUTS = st.lists(FLOATS | HARD | st.integers(-9, 9).map(float), max_size=150, unique=True).map(
    sorted
)


def searched(cuts, values):
    """Rows per bin, by a loop over the cuts."""
    above = [int(np.count_nonzero(values > cut)) for cut in cuts]
    return -np.diff([len(values), *above, 0])


@given(CUTS, st.lists(FLOATS | HARD, max_size=50), st.integers(0, 2**32))
@settings(max_examples=200)
def test_counts_are_those_of_the_search(cuts, others, seed):
    """At the cuts, one float beside them, anywhere else, and at the infinities."""
    cuts = sorted(set(cuts))
    near = [math.nextafter(cut, side) for cut in cuts for side in (-math.inf, math.inf)]
    pool = np.array([*cuts, *near, *others, np.inf, -np.inf, 0.0])
    values = np.random.default_rng(seed).choice(pool, 2 * WORTHWHILE)
    assert Counter(cuts).count(values).tolist() == searched(cuts, values).tolist()


@pytest.mark.parametrize(
    "made",
    [
        lambda rng, n: rng.normal(size=n),
        lambda rng, n: rng.lognormal(0, 3, n),
        lambda rng, n: rng.standard_cauchy(n),
        lambda rng, n: np.where(rng.random(n) < 0.6, 0.0, rng.exponential(1, n)),
        lambda rng, n: rng.poisson(5, n),
        lambda rng, n: rng.integers(-(2**52), 2**52, n),
        lambda rng, n: rng.integers(0, 256, n).astype(np.uint8),
        lambda rng, n: rng.normal(1e9, 1, n).astype(np.float32),
        lambda _, n: np.full(n, 7.0),
        lambda rng, n: rng.normal(size=n) * 1e-310,
        lambda rng, n: rng.choice([-1.7e308, 0.0, 1.7e308], n),
    ],
)
def test_real_bins_on_real_columns(made):
    """The edges of a reference, all of the rows, at once and in pieces."""
    rng = np.random.default_rng(7)
    edges = edges_of(pa.table({"v": made(rng, 20_000)}), ["v"])
    values = made(rng, 50_000)
    table = pa.table({"v": values})
    whole = profile(table.to_batches(), edges).columns["v"]
    pieces = profile(table.to_batches(max_chunksize=1000), edges).columns["v"]
    expected = searched(edges.columns["v"].cuts, values.astype(np.float64))
    assert whole.counts.tolist() == pieces.counts.tolist() == expected.tolist()
    assert (whole.minimum, whole.maximum) == (float(values.min()), float(values.max()))


def test_few_values_and_few_cuts():
    """No cut is one bin; as many values as are searched, and one more than that."""
    assert Counter([]).count(np.arange(3.0)).tolist() == [3]
    assert Counter([]).count(np.arange(float(WORTHWHILE))).tolist() == [WORTHWHILE]
    assert Counter([1.0]).count(np.arange(float(WORTHWHILE))).tolist() == [2, WORTHWHILE - 2]
    for size in (WORTHWHILE - 1, WORTHWHILE, WORTHWHILE + 1):
        values = np.arange(float(size))
        cuts = np.arange(0, size, 17.0)
        assert Counter(cuts).count(values).tolist() == searched(cuts, values).tolist()
    # More cuts than cells: nearly every cell has several.
    cuts = np.sort(np.random.default_rng(1).normal(size=3 * CELLS))
    values = np.random.default_rng(2).normal(size=2 * WORTHWHILE)
    assert Counter(cuts).count(values).tolist() == searched(cuts, values).tolist()


def test_dictionaries_are_counted_like_their_values():
    """Also with nulls among the codes, nulls in the dictionary, and values that repeat in it."""
    edges = edges_of(pa.table({"c": ["a"] * 5 + ["b"] * 3 + ["c"]}), ["c"])
    codes = pa.array([0, 1, 2, 3, None, 4, 1], pa.int32())
    coded = pa.DictionaryArray.from_arrays(codes, pa.array(["b", "new", None, "b", "a"]))
    plain = coded.cast(pa.string())
    made = [
        profile(pa.table({"c": one}).to_batches(), edges).columns["c"] for one in (coded, plain)
    ]
    assert made[0] == made[1]
    assert (made[0].nulls, made[0].counts.tolist()) == (2, [1, 2, 0, 2])


def test_lengths_of_texts_are_counted_by_code_too():
    texts = [f"text {i * i}" for i in range(500)]
    edges = edges_of(pa.table({"t": texts}), ["t"])
    plain = pa.array([*texts, None, ""])
    made = [
        profile(pa.table({"t": one}).to_batches(), edges).columns["t"]
        for one in (plain, plain.dictionary_encode())
    ]
    assert made[0] == made[1]
    assert made[0].nulls == 1
