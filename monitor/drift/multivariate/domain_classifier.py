"""How far two samples of rows differ, in how their columns hang together.

Above `monitor.drift.multivariate.balancing`, which takes all else out;
`monitor.drift.multivariate.detector` says how far is far. Pure.

*A classifier* is taught to tell the two sides apart (Lopez-Paz and Oquab, 2017, ICLR): gradient
boosted trees on the ranks, and on the reference's principal components, along which a changed
correlation is a changed spread. What it says of rows that it was not taught by is judged by its
AUC. Rows of one day go together, and would give the day away: so they are held out by *phase*, a
third of the window's length at a time. Of a week, the weekend is told apart by what the other
days have taught, and never a Monday by the same Monday.

*Reconstruction*: the share of the rows' variance that the reference's first principal components,
`EXPLAINED` of its own, leave over (Jackson and Mudholkar, 1979, Technometrics 21:341; nannyml
watches it by default). Categories are indicators, of the most frequent ones, and together weigh as
one column; empty cells are at the mean. It knows straight lines only, and is blind to what changes
inside the span of those components.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from steadfeast.monitor.drift.multivariate.balancing import FOLDS, Floats, Pair, Side

if TYPE_CHECKING:
    from collections.abc import Mapping

EXPLAINED = 0.65
FEWEST = 20
"""Rows of either side in a fold; with fewer, it teaches and asks nothing."""
FLOOR = 0.01
"""Change of an AUC, or of a share of variance, that is not worth an alarm."""
_COMPONENTS = 10
_STEPS = 64
_SMALLEST_SPREAD = 1e-6


# Reconstruction


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """What the reference's first components leave over of a window.

    Attributes:
        error: Share of the variance, 0 to 1.
        usual: The same of the reference's own rows.
        per_row: Variance of one row's share, for what a sample of them is off by.
        by_column: How much of the difference is each column's.
    """

    error: float
    usual: float
    per_row: float
    by_column: Mapping[str, float] = field(default_factory=dict)


def reconstructed(pair: Pair) -> Reconstruction:
    """Project both sides onto the reference's first principal components."""
    old, new = (_standard(pair, side) for side in (pair.reference, pair.window))
    axes = _axes(old, pair.reference.weights)
    values, vectors = axes
    first = 1 + int(np.searchsorted(np.cumsum(values) / values.sum(), EXPLAINED))
    kept = vectors[:, :first]
    owners = np.concatenate([np.flatnonzero(pair.ordered), pair.owners])
    shares, errors = [], []
    for matrix, side in ((old, pair.reference), (new, pair.window)):
        left = (matrix - matrix @ kept @ kept.T) ** 2
        whole = float(side.weights @ (matrix**2).sum(axis=1))
        shares.append((side.weights @ left) / whole)
        errors.append(left.sum(axis=1) * len(matrix) / whole)
    difference = np.bincount(owners, shares[1] - shares[0], len(pair.names))
    sign = 1.0 if difference.sum() >= 0 else -1.0
    return Reconstruction(
        float(shares[1].sum()),
        float(shares[0].sum()),
        float(np.var(errors[1])),
        dict(zip(pair.names, (sign * difference).tolist(), strict=True)),
    )


# The classifier


@dataclass(frozen=True, slots=True)
class Separation:
    """How well the two sides are told apart.

    Attributes:
        auc: On rows held out; .5 is not at all.
        by_column: What of it is lost when a column is shuffled; empty where not asked for.
    """

    auc: float
    by_column: Mapping[str, float] = field(default_factory=dict)


def told_apart(pair: Pair, *, seed: int, explain: bool = False) -> Separation | None:
    """Teach a classifier to tell the sides apart, and return its AUC on rows held out by phase.

    Args:
        pair: The sides.
        seed: Of the shuffles; the classifier itself draws nothing.
        explain: Say which columns it went by: several times the cost.

    Returns:
        None where fewer than two phases have enough rows of either side.
    """
    # Not everybody has scikit-learn, and it takes a second to import.
    from sklearn.ensemble import HistGradientBoostingClassifier  # noqa: PLC0415
    from threadpoolctl import threadpool_limits  # noqa: PLC0415

    # Two threads on a busy machine are slower than one.
    with threadpool_limits(limits=1):
        model = HistGradientBoostingClassifier(
            max_iter=40, max_leaf_nodes=8, early_stopping=False, random_state=0
        )
        return _told_apart(pair, model, seed=seed, explain=explain)


def _told_apart(pair: Pair, model: Any, *, seed: int, explain: bool) -> Separation | None:
    axes = _axes(_standard(pair, pair.reference), pair.reference.weights)
    sides = (pair.reference, pair.window)
    design = np.concatenate([_design(pair, side, axes) for side in sides])
    is_new = np.repeat([False, True], [len(side.weights) for side in sides])
    # Both sides weigh the same, whatever their sizes.
    weights = np.concatenate([side.weights / side.weights.sum() for side in sides])
    weights *= len(weights) / 2
    phases = np.concatenate([side.phases for side in sides])
    counted = weights > 0
    cells = np.bincount(2 * phases[counted] + is_new[counted], minlength=2 * FOLDS)
    usable = np.flatnonzero(cells.reshape(FOLDS, 2).min(axis=1) >= FEWEST)
    if len(usable) < 2:  # noqa: PLR2004 - one to learn from, one to be asked
        return None
    areas, lost, sizes = [], [], []
    rng = np.random.default_rng(seed)
    for phase in usable:
        taught, asked = counted & (phases != phase), counted & (phases == phase)
        model.fit(design[taught], is_new[taught], sample_weight=weights[taught])
        truth, heavy = is_new[asked], weights[asked]
        areas.append(area(truth, model.predict_proba(design[asked])[:, 1], heavy))
        sizes.append(np.count_nonzero(truth))
        if explain:
            lost.append(_losses(pair, axes, asked, model, areas[-1], heavy, rng))
    by_column = np.average(lost, axis=0, weights=sizes).tolist() if explain else ()
    return Separation(
        float(np.average(areas, weights=sizes)), dict(zip(pair.names, by_column, strict=False))
    )


