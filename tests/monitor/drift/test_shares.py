"""Single cells, tails, nulls: what they promise, on counts whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as sp

from steadfeast.monitor.drift.shares import (
    CELL_FLOOR,
    EMPTY,
    HIGH_TAIL,
    LARGEST_CELL,
    LOW_TAIL,
    _rare,
    clustered_floors,
    tails,
    tolerance,
    usual_floors,
)
from steadfeast.monitor.profiles.binning import ColumnEdges, Kind

BINS = 102
"""One empty bin at either end, a hundred of one percent between."""
SHARES = np.array([0, *[0.01] * 100, 0])
NUMERIC = ColumnEdges(Kind.NUMERIC, cuts=tuple(map(float, range(BINS - 1))), groups=(0,))
CHANCES = (1e-3, 1e-3, 1e-3)


def days(rng, many, rows, *, nulls=0.0, shares=SHARES):
    empty = rng.binomial(rows, nulls, many)
    return np.column_stack([rng.multinomial(rows - empty, shares), empty])


def calibrated(rng, rows, *, freedom=49.0, floors=(), **options):
    inside = days(rng, 56, rows, **options)
    outside = inside.sum(axis=0) - inside
    ends = tails(NUMERIC, inside[:, :-1].sum(axis=0))
    made = tolerance(inside, outside, ends=ends, floors=floors, freedom=freedom, chances=CHANCES)
    return made, inside.sum(axis=0)


@pytest.mark.parametrize("rows", [300, 3000, 30_000])
def test_where_nothing_happens_a_look_is_over_about_as_often_as_asked(rows):
    """Three looks that can be over, a thousandth each: between none of them and twice that."""
    rng = np.random.default_rng(rows)
    zero = tuple([0.0] * (BINS + 3))
    made, reference = calibrated(rng, rows, nulls=0.05, floors=zero)
    over = np.mean(
        [made.worst(reference, one).ratio > 1 for one in days(rng, 4000, rows, nulls=0.05)]
    )
    assert over < 2 * 3e-3
    if rows > 1000:
        assert over > 0.5e-3


@pytest.mark.parametrize("expected", [0.5, 3.0, 40.0, 2000.0])
def test_the_limit_of_a_share_is_the_binomial_quantile_or_a_little_more(expected):
    """One cell of a reference so large that only the window counts."""
    rows = 100_000
    share = expected / rows
    made = tolerance(
        np.array([[0, rows, 0, 0]] * 10),
        np.array([[0, 9 * rows, 0, 0]] * 10),
        ends=(1, 2),
        floors=(0.0,) * 6,
        freedom=49.0,
        chances=(1e-4, 1e-4, 1e-4),
    )
    was = np.array([0, 1 - share, share, 0, 0, 0])
    big, now = np.full(6, 1e12), np.full(6, float(rows))
    limit = (share + made.allowed(was, big, now)[2]) * rows
    exact = sp.binom.isf(1e-4, rows, share)
    assert exact - 0.5 <= limit <= exact + max(4, 0.05 * exact)


def test_one_percent_in_one_cell_is_seen_and_named():
    rng = np.random.default_rng(1)
    made, reference = calibrated(rng, 10_000)
    now = days(rng, 1, 9_900)[0]
    now[40] += 100
    look = made.worst(reference, now)
    assert (look.name, look.first, look.stop) == (LARGEST_CELL, 40, 41)
    assert look.share == pytest.approx(now[40] / 10_000)
    assert look.change == pytest.approx(look.share - reference[40] / reference.sum())
    assert look.ratio > 1


@pytest.mark.parametrize(("bin_", "name"), [(0, LOW_TAIL), (BINS - 1, HIGH_TAIL)])
def test_what_lies_beyond_the_reference_is_a_tail_or_a_cell(bin_, name):
    rng = np.random.default_rng(2)
    made, reference = calibrated(rng, 10_000)
    now = days(rng, 1, 9_960)[0]
    now[bin_] += 40
    look = made.worst(reference, now)
    assert look.ratio > 1
    assert look.name in {name, LARGEST_CELL}
    assert (look.first, look.stop) == (bin_, bin_ + 1)


def bursts(rng, many, rows):
    """Days of which one in fourteen has 1 to 3 % of its rows in the highest bins that are used."""
    found = days(rng, many, rows)
    for day in np.flatnonzero(rng.random(many) < 1 / 14):
        found[day, BINS - 2] += int(rng.uniform(0.01, 0.03) * rows)
    return found


def test_a_record_is_judged_as_part_of_a_tail_whose_days_were_seen():
    """What no day had is empty in the reference, and bursts just below it were nothing unusual."""
    rng = np.random.default_rng(11)
    inside = bursts(rng, 56, 5_000)
    inside[:, BINS - 2] -= np.minimum(inside[:, BINS - 2], 60)  # so that a tail is rare in all
    ends = tails(NUMERIC, inside[:, :-1].sum(axis=0))
    outside = inside.sum(axis=0) - inside
    made = tolerance(inside, outside, ends=ends, floors=(), freedom=49.0, chances=CHANCES)
    calm, reference = calibrated(rng, 5_000)

    def record(rows):
        now = days(np.random.default_rng(12), 1, 5_000 - rows)[0]
        now[BINS - 1] += rows
        return now

    assert made.worst(inside.sum(axis=0), record(100)).ratio < 1
    assert made.worst(inside.sum(axis=0), record(1_000)).ratio > 1
    assert calm.worst(reference, record(30)).ratio > 1


@pytest.mark.parametrize("chance", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("skew", [2.5, 6.0, 30.0])
def test_a_tail_that_is_empty_at_most_times_has_scipys_pearson_quantile(skew, chance):
    variance = 0.002**2
    found = _rare(np.array([variance]), np.array([skew * 0.002]), sp.norm.isf([chance]))
    assert found == pytest.approx(0.002 * sp.pearson3.isf(chance, skew), rel=1e-4, abs=1e-9)
    assert _rare(np.array([variance]), np.array([0.002]), sp.norm.isf([chance])) == np.inf


def test_nulls_that_come_and_nulls_that_go():
    rng = np.random.default_rng(3)
    made, reference = calibrated(rng, 2_000, nulls=0.1)
    for share in (0.15, 0.05):
        look = made.worst(reference, days(rng, 1, 2_000, nulls=share)[0])
        assert (look.name, look.first) == (EMPTY, BINS)
        assert look.ratio > 1
        assert look.change == pytest.approx(abs(look.share - look.was))


def test_a_share_that_moves_every_day_may_move():
    """Days whose nulls are anything from 0 to 20 %: 20 % is no news, and 60 % is."""
    rng = np.random.default_rng(4)
    inside = np.concatenate([days(rng, 1, 2_000, nulls=share) for share in rng.uniform(0, 0.2, 56)])
    outside = inside.sum(axis=0) - inside
    made = tolerance(inside, outside, ends=(1, BINS - 1), floors=(), freedom=49.0, chances=CHANCES)
    reference = inside.sum(axis=0)
    assert made.worst(reference, days(rng, 1, 2_000, nulls=0.2)[0]).ratio < 1
    assert made.worst(reference, days(rng, 1, 2_000, nulls=0.6)[0]).ratio > 1


def test_a_reference_whose_every_week_brought_news_expects_some():
    """Each stretch has a tenth of its rows where no other has any."""
    inside = np.zeros((10, 13), np.int64)
    inside[:, 0] = 900
    inside[np.arange(10), np.arange(1, 11)] = 100
    outside = inside.sum(axis=0) - inside
    unordered = tails(ColumnEdges(Kind.CATEGORICAL, categories=("a",) * 11), inside[0, :-1])
    assert unordered == (0, 12)
    made = tolerance(inside, outside, ends=unordered, floors=(), freedom=9.0, chances=CHANCES)
    now = np.zeros(13, np.int64)
    now[0], now[11] = 900, 100
    assert made.worst(inside.sum(axis=0), now).ratio < 1
    calm = np.tile(inside.mean(axis=0).astype(np.int64), (10, 1))
    strict = tolerance(calm, 9 * calm, ends=unordered, floors=(), freedom=9.0, chances=CHANCES)
    assert strict.worst(calm.sum(axis=0), now).ratio > 1


def test_few_stretches_make_the_limit_wide_where_they_are_what_it_rests_on():
    rng = np.random.default_rng(5)
    inside = np.concatenate([days(rng, 1, 2_000, nulls=share) for share in rng.uniform(0, 0.2, 56)])
    outside = inside.sum(axis=0) - inside

    def spread(freedom):
        made = tolerance(
            inside, outside, ends=(1, BINS - 1), floors=(), freedom=freedom, chances=CHANCES
        )
        return np.array(made.spread)

    assert spread(5.0)[-1] > 1.4 * spread(50.0)[-1]
    assert spread(50.0)[-1] == pytest.approx(0.2 / np.sqrt(12), rel=0.3)


def test_no_rows_are_no_look():
    made, reference = calibrated(np.random.default_rng(6), 1000)
    assert made.worst(reference, np.zeros_like(reference)) is None
    assert made.worst(np.zeros_like(reference), reference) is None


def test_entities_raise_the_floors_up_to_a_tenth():
    pairs = np.zeros(BINS + 1)
    assert clustered_floors(pairs, 1, BINS - 1) == ()
    pairs[3], pairs[4] = 0.01**2, 0.4**2
    found = np.array(clustered_floors(pairs, 1, BINS - 1))
    assert found[3] == pytest.approx(0.02)
    assert found[4] == 0.1
    assert found[5] == CELL_FLOOR == usual_floors(BINS)[5]
