"""What the recipe is fitted on: everything known, and beside it the newest half and eighth.

Bottom of `training`. Which stretch of the past is worth learning from is what no date knows. The
fit on everything is steady; those on newer stretches are of today, and err in other places, so a
mean of the three is better than the first nearly everywhere, in a world that stands still too. A
mean with fixed weights is also better than the fit that a few weeks of held-out rows choose, unless
those rows are clear: where the world has turned, a fit on what came after wins by far. So the usual
weights stay until others are shown to be better. `benchmarks/retraining.py` measures it.

Reference: Bates and Granger (1969), Operational Research Quarterly 20:451 (the mean of forecasts);
Timmermann (2006), Handbook of Economic Forecasting 1:135, sec. 3 (why fixed weights are hard to
beat).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from steadfeast.measures import OneClassError, Task, blocks_of, compared, measure_named
from steadfeast.pipeline.gates import Gate
from steadfeast.pipeline.recipes import Blend, Fitted, scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from steadfeast.pipeline.config import ModelConfig
    from steadfeast.pipeline.recipes import Target

SHARES = (1.0, 1 / 2, 1 / 8)
"""Newest parts of what is known; each is fitted on."""
USUAL = (0.7, 0.2, 0.1)
"""What each fit counts."""
OTHERS = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1 / 3, 1 / 3, 1 / 3), (0, 0.5, 0.5))
"""What they count where that is shown to be better on the held-out rows."""
SHOWN = 2.5
"""Standard errors by which it must be better: the best of five is looked at."""
_NAMES = ("everything known", "the newest half", "the newest eighth")


def newest(table: pa.Table, times: np.ndarray, share: float) -> pa.Table:
    """Return the newest rows of the time that a table spans.

    Args:
        table: The rows.
        times: Their event times, `datetime64[us]`, shape (rows,).
        share: Of the time from the oldest to the newest, in (0, 1].
    """
    if share == 1 or not len(times):
        return table
    oldest, end = times.min(), times.max()
    return table.filter(pa.array(times >= end - (end - oldest) * share))


def stretches(
    table: pa.Table, times: np.ndarray, config: ModelConfig, target: Target
) -> dict[float, pa.Table]:
    """Return the rows that the recipe is fitted on, by share; what is too short is left out."""
    found = {1.0: table}
    if config.window == "all" or config.task is Task.RANKING:  # two rankers' scores have no mean
        return found
    for share in SHARES[1:]:
        rows = newest(table, times, share)
        if rows.num_rows >= 2 * config.min_rows and _has_classes(rows, table, config, target):
            found[share] = rows
    return found


def blended(
    fits: Sequence[Fitted], shares: Sequence[float], held_out: pa.Table, times: np.ndarray,
    target: Target,
) -> tuple[Fitted, list[Gate]]:  # fmt: skip
    """Return the mean of fits, with weights that held-out rows may change, and how it came to be.

    Args:
        fits: On one stretch each.
        shares: Of the stretches; a share that is missing counts for the next longer one.
        held_out: Rows that none was fitted on.
        times: Their event times, `datetime64[us]`, shape (rows,).
        target: What is predicted.
    """
    if len(fits) == 1:
        return fits[0], []
    said = [scores(one.estimator, held_out, one.features, target, one.classes) for one in fits]
    usual = _folded(USUAL, shares)
    weights, why = usual, "its usual weights, as no others are shown to be better"
    measure = measure_named(
        "log_loss" if target.task.is_classification else "root_mean_squared_error"
    )
    sample = target.sample(held_out, np.tensordot(usual, said, 1))
    most = 0.0
    for other in dict.fromkeys(_folded(one, shares) for one in OTHERS):
        tried = sample.predicting(np.tensordot(other, said, 1))
        try:
            estimate = compared(measure, tried, sample.prediction, [blocks_of(times)])
        except OneClassError:
            break
        if estimate.value > max(most, SHOWN * estimate.error):
            most, weights = estimate.value, other
            why = f"{measure.name} better by {most:.4g} than with the usual weights, "
            why += f"{most / estimate.error:.1f} standard errors"
    kept = [place for place, weight in enumerate(weights) if weight]
    found = together(
        [fits[place] for place in kept],
        [weights[place] for place in kept],
        [shares[place] for place in kept],
    )
    named = [f"{weights[place]:.0%} {_NAMES[SHARES.index(shares[place])]}" for place in kept]
    return found, [Gate("window", True, detail=f"fitted on {', '.join(named)}: {why}")]


def together(
    fits: Sequence[Fitted], weights: Sequence[float], shares: Sequence[float]
) -> Fitted:  # fmt: skip
    """Return fits as one; a single fit on everything stays what it is."""
    if list(shares) == [1.0]:
        return fits[0]
    blend = Blend(fits, weights, shares)
    return Fitted(blend, blend.features, fits[0].metrics)


def _folded(weights: Sequence[float], shares: Sequence[float]) -> tuple[float, ...]:
    """Return the weights of the stretches there are: of one that is missing the longer one's."""
    found = dict.fromkeys(shares, 0.0)
    last = 1.0
    for share, weight in zip(SHARES, weights, strict=True):
        last = share if share in found else last
        found[last] += weight
    return tuple(found.values())


def _has_classes(rows: pa.Table, table: pa.Table, config: ModelConfig, target: Target) -> bool:
    """Whether a stretch has enough of each class that everything has."""
    if not config.task.is_classification:
        return True
    known, new = (
        np.bincount(target.truth(one).astype(np.int64), minlength=len(target.classes))
        for one in (table, rows)
    )
    return bool(np.all(new >= np.minimum(known, config.checks.positives)))
