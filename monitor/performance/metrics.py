"""Figures of merit: how good predictions were, each with an interval.

Bottom layer: arrays in, numbers out; no I/O, clock or globals. `monitor.performance` applies them
to what was served. Truth is 0 or 1 and the prediction a probability of 1 for classifiers; both
are real numbers for regressors. Intervals are of 95 %, for rows that are drawn independently:
where rows of one day go together, the truth scatters by more than they say.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from steadfeast.featurestore.errors import NotFoundError, SteadfeastError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]

GROUP = "steadfeast.measures"
HALF = 0.5
"""From this probability on a prediction says 1."""

RELIABILITY_BINS = 10
_Z = 1.959963984540054
_DRAWS = 200
_DRAWN_ROWS = 10_000


class OneClassError(SteadfeastError):
    """A figure needs labels of both classes, or labels that differ."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"{name} needs labels that differ")


class MeasureError(UserError):
    """A measure of the user's own cannot be used.

    Attributes:
        spec: As configured.
    """

    def __init__(self, spec: str, problem: str) -> None:
        self.spec = spec
        super().__init__(f"measure {spec}: {problem}")


class Task(StrEnum):
    """What a model predicts."""

    CLASSIFICATION = "classification"
    REGRESSION = "regression"


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure of merit.

    Attributes:
        name: Of the figure; the last part of its metric's name.
        function: From truth and prediction, float64, shape (rows,) each, to the figure.
        task: What it is of.
        unit: Of the value.
        lower_is_better: Whether a fall is good.
        interval: From the same two arrays to the ends of an interval; None resamples rows.
    """

    name: str
    function: Callable[[Floats, Floats], float]
    task: Task = Task.CLASSIFICATION
    unit: str = "ratio"
    lower_is_better: bool = False
    interval: Callable[[Floats, Floats], Interval] | None = None

    def ends(self, truth: Floats, prediction: Floats) -> Interval:
        """Return the ends of the interval."""
        if self.interval is not None:
            return self.interval(truth, prediction)
        return resampled(self.function, truth, prediction)

    def drop(self, expected: float, found: float) -> float:
        """Return how much worse than `expected` the figure is, in its unit; below 0 is better."""
        return found - expected if self.lower_is_better else expected - found


def resampled(
    function: Callable[[Floats, Floats], float], truth: Floats, prediction: Floats
) -> Interval:
    """Return an interval from resampled rows: the figure, plus and minus 1.96 of their spread.

    Above `_DRAWN_ROWS` rows only so many are drawn, and the spread is scaled to all of them.
    Seeded by nothing but a constant: the same rows give the same interval.

    Reference: Efron (1979), Ann. Statist. 7:1; Bickel, Goetze and van Zwet (1997), Stat. Sinica
    7:1 (fewer rows drawn than there are).
    """
    rng, rows = np.random.default_rng(0), len(truth)
    size = min(rows, _DRAWN_ROWS)
    values = []
    for _ in range(_DRAWS):
        drawn = rng.integers(0, rows, size)
        try:
            values.append(function(truth[drawn], prediction[drawn]))
        except OneClassError:
            continue
    value = function(truth, prediction)
    spread = _Z * float(np.std(values)) * math.sqrt(size / rows) if values else math.inf
    return value - spread, value + spread


# Classifiers


def auc(truth: Floats, prediction: Floats) -> float:
    """Return the area under the ROC curve, 0 to 1; ties count half.

    Raises:
        OneClassError: All labels are the same.

    Reference: Mann and Whitney (1947), Ann. Math. Statist. 18:50 (U, from ranks).
    """
    is_one = _both(truth, "auc")
    positives = int(is_one.sum())
    wins = rankdata(prediction)[is_one].sum() - positives * (positives + 1) / 2
    return float(wins / (positives * (len(truth) - positives)))


def auc_interval(truth: Floats, prediction: Floats) -> Interval:
    """Return an interval of the area under the ROC curve, on the scale of its logit.

    Where no row contradicts the order there is no variance to go by; the interval is then
    Wilson's for as many draws as the rarer class has rows.

    Reference: DeLong, DeLong and Clarke-Pearson (1988), Biometrics 44:837, computed as Sun and
    Xu (2014), IEEE Signal Process. Lett. 21:1389; Pepe (2003), ch. 5 (logit).
    """
    is_one = _both(truth, "auc")
    ranks = rankdata(prediction)
    ones, zeros = int(is_one.sum()), int((~is_one).sum())
    above = (ranks[is_one] - rankdata(prediction[is_one])) / zeros
    below = (ranks[~is_one] - rankdata(prediction[~is_one])) / ones
    area = float(above.mean())
    variance = sum(
        float(np.var(share, ddof=1)) / len(share) for share in (above, below) if len(share) > 1
    )
    if variance == 0 or area in (0.0, 1.0):
        fewer = min(ones, zeros)
        return wilson(area * fewer, fewer)
    middle, width = math.log(area / (1 - area)), _Z * math.sqrt(variance) / (area * (1 - area))
    return _logistic(middle - width), _logistic(middle + width)


def accuracy(truth: Floats, prediction: Floats) -> float:
    """Return the share of rows on the right side of one half, 0 to 1; one half counts as 1."""
    return float(np.mean((prediction >= HALF) == (truth > HALF)))


def accuracy_interval(truth: Floats, prediction: Floats) -> Interval:
    """Return Wilson's interval of the accuracy."""
    return wilson(accuracy(truth, prediction) * len(truth), len(truth))


