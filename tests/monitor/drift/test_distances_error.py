"""Every statistic over the bins that are used, against its exact value on the raw rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats as sp

from steadfeast.monitor.drift.distances import STATISTICS, statistic
from steadfeast.monitor.drift.thresholds import distance
from steadfeast.monitor.profiles.binning import edges_of
from steadfeast.monitor.profiles.profile import profile

ROWS = 100_000
MOVES = [(0, 1), (0.1, 1), (0.25, 1), (0, 1.1), (1, 1)]
CONTINUOUS = ("normal", "lognormal", "exponential", "heavy")
MASSED = ("rain", "integers")
PER_BIN = ("psi", "jensen_shannon", "hellinger", "total_variation", "chi_square", "g_test")


def rows(seed: int, shift: float = 0, scale: float = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "normal": rng.normal(shift, scale, ROWS),
        "lognormal": rng.lognormal(shift, scale, ROWS),
        "exponential": rng.exponential(scale * (1 + shift), ROWS),
        "heavy": sp.t.rvs(3, size=ROWS, random_state=rng) * scale + shift,
        "rain": np.where(rng.random(ROWS) < 0.93 - 0.3 * shift, 0, rng.exponential(scale, ROWS)),
        "integers": rng.poisson(4 * scale + shift, ROWS).astype(float),
    }


@pytest.fixture(scope="module")
def reference():
    raw = rows(1)
    table = pa.table(raw)
    edges = edges_of(table, list(raw))
    return raw, edges, profile(table.to_batches(), edges)


@pytest.fixture(scope="module", params=MOVES)
def both(request, reference):
    """Raw rows of both sides, and what ours makes of them: `(feature, statistic) -> value`."""
    raw, edges, old = reference
    moved = rows(2, *request.param)
    new = profile(pa.table(moved).to_batches(), edges)

    def ours(feature, name):
        found = edges.columns[feature]
        sides = old.columns[feature], new.columns[feature]
        low, high = min(one.minimum for one in sides), max(one.maximum for one in sides)
        at = found.positions(low, high)
        return distance(statistic(name), found, sides[0].counts, sides[1].counts, at)

    return raw, moved, ours


def deciles(name, a, b):
    cuts = np.unique(np.quantile(a, np.arange(1, 10) / 10, method="inverted_cdf"))
    p, q = (np.bincount(np.searchsorted(cuts, side), minlength=len(cuts) + 1) for side in (a, b))
    held = (p + q) > 0
    return statistic(name).measure(p[held], q[held], np.arange(held.sum(), dtype=float))


@pytest.mark.parametrize("name", PER_BIN)
def test_what_sums_a_cost_per_bin_is_that_of_the_deciles(both, name):
    raw, moved, ours = both
    for feature in CONTINUOUS:
        exact = deciles(name, raw[feature], moved[feature])
        assert ours(feature, name) == pytest.approx(exact, rel=0.005, abs=2e-5)
    for feature in MASSED:
        exact = deciles(name, raw[feature], moved[feature])
        assert ours(feature, name) >= 0.98 * exact - 2e-5
        assert ours(feature, name) <= 1.1 * exact + 0.02


def test_ks_is_below_by_a_thousandth_at_most(both):
    raw, moved, ours = both
    for feature, a in raw.items():
        exact = sp.ks_2samp(a, moved[feature], method="asymp").statistic
        assert exact - 0.001 <= ours(feature, "ks") <= exact + 1e-12


def test_cramer_von_mises(both):
    raw, moved, ours = both
    for feature, a in raw.items():
        b, pooled = moved[feature], np.concatenate([a, moved[feature]])
        gap = [np.searchsorted(np.sort(side), pooled, side="right") / ROWS for side in (a, b)]
        exact = np.mean((gap[0] - gap[1]) ** 2)
        assert ours(feature, "cramer_von_mises") == pytest.approx(exact, rel=0.02, abs=2e-6)


def test_wasserstein(both):
    raw, moved, ours = both
    for feature, a in raw.items():
        exact = sp.wasserstein_distance(a, moved[feature]) / a.std()
        most = 0.4 if feature == "heavy" else 0.05
        assert ours(feature, "wasserstein") == pytest.approx(exact, rel=most, abs=1e-3)


def test_every_statistic_is_here():
    assert set(STATISTICS) == {*PER_BIN, "ks", "wasserstein", "cramer_von_mises"}
