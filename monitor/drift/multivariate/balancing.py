"""Two samples of rows, made equal in every column: what is left is how columns hang together.

Above `monitor.profiles.binning`, below `monitor.drift.multivariate.domain_classifier`, which
compares them. Arrow in, arrays out.

Two columns may keep their distributions to the last digit and change places, or one may rise where
it used to fall with the other: no look at one feature after the other can see it. A look at all of
them sees that, and a warm summer, too, which the look at the temperature has seen already. So the
columns' own distributions are taken out first:

- rows of the window are weighted so that categories, empty rows and point masses come as often as
  in the reference (raking: Deming and Stephan, 1940, Ann. Math. Stat. 11:427);
- every other value is its rank among its own side's rows, as a normal score; within a bin of the
  reference ranks are drawn (the distributional transform: Rueschendorf, 2009, J. Stat. Plan.
  Inference 139:3921).

Known limits. The weights equal columns one at a time, and ranks know single columns only: where a
category goes from rare to frequent, what depends on it changes with it, and shows. Timestamps are
left out, and columns that are only counted; a category that one side lacks is for the looks at
single columns, and so is a column that is nearly all such categories.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import special

from steadfeast.monitor.profiles import ORDERED, ColumnKind, places_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from steadfeast.monitor.profiles import Edges

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

MOST_COLUMNS = 100
FOLDS = 3
"""Parts of a window's length that rows are held out by."""
_CLASS, _MASS = 0.01, 0.05
"""Share of the reference from which on a category, or a bin, is weighted by itself."""
_INDICATORS = 8
_SWEEPS = 10
_HEAVIEST = 10.0
_SHARED = 0.5
"""Of the rows of either side, in classes that both have; a column with less is left out."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows as bins of the reference; no value of anybody is in them.

    Attributes:
        names: Of the columns.
        bins: How many each has.
        ordered: Whether their order means anything.
        places: Bin of each cell, and the number after the last for one without a value; shape
            (rows, columns).
        micros: When each row was, microseconds since 1970; shape (rows,).
    """

    names: tuple[str, ...]
    bins: tuple[int, ...]
    ordered: tuple[bool, ...]
    places: npt.NDArray[np.int16]
    micros: Integers

    def __len__(self) -> int:
        """How many rows."""
        return len(self.micros)

    def take(self, chosen: npt.NDArray[Any]) -> Sample:
        """Return some of the rows, by number or by mask."""
        return Sample(self.names, self.bins, self.ordered, self.places[chosen], self.micros[chosen])

    def spread(self, most: int) -> Sample:
        """Return at most `most` rows, evenly over all."""
        if len(self) <= most:
            return self
        return self.take(np.linspace(0, len(self) - 1, most).round().astype(np.int64))

    @classmethod
    def joined(cls, parts: Sequence[Sample]) -> Sample:
        """Return the rows of at least one part after the other."""
        first = parts[0]
        return cls(
            first.names,
            first.bins,
            first.ordered,
            np.concatenate([one.places for one in parts]),
            np.concatenate([one.micros for one in parts]),
        )


def joinable(edges: Edges, importance: Mapping[str, float]) -> tuple[str, ...]:
    """Return the columns that are looked at together, `MOST_COLUMNS` at most.

    Those that matter most to the model where there are more; else in the reference's order.
    """
    kinds = {ColumnKind.TIMESTAMP, ColumnKind.OPAQUE}
    held = [name for name, one in edges.columns.items() if one.kind not in kinds and one.bins > 1]
    if len(held) <= MOST_COLUMNS:
        return tuple(held)
    kept = set(sorted(held, key=lambda name: -importance.get(name, 0.0))[:MOST_COLUMNS])
    return tuple(name for name in held if name in kept)


