"""Distances against scipy, closed forms and the laws that they must obey."""

import math
from importlib.metadata import EntryPoint, EntryPoints

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import spatial
from scipy import stats as sp

from steadfeast.featurestore.errors import NotFoundError
from steadfeast.monitor.drift import distances
from steadfeast.monitor.drift.distances import (
    STATISTICS,
    BinMismatchError,
    EmptyWindowError,
    Statistic,
    chi_square,
    cramer_von_mises,
    g_test,
    hellinger,
    jensen_shannon,
    ks,
    psi,
    statistic,
    total_variation,
    wasserstein,
)

BINS = 8
POSITIONS = np.cumsum([0.5, 1, 2, 0.1, 3, 1, 1, 7])

counts = st.lists(st.integers(0, 10**6), min_size=BINS, max_size=BINS)
histogram = counts.filter(any).map(np.array)
every = pytest.mark.parametrize("one", STATISTICS.values(), ids=STATISTICS)

UPPER = {
    "jensen_shannon": math.log(2),
    "ks": 1,
    "hellinger": 1,
    "total_variation": 1,
    "cramer_von_mises": 2 / 3,
}


@every
@given(p=histogram, q=histogram)
def test_every_statistic_is_zero_on_itself_symmetric_and_within_its_range(one, p, q):
    assert one.measure(p, p, POSITIONS) == pytest.approx(0, abs=1e-12)
    many = 10**6 * p  # a pseudo-count weighs nothing among so many
    assert one.measure(many, 3 * many, POSITIONS) == pytest.approx(0, abs=1e-4)
    value = one.measure(p, q, POSITIONS)
    assert 0 <= value < math.inf
    assert value <= UPPER.get(one.name, math.inf) + 1e-12
    if one.name != "wasserstein":  # its unit is the reference's spread
        assert value == pytest.approx(one.measure(q, p, POSITIONS), abs=1e-12)


@every
def test_what_cannot_be_compared_is_an_error(one):
    some = np.ones(BINS)
    for side, (left, right) in {
        "reference": (np.zeros(BINS), some),
        "current": (some, np.zeros(BINS)),
    }.items():
        with pytest.raises(EmptyWindowError) as error:
            one.measure(left, right, POSITIONS)
        assert error.value.side == side
    for bad in (np.nan, np.inf, -1):
        broken = some.copy()
        broken[2] = bad
        with pytest.raises(EmptyWindowError):
            one.measure(some, broken, POSITIONS)
    with pytest.raises(BinMismatchError) as error:
        one.measure(some, np.ones(BINS + 1), POSITIONS)
    assert (error.value.reference, error.value.current) == ((BINS,), (BINS + 1,))
    with pytest.raises(EmptyWindowError):
        one.measure(np.ones(0), np.ones(0), np.ones(0))


def test_wasserstein_wants_a_position_per_bin():
    with pytest.raises(BinMismatchError):
        wasserstein(np.ones(BINS), np.ones(BINS), POSITIONS[1:])


def normal_counts(mean, sd=1.0, rows=1e9):
    edges = np.linspace(-9, 10, 800)
    return rows * np.diff(sp.norm.cdf(edges, mean, sd)), (edges[1:] + edges[:-1]) / 2


@pytest.mark.parametrize("shift", [0.1, 0.5, 1.0])
def test_a_shifted_normal_has_the_values_that_analysis_gives(shift):
    """Closed forms for N(0, 1) against N(shift, 1)."""
    p, at = normal_counts(0)
    q, _ = normal_counts(shift)
    assert psi(p, q) == pytest.approx(shift**2, rel=2e-3)
    assert hellinger(p, q) == pytest.approx(math.sqrt(1 - math.exp(-(shift**2) / 8)), rel=1e-3)
    assert total_variation(p, q) == pytest.approx(2 * sp.norm.cdf(shift / 2) - 1, rel=1e-3)
    assert ks(p, q) == pytest.approx(2 * sp.norm.cdf(shift / 2) - 1, rel=1e-3)
    assert wasserstein(p, q, at) == pytest.approx(shift, rel=1e-3)
    # Independent of the code: the squared gap of the CDFs, averaged over both densities.
    fine = np.linspace(-12, 13, 200_001)
    gap = (sp.norm.cdf(fine) - sp.norm.cdf(fine, shift)) ** 2
    density = (sp.norm.pdf(fine) + sp.norm.pdf(fine, shift)) / 2
    assert cramer_von_mises(p, q) == pytest.approx(np.trapezoid(gap * density, fine), rel=1e-2)


