"""The simulated world of `benchmarks/detection.py` is that of rows: same counts, same profiles."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats as sp

from benchmarks.detection import SURE, fewest, likely
from benchmarks.detection_peers import Peers
from benchmarks.detection_world import (
    GRID,
    NAMES,
    NUMERIC,
    SHARES,
    SHIFTS,
    SPIKE_AT,
    Column,
    World,
    shares,
)
from steadfeast.monitor.profiles.profile import profile

ROWS = 200_000
DRAWS = {
    "": lambda rng: rng.normal(0, 1, ROWS),
    "mean +.25 sd": lambda rng: rng.normal(0.25, 1, ROWS),
    "sd x 1.1": lambda rng: rng.normal(0, 1.1, ROWS),
    "1 % tail x 10": lambda rng: rng.normal(0, 1, ROWS) * np.where(rng.random(ROWS) < 0.01, 10, 1),
    "1 % spike": lambda rng: np.where(rng.random(ROWS) < 0.01, SPIKE_AT, rng.normal(0, 1, ROWS)),
}


@pytest.mark.parametrize("what", DRAWS)
def test_chances_of_bins_are_those_of_rows(what):
    """Chi-square of rows, drawn and counted by numpy, against the chances: no worse than chance."""
    cuts = np.linspace(-3, 3, 40)
    drawn = DRAWS[what](np.random.default_rng(len(what)))
    counts = np.bincount(np.searchsorted(cuts, drawn), minlength=41)
    expected = shares(cuts, np.zeros(1), what)[0] * ROWS
    assert expected.sum() == pytest.approx(ROWS)
    assert sp.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 1e-3


def test_a_profile_of_counts_is_the_profile_of_rows_with_those_counts():
    world = World(2000, 0.03, (7,))
    [day] = world.days(0, 1, shifted=True)
    rng = np.random.default_rng(0)
    made = day.profile()
    for i in (0, 26, 31, 40, 45):
        name, edges = NAMES[i], world.edges.columns[NAMES[i]]
        counts = day.columns[i].ours
        if i < NUMERIC:
            bounds = np.array([edges.cuts[0] - 1, *edges.cuts, edges.cuts[-1] + 1])
            # In `(low, high]`, as bins are.
            values = np.repeat(bounds[1:], counts) - rng.random(counts.sum()) * 0.999 * np.repeat(
                np.diff(bounds), counts
            )
            values = np.maximum(values, np.nextafter(np.repeat(bounds[:-1], counts), np.inf))
            values = [*values.tolist(), *[None] * day.columns[i].nulls]
        else:
            names = [*edges.categories, "new"]
            values = [names[j] for j in np.repeat(np.arange(len(counts)), counts)]
        table = pa.table({one: pa.array(values) for one in [name]})
        found = profile(table.to_batches(), world.edges).columns[name]
        assert (found.counts == made.columns[name].counts).all()
        assert (found.rows, found.nulls) == (made.columns[name].rows, made.columns[name].nulls)


def test_days_follow_from_the_seed_and_shifts_touch_their_features_only():
    world = World(1000, 0.0, (1,))
    one, again = world.days(3, 2), World(1000, 0.0, (1,)).days(3, 2)
    assert all(
        (a.ours == b.ours).all() for a, b in zip(one[0].columns, again[0].columns, strict=True)
    )
    touched = {i for at in SHIFTS.values() for i in at}
    assert len(touched) == 45
    [day] = world.days(0, 1, shifted=True)
    new = [sum(c.ours[len(c.ours) - 1 :]) for c in day.columns[45:]]
    assert all(0 < count < 30 for count in new)
    assert all(day.columns[i].ours[-1] == 0 for i in range(40, 45))


def test_the_peers_formulas_on_a_case_by_hand():
    rng = np.random.default_rng(2)

    def column(values):
        counts = np.bincount(np.searchsorted(GRID, values), minlength=len(GRID) + 1)
        return Column(counts, counts, 0)

    days = [column(rng.normal(0, 1, 5000)) for _ in range(20)]
    peers = Peers.fit(days, numeric=True)
    ks, psi1, psi2, mean, evidently, _ = peers.flags(column(rng.normal(0.12, 1, 5000)))
    assert (ks, psi1, psi2, mean, evidently) == (True, False, False, True, True)
    assert not any(peers.flags(column(rng.normal(0.0, 1, 5000)))[1:])
    kinds = [Column(*[rng.multinomial(5000, SHARES)] * 2, 0) for _ in range(20)]
    swapped = Column(*[rng.multinomial(5000, 0.5 * SHARES + 0.5 / 12)] * 2, 0)
    assert Peers.fit(kinds, numeric=False).flags(swapped)[4:] == (True, True)


@pytest.mark.parametrize("found", [0, 1, 3, 17])
def test_a_quick_run_fails_where_so_many_are_hardly_chance(found):
    """The bounds, against the distributions themselves: scipy's Poisson and binomial."""
    if found:
        assert sp.poisson.sf(found - 1, fewest(found)) == pytest.approx((1 - SURE) / 9)
    assert fewest(0) == 0
    hits = np.arange(20) < found
    assert sp.binom.cdf(found, 20, likely(hits)) == pytest.approx(1 - SURE)
    assert likely(np.ones(15, bool)) == 1