def f1(truth: Floats, prediction: Floats) -> float:
    """Return the harmonic mean of precision and recall of class 1 at one half, 0 to 1.

    0 when nothing is, and nothing is said to be, of class 1.

    Reference: van Rijsbergen (1979), Information Retrieval, ch. 7.
    """
    both, either = _overlap(truth, prediction)
    return 2 * both / (both + either) if either else 0.0


def f1_interval(truth: Floats, prediction: Floats) -> Interval:
    """Return an interval of F1.

    Of the rows that are of class 1 or said to be, the share that is both is a proportion J, with
    Wilson's interval; F1 is 2 J / (1 + J), which rises with J, so its ends are those of J.
    """
    both, either = _overlap(truth, prediction)
    low, high = wilson(both, either) if either else (0.0, 1.0)
    return 2 * low / (1 + low), 2 * high / (1 + high)


def log_loss(truth: Floats, prediction: Floats) -> float:
    """Return the mean negative log-likelihood in nats, from 0.

    Predictions are kept off 0 and 1 by the smallest relative step of a float64, so that one
    certain and wrong prediction costs 36 nats rather than everything.
    """
    return float(np.mean(_nats(truth, prediction)))


def log_loss_interval(truth: Floats, prediction: Floats) -> Interval:
    """Return an interval of the log loss, which is a mean over rows."""
    return _of_mean(_nats(truth, prediction))


def calibration_error(truth: Floats, prediction: Floats) -> float:
    """Return how far probabilities are from frequencies, on average over the rows, 0 to 1.

    Ten bins of equal width; per bin, the mean probability less the share of class 1.

    Reference: Naeini, Cooper and Hauskrecht (2015), AAAI 29:2901 (ECE).
    """
    shares, gaps, _ = _reliability(truth, prediction)
    return float(np.sum(shares * np.abs(gaps)))


def calibration_interval(truth: Floats, prediction: Floats) -> Interval:
    """Return an interval of the calibration error.

    The gap of each bin is drawn anew, normal with the variance of its rows. An absolute value
    grows with noise, in the draws as in the figure: at the lower end the draws are reflected at
    the figure, which takes that bias out (the basic bootstrap: Davison and Hinkley (1997), ch.
    5.2); at the upper end the bias stays in, on the safe side.
    """
    shares, gaps, variances = _reliability(truth, prediction)
    rng = np.random.default_rng(0)
    drawn = gaps + np.sqrt(variances) * rng.standard_normal((10 * _DRAWS, len(gaps)))
    errors = np.abs(drawn) @ shares
    value = float(np.sum(shares * np.abs(gaps)))
    low = min(value, 2 * value - float(np.quantile(errors, 0.975)))
    return max(0.0, low), min(1.0, value + _Z * float(np.std(errors)))


# Regressors


def rmse(truth: Floats, prediction: Floats) -> float:
    """Return the root of the mean squared error, from 0, in the label's unit."""
    return math.sqrt(float(np.mean((prediction - truth) ** 2)))


def rmse_interval(truth: Floats, prediction: Floats) -> Interval:
    """Return an interval of the root: that of the mean squared error, with its root taken."""
    low, high = _of_mean((prediction - truth) ** 2)
    return math.sqrt(max(0.0, low)), math.sqrt(high)


def mae(truth: Floats, prediction: Floats) -> float:
    """Return the mean absolute error, from 0, in the label's unit."""
    return float(np.mean(np.abs(prediction - truth)))


def mae_interval(truth: Floats, prediction: Floats) -> Interval:
    """Return an interval of the mean absolute error, which is a mean over rows."""
    low, high = _of_mean(np.abs(prediction - truth))
    return max(0.0, low), high


def r2(truth: Floats, prediction: Floats) -> float:
    """Return the share of the labels' variance that is explained; 1 is all, below 0 is harm.

    Raises:
        OneClassError: All labels are the same.
    """
    total = float(np.mean((truth - truth.mean()) ** 2))
    if not total:
        raise OneClassError("r2")
    return 1 - float(np.mean((prediction - truth) ** 2)) / total