def test_psi_of_a_unit_shift_is_one():
    """N(0, 1) against N(1, 1) has J-divergence exactly 1."""
    edges = np.linspace(-6, 7, 200)
    p, q = (1e9 * np.diff(sp.norm.cdf(edges, loc=mean)) for mean in (0, 1))
    assert psi(p, q) == pytest.approx(1, abs=1e-3)


def test_psi_of_an_empty_bin_is_finite_and_falls_with_the_prior():
    p, q = np.array([500, 500]), np.array([0, 1000])
    assert math.inf > psi(p, q) > psi(p, q, prior=5) > 1


@given(histogram, histogram)
def test_scipy_agrees(p, q):
    shares = p / p.sum(), q / q.sum()
    assert jensen_shannon(p, q) == pytest.approx(
        spatial.distance.jensenshannon(*shares) ** 2, abs=1e-9
    )
    at = np.arange(BINS)
    spread = math.sqrt(np.average((at - np.average(at, weights=p)) ** 2, weights=p)) or 1
    expected = sp.wasserstein_distance(at, at, p, q) / spread
    assert wasserstein(p, q, at.astype(float)) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(histogram, histogram)
def test_chi_square_and_g_are_scipys_two_sample_tests_as_effect_sizes(p, q):
    table = np.array([p, q])
    table = table[:, table.sum(axis=0) > 0]
    n, m = p.sum(), q.sum()
    if table.shape[1] < 2:
        assert chi_square(p, q) == g_test(p, q) == 0
        return
    size = n * m / (n + m)
    for ours, kind in ((chi_square, "pearson"), (g_test, "log-likelihood")):
        found = sp.chi2_contingency(table, correction=False, lambda_=kind).statistic
        assert ours(p, q) == pytest.approx(found / size, rel=1e-7, abs=1e-9)


values = st.lists(st.integers(0, BINS - 1), min_size=5, max_size=40)


@given(values, values)
def test_raw_rows_in_scipys_tests_give_the_same_as_their_counts(a, b):
    """With one bin per value nothing is lost by counting."""
    p, q = (np.bincount(rows, minlength=BINS) for rows in (a, b))
    assert ks(p, q) == pytest.approx(sp.ks_2samp(a, b, method="asymp").statistic, abs=1e-12)
    size = len(a)
    b = (b * size)[:size]  # of equal sizes ours is scipy's statistic, midranks aside
    q = np.bincount(b, minlength=BINS)
    gaps = [np.mean(np.array(a) <= x) - np.mean(np.array(b) <= x) for x in a + b]
    assert cramer_von_mises(p, q) == pytest.approx(np.mean(np.square(gaps)), abs=1e-12)


def test_cramer_von_mises_is_scipys_without_ties():
    a, b = np.split(np.random.default_rng(8).permutation(200), 2)
    counted = (np.bincount(side, minlength=200) for side in (a, b))
    expected = sp.cramervonmises_2samp(a, b).statistic / (100 * 100 / 200)
    # Anderson's U has a constant of its own: 1/6 of 1/size, and 1/(6 N) by the midpoint rule.
    assert cramer_von_mises(*counted) == pytest.approx(expected, abs=1e-2)


@given(histogram, histogram)
def test_the_metrics_bound_each_other(p, q):
    """KS <= TV, and Le Cam: H^2 <= TV <= H sqrt(2)."""
    h, tv = hellinger(p, q), total_variation(p, q)
    assert ks(p, q) <= tv + 1e-9
    assert h**2 - 1e-9 <= tv <= h * math.sqrt(2) + 1e-9


def test_the_name_is_the_key_and_an_unknown_name_is_told_the_known():
    assert all(one.name == name for name, one in STATISTICS.items())
    assert statistic("psi") is STATISTICS["psi"]
    with pytest.raises(NotFoundError, match="psi"):
        statistic("psy")


def second_moment(reference, current):
    return float(abs(reference.argmax() - current.argmax()))


WHOLE = Statistic("whole", second_moment, unit="bins", ordered=True)


def test_a_statistic_of_ones_own_is_found_by_its_entry_point(monkeypatch):
    """The lookup is real; only the installed packages' list is stood in for."""
    points = EntryPoints(
        [
            EntryPoint("mine", f"{__name__}:second_moment", distances.GROUP),
            EntryPoint("whole", f"{__name__}:WHOLE", distances.GROUP),
        ]
    )
    monkeypatch.setattr(distances, "entry_points", points.select)
    monkeypatch.setitem(
        __import__("sys").modules,
        __name__,
        __import__("types").SimpleNamespace(second_moment=second_moment, WHOLE=WHOLE),
    )
    mine = statistic("mine")
    assert mine.measure(np.array([3, 0, 0]), np.array([0, 0, 3]), np.arange(3.0)) == 2
    assert statistic("whole") is WHOLE
