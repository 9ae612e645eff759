"""Single bins, tails, nulls: what they promise, on counts whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as sp

from steadfeast.monitor.drift.shares import (
    EMPTY,
    HIGH_TAIL,
    LARGEST_CELL,
    LOW_TAIL,
    NAMES,
    OUTSIDE,
    Ends,
    parts,
    share_limits,
    shares_of,
)
from steadfeast.monitor.profiles.binning import ColumnEdges, ColumnKind

BINS = 102
"""One empty bin at either end, a hundred of one percent between."""
SHARES = np.array([0, *[0.01] * 100, 0])
NUMERIC = ColumnEdges(ColumnKind.NUMERIC, cuts=tuple(map(float, range(BINS - 1))), groups=(0,))
DAYS = 56


def days(rng, many, rows, *, nulls=0.0, shares=SHARES):
    empty = rng.binomial(rows, nulls, many)
    return np.column_stack([rng.multinomial(rows - empty, shares), empty])


def limits(found, edges=NUMERIC, multiple=2.0):
    """Return what days give, each compared with all the others; and their shares and rows."""
    whole = found.sum(axis=0)
    rows = found.sum(axis=1)
    made = share_limits(
        found,
        shares_of(whole - found),
        rows.sum() - rows.astype(float),
        Ends.of(edges, whole[:-1]),
        multiple,
        0.15,
    )
    return made, shares_of(whole), float(rows.sum())


def ratio(known, now):
    made, expected, rows = known
    return made.worst(expected, rows, now).ratio


@pytest.mark.parametrize("rows", [300, 3000, 30_000])
def test_where_nothing_happens_hardly_any_day_is_over(rows):
    """Four standard deviations for each of a hundred bins: at most a day in a hundred."""
    rng = np.random.default_rng(rows)
    known = limits(days(rng, DAYS, rows, nulls=0.05))
    over = sum(ratio(known, one) > 1 for one in days(rng, 2000, rows, nulls=0.05))
    # Exact: with a chance of .01 so many would come once in a million.
    assert over <= sp.binom.isf(1e-6, 2000, 0.01)


@pytest.mark.parametrize("expected", [3.0, 40.0, 2000.0])
def test_the_limit_of_a_share_is_near_the_binomial_quantile(expected):
    """One bin of a reference so large that only the bucket counts."""
    rows = 100_000
    share = expected / rows
    shares = np.array([share, 1 - share])
    edges = ColumnEdges(ColumnKind.CATEGORICAL, categories=("a",), groups=(0, 1))
    found = np.tile(np.append(np.round(1e6 * shares), 0).astype(np.int64), (DAYS, 1))
    made, was, _ = limits(found, edges)
    free = made.__class__(made.ends, made.spread, made.news, scale=0.0)
    allowed = free.allowed(parts(was, made.ends), 1e12, np.full(2 + len(NAMES), rows))
    chance = sp.norm.sf(4)
    quantile = sp.binom.isf(chance, rows, share) / rows - share
    assert quantile * 0.95 <= allowed[0] <= quantile * 1.25 + 1 / rows


def test_one_percent_in_one_bin_is_seen_and_named():
    rng = np.random.default_rng(1)
    made, expected, rows = limits(days(rng, DAYS, 10_000))
    now = days(rng, 1, 9_900)[0]
    now[40] += 100
    found = made.worst(expected, rows, now)
    assert (found.name, found.first, found.stop, found.side) == (LARGEST_CELL, 40, 41, -1)
    assert found.share == pytest.approx(now[40] / 10_000)
    assert found.change == pytest.approx(found.share - expected[40])
    assert found.ratio > 1


@pytest.mark.parametrize(("bin_", "name", "side"), [(0, LOW_TAIL, 1), (BINS - 1, HIGH_TAIL, 1)])
def test_what_lies_beyond_the_reference_is_a_tail_or_a_bin(bin_, name, side):
    rng = np.random.default_rng(2)
    made, expected, rows = limits(days(rng, DAYS, 10_000))
    now = days(rng, 1, 9_940)[0]
    now[bin_] += 60
    found = made.worst(expected, rows, now)
    assert found.ratio > 1
    assert found.name in {name, LARGEST_CELL}
    assert (found.first, found.stop, found.side) == (bin_, bin_ + 1, side)


def test_a_distribution_that_is_wider_or_narrower_is_seen_by_its_outside():
    rng = np.random.default_rng(3)
    made, expected, rows = limits(days(rng, DAYS, 10_000))
    for factor, side in ((1.3, 1), (0.7, -1)):
        wide = SHARES.copy()
        wide[1:11] *= factor
        wide[-11:-1] *= factor
        wide[11:-11] *= (1 - wide[1:11].sum() - wide[-11:-1].sum()) / wide[11:-11].sum()
        found = made.worst(expected, rows, days(rng, 1, 10_000, shares=wide / wide.sum())[0])
        assert (found.name, found.side) == (OUTSIDE, side)
        assert found.ratio > 1


def bursts(rng, many, rows):
    """Days of which one in fourteen has 1 to 3 % of its rows in the highest bins that are used."""
    found = days(rng, many, rows)
    for day in range(0, many, 14):
        found[day, BINS - 2] += int(rng.uniform(0.01, 0.03) * rows)
    return found


def test_a_record_is_judged_as_part_of_a_tail_whose_days_were_seen():
    """What no day had is empty in the reference, and bursts just below it were nothing unusual."""
    rng = np.random.default_rng(11)
    inside = bursts(rng, DAYS, 5_000)
    inside[:, BINS - 2] -= np.minimum(inside[:, BINS - 2], 60)  # so that a tail is rare in all
    restless, calm = limits(inside), limits(days(rng, DAYS, 5_000))

    def record(rows):
        now = days(np.random.default_rng(12), 1, 5_000 - rows)[0]
        now[BINS - 1] += rows
        return now

    assert ratio(restless, record(20)) < 1
    assert ratio(restless, record(1_000)) > 1
    assert ratio(calm, record(30)) > 1


def test_nulls_that_come_and_nulls_that_go():
    rng = np.random.default_rng(3)
    made, expected, rows = limits(days(rng, DAYS, 2_000, nulls=0.1))
    for share, side in ((0.2, 1), (0.01, -1)):
        found = made.worst(expected, rows, days(rng, 1, 2_000, nulls=share)[0])
        assert (found.name, found.first, found.side) == (EMPTY, BINS, side)
        assert found.ratio > 1
        assert found.change == pytest.approx(abs(found.share - found.was))


def test_a_share_that_moves_every_day_may_move():
    """Days whose nulls are anything from 0 to 20 %: 20 % is no news, and 60 % is."""
    rng = np.random.default_rng(4)
    shares = rng.uniform(0, 0.2, DAYS)
    known = limits(np.concatenate([days(rng, 1, 2_000, nulls=share) for share in shares]))
    assert ratio(known, days(rng, 1, 2_000, nulls=0.2)[0]) < 1
    assert ratio(known, days(rng, 1, 2_000, nulls=0.6)[0]) > 1


def test_a_reference_whose_every_day_brought_news_expects_some():
    """Each day has a tenth of its rows where no other has any."""
    inside = np.zeros((10, 13), np.int64)
    inside[:, 0] = 900
    inside[np.arange(10), np.arange(1, 11)] = 100
    edges = ColumnEdges(ColumnKind.CATEGORICAL, categories=("a",) * 11)
    now = np.zeros(13, np.int64)
    now[0], now[11] = 900, 100
    assert ratio(limits(inside, edges), now) < 1
    calm = np.tile(inside.mean(axis=0).astype(np.int64), (10, 1))
    assert ratio(limits(calm, edges), now) > 1


def test_days_that_were_beyond_a_limit_raise_it():
    """A tenth of the rows is in one bin a day, another each day: so it is every day."""
    rng = np.random.default_rng(7)
    found = days(rng, DAYS + 20, 2_000)
    found[np.arange(len(found)), rng.integers(1, BINS - 1, len(found))] += 200
    known = limits(found[:DAYS])
    assert sum(ratio(known, one) > 1 for one in found[DAYS:]) <= 1
    assert known[0].times[0] > 1


def test_no_rows_are_no_change():
    made, expected, rows = limits(days(np.random.default_rng(6), DAYS, 1000))
    assert made.worst(expected, rows, np.zeros(BINS + 1, np.int64)) is None
    assert made.worst(expected, 0.0, np.ones(BINS + 1, np.int64)) is None