def area(truth: npt.NDArray[np.bool_], said: Floats, weights: Floats) -> float:
    """Return the weighted AUC: the share of pairs in the right order, ties half.

    Args:
        truth: Both values occur.
        said: The higher, the likelier true.
        weights: Of the rows, at least 0.
    """
    _, place = np.unique(said, return_inverse=True)
    ones = np.bincount(place, np.where(truth, weights, 0))
    zeros = np.bincount(place, np.where(truth, 0, weights))
    below = np.cumsum(zeros) - zeros
    return float(ones @ (below + zeros / 2) / (ones.sum() * zeros.sum()))


def _losses(
    pair: Pair,
    axes: tuple[Floats, Floats],
    asked: npt.NDArray[np.bool_],
    model: Any,
    auc: float,
    weights: Floats,
    rng: np.random.Generator,
) -> Floats:
    """Return what shuffling each column costs, shape (columns,).

    Within each side, so that the column keeps its distribution and loses its relations.
    """
    many = len(pair.reference.weights)
    parts = [(pair.reference, asked[:many]), (pair.window, asked[many:])]
    truth = np.repeat([False, True], [np.count_nonzero(one) for _, one in parts])
    found = np.empty(len(pair.names))
    for i in range(len(pair.names)):
        designs = []
        for side, mask in parts:
            order = rng.permutation(np.count_nonzero(mask))
            scores, indicators = side.scores[mask].copy(), side.indicators[mask].copy()
            scores[:, i] = scores[order, i]
            mine = pair.owners == i
            indicators[:, mine] = indicators[order][:, mine]
            shuffled = Side(scores, side.weights[mask], side.phases[mask], indicators)
            designs.append(_design(pair, shuffled, axes))
        said = model.predict_proba(np.concatenate(designs))[:, 1]
        found[i] = auc - area(truth, said, weights)
    return found


def _design(pair: Pair, side: Side, axes: tuple[Floats, Floats]) -> Floats:
    """Return the columns, and where rows lie on the reference's first and last components.

    In steps, of which each holds as many of the reference's rows.
    """
    _, vectors = axes
    many = vectors.shape[1]
    ends = np.unique(np.r_[: min(_COMPONENTS, many), max(0, many - _COMPONENTS) : many])
    old = _standard(pair, pair.reference) @ vectors[:, ends]
    new = old if side is pair.reference else _standard(pair, side) @ vectors[:, ends]
    cuts = np.quantile(old, np.arange(1, _STEPS) / _STEPS, axis=0)
    stepped = [np.searchsorted(cut, one) for cut, one in zip(cuts.T, new.T, strict=True)]
    scores = np.where(pair.ordered, np.round(side.scores * _STEPS / 4), side.scores)
    return np.column_stack([scores, *stepped])


def _standard(pair: Pair, side: Side) -> Floats:
    """Return ordered columns and indicators, standardised as the reference's; empty is 0."""
    divisor = np.concatenate([np.ones(np.count_nonzero(pair.ordered)), pair.scale])
    old, new = (
        np.concatenate([one.scores[:, pair.ordered], one.indicators], axis=1)
        for one in (pair.reference, side)
    )
    gone = np.isnan(old)
    heavy = np.where(gone, 0, pair.reference.weights[:, None])
    total = np.maximum(heavy.sum(axis=0), _SMALLEST_SPREAD)
    mean = (heavy * np.where(gone, 0, old)).sum(axis=0) / total
    spread = np.sqrt((heavy * np.where(gone, 0, old - mean) ** 2).sum(axis=0) / total)
    standard = np.where(np.isnan(new), 0, new - mean) / np.maximum(spread, _SMALLEST_SPREAD)
    found: Floats = standard / divisor
    return found


def _axes(matrix: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Return variances and directions of the principal components, the largest first."""
    values, vectors = np.linalg.eigh((matrix * weights[:, None]).T @ matrix / weights.sum())
    return np.maximum(values[::-1], 0), vectors[:, ::-1]


@dataclass(frozen=True, slots=True)
class Usual:
    """How far one of the looks is off between the reference's own windows.

    Attributes:
        value: Its mean over them.
        spread: Its standard deviation, with the allowance for the mean's own error.
        factor: Squared deviations of a window over the square of `spread`, at the limit.
        per_row: Times `1 / rows`, the variance that sampling adds.
        rows: Of the windows, in the middle.
        windows: Whole ones in the reference.
    """

    value: float
    spread: float
    factor: float
    per_row: float
    rows: float
    windows: int

    def allowed(self, rows: float) -> float:
        """Return how far a window of `rows` rows may be from `value`."""
        fewer = max(0.0, 1 / rows - 1 / self.rows) if rows else 0.0
        squared = self.factor * (self.spread**2 + self.per_row * fewer)
        return max(FLOOR, float(np.sqrt(squared)))