def rows_of(table: pa.Table, edges: Edges, names: Sequence[str], time: str) -> Sample:
    """Return the rows of a table; a column that it lacks has no values.

    Args:
        table: With the column `time`, and the sources of `names`.
        edges: Binning of `names`.
        names: From `joinable`.
        time: Column with the time of each row, a timestamp.
    """
    held = [edges.columns[name] for name in names]
    places = np.empty((table.num_rows, len(names)), np.int16)
    for i, (name, one) in enumerate(zip(names, held, strict=True)):
        source = one.source or name
        places[:, i] = one.bins
        if source in table.column_names and table.num_rows:
            column = table[source].combine_chunks()
            column = one.of(column, table[time].combine_chunks())
            places[:, i] = places_of(column, one)
    micros = table[time].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
    ordered = tuple(one.kind in ORDERED for one in held)
    return Sample(tuple(names), tuple(one.bins for one in held), ordered, places, micros)


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison, with the columns' own distributions taken out.

    Attributes:
        scores: Normal score of each value of an ordered column, NaN for none; of the others the
            class, a whole number. Shape (rows, columns).
        weights: Of the rows, at least 0, 1 on average; shape (rows,).
        phases: Number of the fold of each row; shape (rows,).
        indicators: Of the frequent categories, 0 or 1; shape (rows, indicators).
    """

    scores: Floats
    weights: Floats
    phases: Integers
    indicators: Floats

    @property
    def rows(self) -> float:
        """How many rows of weight 1 say as much (Kish)."""
        squares = float(np.sum(self.weights**2))
        return float(self.weights.sum()) ** 2 / squares if squares else 0.0


@dataclass(frozen=True, slots=True)
class Pair:
    """Reference and window, comparable.

    Attributes:
        names: Of the columns that are left.
        ordered: As in `Sample`.
        owners: Column number of each indicator.
        scale: What the indicators of a column are divided by, so that they weigh as one column.
    """

    names: tuple[str, ...]
    ordered: npt.NDArray[np.bool_]
    reference: Side
    window: Side
    owners: Integers
    scale: Floats


def paired(reference: Sample, window: Sample, *, window_micros: int, seed: int) -> Pair | None:
    """Make two samples equal in every single column.

    Args:
        reference: The one.
        window: The other; its rows are weighted.
        window_micros: Length of a window.
        seed: What ranks within a bin are drawn by.

    Returns:
        None where nothing can be compared: fewer than two columns vary and have most of their
        rows in categories that both sides know.
    """
    classes = [
        _classes(reference.places[:, i], window.places[:, i], bins, ordered=ordered)
        for i, (bins, ordered) in enumerate(zip(reference.bins, reference.ordered, strict=True))
    ]
    shared = [_shared(*one) for one in classes]
    used = [
        i
        for i, bins in enumerate(reference.bins)
        if shared[i][0].mean() > _SHARED
        and shared[i][1].mean() > _SHARED
        and all(
            _varies(rows.places[mask, i], bins)
            for rows, mask in zip((reference, window), shared[i], strict=True)
        )
    ]
    if len(used) < 2:  # noqa: PLR2004 - one column depends on nothing
        return None
    reference, window = (_columns(rows, used) for rows in (reference, window))
    classes = [classes[i] for i in used]
    before, now = (
        np.all([shared[i][side] for i in used], axis=0).astype(np.float64) for side in (0, 1)
    )
    if not before.any() or not now.any():
        return None
    targets = [np.bincount(ours, before, many) / before.sum() for ours, _, many in classes]
    for _ in range(_SWEEPS):
        for (_, theirs, many), target in zip(classes, targets, strict=True):
            held = np.bincount(theirs, now, many)
            now *= (target / np.maximum(held, 1e-300) * held.sum())[theirs]
            now = np.minimum(now, _HEAVIEST * now.sum() / np.count_nonzero(now))
    rng = np.random.default_rng(seed)
    sides = []
    for rows, weights, which in ((reference, before, 0), (window, now, 1)):
        scores = np.empty(rows.places.shape)
        for i, ordered in enumerate(rows.ordered):
            scores[:, i] = (
                _normal_scores(rows.places[:, i], rows.bins[i], weights, rng)
                if ordered
                else classes[i][which]
            )
        sides.append((scores, weights / weights.mean()))
    pieces = [
        (i, one)
        for i, ordered in enumerate(reference.ordered)
        if not ordered
        for one in _frequent(targets[i])
    ]
    owners = np.array([i for i, _ in pieces], np.int64)
    made = [
        Side(
            scores,
            weights,
            _phases(rows.micros, window_micros),
            scores[:, owners] == np.array([one for _, one in pieces]),
        )
        for rows, (scores, weights) in zip((reference, window), sides, strict=True)
    ]
    scale = np.sqrt(np.bincount(owners, minlength=len(used))[owners])
    return Pair(reference.names, np.array(reference.ordered), made[0], made[1], owners, scale)


def _classes(
    reference: npt.NDArray[np.int16], window: npt.NDArray[np.int16], bins: int, *, ordered: bool
) -> tuple[Integers, Integers, int]:
    """Return what of a column the weights make equal: each row's class on both sides.

    Categories of a hundredth of the reference's rows or more, and empty rows; of an ordered
    column, bins that hold much, such as a point mass. All else is one class.
    """
    counts = np.bincount(reference, minlength=bins + 1)
    own = counts >= (_MASS if ordered else _CLASS) * max(1, len(reference))
    own[bins] = True
    if not ordered:
        own[bins - 1] = False  # what is no category of its own
    order = np.flatnonzero(own)
    codes = np.zeros(bins + 1, np.int64)
    codes[order] = np.arange(1, len(order) + 1)
    return codes[reference], codes[window], len(order) + 1


def _normal_scores(
    places: npt.NDArray[np.int16], bins: int, weights: Floats, rng: np.random.Generator
) -> Floats:
    """Return each row's rank as a normal score, drawn within its bin; NaN for no value."""
    held = places < bins
    masses = np.bincount(places[held], weights[held], bins)
    total = masses.sum()
    found = np.full(len(places), np.nan)
    drawn = rng.random(len(places))
    if total > 0:
        below = np.cumsum(masses) - masses
        rank = (below[places[held]] + drawn[held] * masses[places[held]]) / total
        found[held] = special.ndtri(np.clip(rank, 1e-4, 1 - 1e-4))
    return found


def _shared(
    reference: Integers, window: Integers, many: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return which rows are of a class that both sides have."""
    both = (np.bincount(reference, minlength=many) > 0) & (np.bincount(window, minlength=many) > 0)
    return both[reference], both[window]


def _varies(places: npt.NDArray[np.int16], bins: int) -> bool:
    held = places[places < bins]
    return bool(len(held)) and bool(held.min() < held.max())


def _columns(rows: Sample, chosen: Sequence[int]) -> Sample:
    return Sample(
        tuple(rows.names[i] for i in chosen),
        tuple(rows.bins[i] for i in chosen),
        tuple(rows.ordered[i] for i in chosen),
        rows.places[:, chosen],
        rows.micros,
    )


def _frequent(target: Floats) -> list[int]:
    """Return the classes that get an indicator: the most frequent ones."""
    order = np.argsort(-target, kind="stable")
    return [int(one) for one in order[:_INDICATORS] if target[one] > 0]


def _phases(micros: Integers, window_micros: int) -> Integers:
    found: Integers = micros % window_micros * FOLDS // window_micros
    return found
