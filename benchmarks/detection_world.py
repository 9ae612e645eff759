"""Fifty features that breathe with the week, drawn as counts; for `benchmarks/detection.py`.

A day of `n` rows of a feature whose distribution is known is a multinomial draw of `n` over its
bins: drawing rows and counting them is the same experiment, and takes a thousand times as long.
Numeric features are drawn over the union of our cuts and an even grid, so that the peers' rules,
which cut elsewhere, see the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.special import ndtr

from steadfeast.monitor.profiles import ColumnEdges, ColumnProfile, Edges, Profile, edges_of

if TYPE_CHECKING:
    from collections.abc import Mapping

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

START = datetime(2024, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
NUMERIC, CATEGORICAL = 40, 10
NAMES = tuple(f"n{i:02d}" for i in range(NUMERIC)) + tuple(f"c{i}" for i in range(CATEGORICAL))
SHARES = 1 / np.arange(1, 13)
SHARES /= SHARES.sum()
WEEK = 0.1
"""Amplitude of the weekly season, in standard deviations."""
GRID = np.linspace(-6, 6, 61)
SPIKE_AT = 0.7
EDGE_ROWS = 50_000

SHIFTS: Mapping[str, tuple[int, ...]] = {
    "mean +.1 sd": tuple(range(5)),
    "mean +.25 sd": tuple(range(5, 10)),
    "mean +.5 sd": tuple(range(10, 15)),
    "sd x 1.1": tuple(range(15, 20)),
    "1 % tail x 10": tuple(range(20, 25)),
    "1 % spike": tuple(range(25, 30)),
    "nulls 0 -> 5 %": tuple(range(30, 35)),
    "5 % swap of 12 categories": tuple(range(NUMERIC, NUMERIC + 5)),
    "new category 1 %": tuple(range(NUMERIC + 5, NUMERIC + 10)),
}
"""Which five features each shift is done to; features 35 to 39 are left alone."""


@dataclass(frozen=True)
class World:
    """A run of days.

    Attributes:
        rows: A day.
        jitter: Standard deviation of a day's mean about its season, in standard deviations.
        seed: Everything follows from it.
    """

    rows: int
    jitter: float
    seed: tuple[int, ...]

    @cached_property
    def edges(self) -> Edges:
        """Our binning, made from rows as the store's would be."""
        rng = np.random.default_rng([*self.seed, 0])
        week = WEEK * np.sin(2 * np.pi * np.arange(EDGE_ROWS) / 7)
        table = {}
        for name in NAMES:
            if name[0] == "n":
                mean = week + self.jitter * rng.standard_normal(EDGE_ROWS // 50).repeat(50)
                table[name] = pa.array(mean + rng.standard_normal(EDGE_ROWS))
            else:
                drawn = rng.choice(12, EDGE_ROWS, p=SHARES)
                table[name] = pa.array([f"v{i}" for i in drawn])
        return edges_of(pa.table(table), NAMES)

    def days(self, first: int, many: int, *, shifted: bool = False, run: int = 0) -> list[Day]:
        """Draw days; the same arguments give the same days.

        Args:
            first: Number of the first; its weekday follows from it.
            many: How many.
            shifted: With everything in `SHIFTS` done to its features.
            run: Another number, other days.
        """
        rng = np.random.default_rng([*self.seed, 1, first, many, run])
        season = WEEK * np.sin(2 * np.pi * (np.arange(first, first + many) % 7) / 7)
        columns = []
        for i, name in enumerate(NAMES):
            what = next((what for what, at in SHIFTS.items() if i in at), "") if shifted else ""
            means = season + self.jitter * rng.standard_normal(many)
            draw = _numeric if name[0] == "n" else _categorical
            columns.append(draw(rng, self.edges.columns[name], means, self.rows, what))
        return [Day(self.edges, self.rows, [one[day] for one in columns]) for day in range(many)]


@dataclass(frozen=True)
class Column:
    """One feature on one day.

    Attributes:
        ours: Counts over our bins.
        even: Counts over `GRID`; for categories, over the twelve and the new one.
        nulls: Rows without a value.
    """

    ours: Counts
    even: Counts
    nulls: int


@dataclass(frozen=True)
class Day:
    """One day of all features."""

    edges: Edges
    rows: int
    columns: list[Column]

    def profile(self) -> Profile:
        """Return what profiling the rows would give; moments, which decide nothing, are left 0."""
        columns = {
            name: ColumnProfile(self.rows, one.nulls, 0, 0, 0, None, None, 0.0, 0.0, one.ours)
            for name, one in zip(NAMES, self.columns, strict=True)
        }
        return Profile(self.edges, self.rows, columns, {})


def shares(cuts: Floats, means: Floats, what: str) -> Floats:
    """Return the chance of each bin between `cuts`, a row per mean; shape (days, cuts + 1)."""
    by = {"mean +.1 sd": 0.1, "mean +.25 sd": 0.25, "mean +.5 sd": 0.5}.get(what, 0.0)
    scale = 1.1 if what == "sd x 1.1" else 1.0
    below = ndtr((cuts - means[:, None] - by) / scale)
    if what == "1 % tail x 10":
        below = 0.99 * below + 0.01 * ndtr((cuts - means[:, None]) / 10)
    if what == "1 % spike":
        below = 0.99 * below + 0.01 * (cuts >= SPIKE_AT)
    return np.maximum(np.diff(below, prepend=0, append=1, axis=1), 0)  # rounding may go below


def _numeric(
    rng: np.random.Generator, edges: ColumnEdges, means: Floats, rows: int, what: str
) -> list[Column]:
    ours = np.array(edges.cuts)
    cuts = np.union1d(ours, GRID)
    nulls = rng.binomial(rows, 0.05, len(means)) if what.startswith("nulls") else [0] * len(means)
    drawn = rng.multinomial(rows - np.array(nulls), shares(cuts, means, what))
    by_ours, by_even = (
        np.add.reduceat(drawn, np.append(0, np.searchsorted(cuts, one) + 1), axis=1)
        for one in (ours, GRID)
    )
    return [Column(*day) for day in zip(by_ours, by_even, map(int, nulls), strict=True)]


def _categorical(
    rng: np.random.Generator, edges: ColumnEdges, means: Floats, rows: int, what: str
) -> list[Column]:
    tilt = np.log(SHARES) - SHARES @ np.log(SHARES)
    tilt /= np.sqrt(SHARES @ tilt**2)
    chance = SHARES * np.exp(means[:, None] * tilt)
    chance /= chance.sum(axis=1, keepdims=True)
    if what.startswith("5 % swap"):
        chance = 0.95 * chance + 0.05 / 12
    chance = np.append(chance, np.zeros((len(means), 1)), axis=1)
    if what.startswith("new category"):
        chance *= 0.99
        chance[:, -1] = 0.01
    drawn = rng.multinomial(rows, chance)
    places = [*(int(name[1:]) for name in edges.categories), 12]
    return [Column(day[places], day, 0) for day in drawn]