def r2_interval(truth: Floats, prediction: Floats) -> Interval:
    """Return an interval of R2 by the delta method.

    Row i moves R2 by (u y_i^2 - e_i^2) / var(y), with e its error, y its label less the mean
    and u the unexplained share (Hampel (1974), J. Am. Stat. Assoc. 69:383).
    """
    value = r2(truth, prediction)
    centred = (truth - truth.mean()) ** 2
    moved = ((1 - value) * centred - (prediction - truth) ** 2) / centred.mean()
    width = _Z * float(np.std(moved)) / math.sqrt(len(truth))
    return value - width, min(1.0, value + width)


def wilson(successes: float, trials: float) -> Interval:
    """Return the interval of a proportion, 0 to 1.

    Reference: Wilson (1927), J. Am. Stat. Assoc. 22:209.
    """
    share, squared = successes / trials, _Z * _Z
    middle = (share + squared / (2 * trials)) / (1 + squared / trials)
    width = _Z * math.sqrt(share * (1 - share) / trials + squared / (4 * trials * trials))
    width /= 1 + squared / trials
    return max(0.0, middle - width), min(1.0, middle + width)


_LABEL = "the label's"
MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        one.name: one
        for one in (
            Measure("auc", auc, interval=auc_interval),
            Measure("accuracy", accuracy, interval=accuracy_interval),
            Measure("f1", f1, interval=f1_interval),
            Measure(
                "log_loss", log_loss, unit="nats", lower_is_better=True, interval=log_loss_interval
            ),
            Measure(
                "calibration_error",
                calibration_error,
                lower_is_better=True,
                interval=calibration_interval,
            ),
            Measure("rmse", rmse, Task.REGRESSION, _LABEL, True, rmse_interval),
            Measure("mae", mae, Task.REGRESSION, _LABEL, True, mae_interval),
            Measure("r2", r2, Task.REGRESSION, interval=r2_interval),
        )
    }
)
"""The figures that come with Steadfeast, by name."""


def measure_named(spec: str) -> Measure:
    """Return a figure of ours, one that a package registered, or the user's own function.

    Args:
        spec: A name of `MEASURES`; one that an installed package registered under the entry
            points `steadfeast.measures`; or `module:function`, importable by the daemon. What is
            loaded is a `Measure`, or a function of truth and prediction, of which more is better.

    Raises:
        NotFoundError: Nobody registered one of this name.
        MeasureError: The module or the function cannot be imported.
    """
    if spec in MEASURES:
        return MEASURES[spec]
    module, _, name = spec.partition(":")
    if name:
        try:
            loaded = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise MeasureError(spec, f"cannot be imported: {error}") from error
    else:
        registered = entry_points(group=GROUP)
        points = list(registered.select(name=spec))
        if not points:
            raise NotFoundError("measure", spec, [*MEASURES, *registered.names])
        name, loaded = spec, points[0].load()
    if isinstance(loaded, Measure):
        return replace(loaded, name=name)
    if not callable(loaded):
        raise MeasureError(spec, "is no function of truth and prediction")
    return Measure(name, loaded)


def measures_for(spec: str) -> tuple[Measure, ...]:
    """Return the figures of the task that the measure `spec` is of; `spec` is one of them."""
    chosen = measure_named(spec)
    ours = tuple(one for one in MEASURES.values() if one.task is chosen.task)
    return ours if chosen in ours else (*ours, chosen)


def _both(truth: Floats, name: str) -> npt.NDArray[np.bool_]:
    is_one = truth > HALF
    if is_one.all() or not is_one.any():
        raise OneClassError(name)
    return is_one


def _overlap(truth: Floats, prediction: Floats) -> tuple[int, int]:
    """Return how many rows are of class 1 and said to be, and how many are one of the two."""
    is_one, said = truth > HALF, prediction >= HALF
    return int((is_one & said).sum()), int((is_one | said).sum())


def _nats(truth: Floats, prediction: Floats) -> Floats:
    step = float(np.finfo(np.float64).eps)
    certain = np.clip(prediction, step, 1 - step)
    nats: Floats = -np.log(np.where(truth > HALF, certain, 1 - certain))
    return nats


def _reliability(truth: Floats, prediction: Floats) -> tuple[Floats, Floats, Floats]:
    """Return per bin with rows: its share of rows, its gap, and the variance of the gap."""
    places = np.clip((prediction * RELIABILITY_BINS).astype(int), 0, RELIABILITY_BINS - 1)
    rows = np.bincount(places, minlength=RELIABILITY_BINS)
    off = prediction - (truth > HALF)
    sums = np.bincount(places, off, RELIABILITY_BINS)[rows > 0]
    squares = np.bincount(places, off * off, RELIABILITY_BINS)[rows > 0]
    held = rows[rows > 0].astype(np.float64)
    gaps = sums / held
    return held / len(truth), gaps, np.maximum(squares / held - gaps**2, 0) / held


def _of_mean(values: Floats) -> Interval:
    """Return the interval of a mean over many rows."""
    middle = float(values.mean())
    width = _Z * float(np.std(values)) / math.sqrt(len(values))
    return middle - width, middle + width


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))
