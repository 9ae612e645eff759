"""Figures of merit as functions of truth and prediction, and their textbook intervals.

Above `sample`. Arrays in, numbers out; no I/O, clock or globals. A figure that is a mean over rows
returns its rows, shape (rows,); any other returns one number. What truth and prediction hold is
said in `sample.Sample`; names and directions are in `catalog`. Intervals are of 95 % for rows that
are drawn independently: where rows of one day go together, use `resampling`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import expit
from scipy.stats import binomtest, rankdata

from steadfeast.featurestore.errors import SteadfeastError

if TYPE_CHECKING:
    from collections.abc import Callable

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]
Average = Literal["binary", "macro", "weighted"]

HALF = 0.5
"""From this probability on a prediction says 1, unless a measure sets `at`."""

RELIABILITY_BINS = 10
_Z = 1.959963984540054
_DRAWS = 200
_DRAWN_ROWS = 10_000


class OneClassError(SteadfeastError):
    """A figure needs labels of both classes, or labels that differ.

    Attributes:
        name: Of the figure.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"{name} needs labels that differ")


# -- classifiers -------------------------------------------------------------------------


def roc_auc(truth: Floats, prediction: Floats) -> float:
    """Return the area under the ROC curve, 0 to 1; ties count half.

    Of several classes: the mean over the classes, each against all others.

    Raises:
        OneClassError: All labels are the same.

    Reference: Mann and Whitney (1947), Ann. Math. Statist. 18:50 (U, from ranks).
    """
    return _over_classes(_area, truth, prediction, "roc_auc")


def average_precision(truth: Floats, prediction: Floats) -> float:
    """Return the mean of the precision at each recall, weighted by the gain in recall; 0 to 1.

    Of several classes: the mean over the classes, each against all others.

    Raises:
        OneClassError: All labels are the same.

    Reference: Zhu (2004), Recall, precision and average precision, Univ. of Waterloo.
    """
    return _over_classes(_average_precision, truth, prediction, "average_precision")


def accuracy(truth: Floats, prediction: Floats, at: float = HALF) -> Floats:
    """Return per row whether the class is right; a probability of `at` says 1."""
    return np.asarray(_said(prediction, at) == truth, np.float64)


def balanced_accuracy(truth: Floats, prediction: Floats, at: float = HALF) -> float:
    """Return the mean over the classes there are of the share that is found, 0 to 1."""
    confusion = _confusion(truth, prediction, at)
    rows = confusion.sum(axis=1)
    return float(np.mean(np.diag(confusion)[rows > 0] / rows[rows > 0]))


def precision(
    truth: Floats, prediction: Floats, at: float = HALF, *, average: Average = "binary"
) -> float:
    """Return the share of what is said to be of a class that is; 0 when nothing is said to be."""
    confusion = _confusion(truth, prediction, at)
    return _averaged(np.diag(confusion), confusion.sum(axis=0), confusion, average)


def recall(
    truth: Floats, prediction: Floats, at: float = HALF, *, average: Average = "binary"
) -> float:
    """Return the share of a class that is found; 0 when there is nothing of it."""
    confusion = _confusion(truth, prediction, at)
    return _averaged(np.diag(confusion), confusion.sum(axis=1), confusion, average)


def f1(
    truth: Floats, prediction: Floats, at: float = HALF, *, average: Average = "binary"
) -> float:
    """Return the harmonic mean of precision and recall, 0 to 1.

    Reference: van Rijsbergen (1979), Information Retrieval, ch. 7.
    """
    confusion = _confusion(truth, prediction, at)
    either = confusion.sum(axis=0) + confusion.sum(axis=1)
    return _averaged(2 * np.diag(confusion), either, confusion, average)


def log_loss(truth: Floats, prediction: Floats) -> Floats:
    """Return each row's negative log-likelihood in nats.

    Predictions are kept off 0 and 1 by the smallest relative step of a float64, so that one
    certain and wrong prediction costs 36 nats rather than everything.
    """
    step = float(np.finfo(np.float64).eps)
    return np.asarray(-np.log(np.clip(_of_the_true_class(truth, prediction), step, 1 - step)))


def brier_score(truth: Floats, prediction: Floats) -> Floats:
    """Return each row's squared error of the probabilities; of several classes, their sum.

    Reference: Brier (1950), Mon. Weather Rev. 78:1.
    """
    if prediction.ndim == 1:
        squares: Floats = (prediction - truth) ** 2
        return squares
    off = prediction - np.eye(prediction.shape[1])[truth.astype(int)]
    return np.asarray((off * off).sum(axis=1))


def calibration_error(truth: Floats, prediction: Floats) -> float:
    """Return how far probabilities are from frequencies, on average over the rows, 0 to 1.

    Ten bins of equal width; per bin, the mean probability less the share that came true. Of
    several classes: the probability of the class that is said, and whether it was right.

    Reference: Naeini, Cooper and Hauskrecht (2015), AAAI 29:2901 (ECE).
    """
    shares, gaps, _ = _reliability(truth, prediction)
    return float(np.sum(shares * np.abs(gaps)))


# -- regressors --------------------------------------------------------------------------


def root_mean_squared_error(truth: Floats, prediction: Floats) -> float:
    """Return the root of the mean squared error, from 0, in the label's unit."""
    return math.sqrt(float(np.mean((prediction - truth) ** 2)))


def mean_absolute_error(truth: Floats, prediction: Floats) -> Floats:
    """Return each row's absolute error, in the label's unit."""
    return np.abs(prediction - truth)


def mean_absolute_percentage_error(truth: Floats, prediction: Floats) -> Floats:
    """Return each row's absolute error as a share of its label; a label of 0 counts as 2e-16."""
    smallest = float(np.finfo(np.float64).eps)
    return np.abs(prediction - truth) / np.maximum(np.abs(truth), smallest)


def mean_pinball_loss(truth: Floats, prediction: Floats, quantile: float = HALF) -> Floats:
    """Return each row's pinball loss, in the label's unit: what a forecast of a quantile costs.

    Reference: Koenker and Bassett (1978), Econometrica 46:33.
    """
    under = truth - prediction
    return np.maximum(quantile * under, (quantile - 1) * under)


def r2(truth: Floats, prediction: Floats) -> float:
    """Return the share of the labels' variance that is explained; 1 is all, below 0 is harm.

    Raises:
        OneClassError: All labels are the same.
    """
    total = float(np.mean((truth - truth.mean()) ** 2))
    if not total:
        raise OneClassError("r2")
    return 1 - float(np.mean((prediction - truth) ** 2)) / total


# -- rankings ----------------------------------------------------------------------------


def ndcg(
    truth: Floats, prediction: Floats, groups: npt.NDArray[np.generic], top: float = math.inf
) -> float:
    """Return the mean over the groups of the normalised discounted cumulative gain, 0 to 1.

    The gain of a row is its relevance; only the first `top` places count. Rows of one score share
    their places. Groups without any relevant row are left out.

    Raises:
        OneClassError: No group has a relevant row.

    Reference: Jarvelin and Kekalainen (2002), ACM TOIS 20:422; ties: McSherry and Najork (2008),
    ECIR 414.
    """
    order = np.argsort(groups, kind="stable")
    _, starts = np.unique(groups[order], return_index=True)
    values = []
    for rows in np.split(order, starts[1:]):
        discounts = 1 / np.log2(np.arange(len(rows)) + 2)
        discounts[np.arange(len(rows)) >= top] = 0
        best = float(np.sort(truth[rows])[::-1] @ discounts)
        if best > 0:
            _, place, ties = np.unique(-prediction[rows], return_inverse=True, return_counts=True)
            shared = np.add.reduceat(discounts, np.cumsum(ties) - ties) / ties
            values.append(float(truth[rows] @ shared[place]) / best)
    if not values:
        raise OneClassError("ndcg")
    return float(np.mean(values))


# -- intervals ---------------------------------------------------------------------------


def of_mean(values: Floats) -> Interval:
    """Return the interval of a mean over many rows."""
    middle = float(values.mean())
    width = _Z * float(np.std(values)) / math.sqrt(len(values))
    return middle - width, middle + width


def wilson(successes: float, trials: float) -> Interval:
    """Return the interval of a proportion, 0 to 1; half a success is rounded.

    Reference: Wilson (1927), J. Am. Stat. Assoc. 22:209.
    """
    found = binomtest(round(successes), round(trials)).proportion_ci(0.95, "wilson")
    return float(found.low), float(found.high)


def roc_auc_interval(truth: Floats, prediction: Floats) -> Interval:
    """Return an interval of the area under the ROC curve, on the scale of its logit.

    Where no row contradicts the order there is no variance to go by; the interval is then
    Wilson's for as many draws as the rarer class has rows.

    Reference: DeLong, DeLong and Clarke-Pearson (1988), Biometrics 44:837, computed as Sun and
    Xu (2014), IEEE Signal Process. Lett. 21:1389; Pepe (2003), ch. 5 (logit).
    """
    is_one = _both(truth, "roc_auc")
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
    return float(expit(middle - width)), float(expit(middle + width))


def accuracy_interval(truth: Floats, prediction: Floats, at: float = HALF) -> Interval:
    """Return Wilson's interval of the accuracy."""
    right = accuracy(truth, prediction, at)
    return wilson(float(right.sum()), len(right))


def precision_interval(truth: Floats, prediction: Floats, at: float = HALF) -> Interval:
    """Return Wilson's interval of the precision of class 1."""
    confusion = _confusion(truth, prediction, at)
    said = int(confusion[:, 1].sum())
    return wilson(int(confusion[1, 1]), said) if said else (0.0, 1.0)


def recall_interval(truth: Floats, prediction: Floats, at: float = HALF) -> Interval:
    """Return Wilson's interval of the recall of class 1."""
    confusion = _confusion(truth, prediction, at)
    ones = int(confusion[1].sum())
    return wilson(int(confusion[1, 1]), ones) if ones else (0.0, 1.0)


def balanced_accuracy_interval(truth: Floats, prediction: Floats, at: float = HALF) -> Interval:
    """Return an interval of the balanced accuracy: of the mean of independent proportions."""
    confusion = _confusion(truth, prediction, at)
    rows = confusion.sum(axis=1)
    rows, found = rows[rows > 0], np.diag(confusion)[rows > 0]
    # Half a row more of each kind, so that a class that is always found is not certain.
    shares = (found + HALF) / (rows + 1)
    width = _Z * math.sqrt(float(np.sum(shares * (1 - shares) / rows))) / len(rows)
    value = balanced_accuracy(truth, prediction, at)
    return max(0.0, value - width), min(1.0, value + width)


def average_precision_interval(truth: Floats, prediction: Floats) -> Interval:
    """Return an interval of the average precision, on the scale of its logit.

    Reference: Boyd, Eng and Page (2013), ECML PKDD 8190:451.
    """
    value = average_precision(truth, prediction)
    ones = float((truth > HALF).sum())
    inside = min(max(value, HALF / (ones + 1)), 1 - HALF / (ones + 1))
    middle, width = math.log(inside / (1 - inside)), _Z / math.sqrt(ones * inside * (1 - inside))
    return min(value, float(expit(middle - width))), max(value, float(expit(middle + width)))


def f1_interval(truth: Floats, prediction: Floats, at: float = HALF) -> Interval:
    """Return an interval of F1.

    Of the rows that are of class 1 or said to be, the share that is both is a proportion J, with
    Wilson's interval; F1 is 2 J / (1 + J), which rises with J, so its ends are those of J.
    """
    confusion = _confusion(truth, prediction, at)
    both, either = int(confusion[1, 1]), int(confusion.sum() - confusion[0, 0])
    low, high = wilson(both, either) if either else (0.0, 1.0)
    return 2 * low / (1 + low), 2 * high / (1 + high)


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


def root_mean_squared_error_interval(truth: Floats, prediction: Floats) -> Interval:
    """Return an interval of the root: that of the mean squared error, with its root taken."""
    low, high = of_mean((prediction - truth) ** 2)
    return math.sqrt(max(0.0, low)), math.sqrt(high)


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


def resampled(figure: Callable[[npt.NDArray[np.int64]], float], rows: int) -> Interval:
    """Return an interval from resampled rows: the figure, plus and minus 1.96 of their spread.

    Above `_DRAWN_ROWS` rows only so many are drawn, and the spread is scaled to all of them.
    Seeded by nothing but a constant: the same rows give the same interval. SciPy's bootstrap draws
    as many rows as there are, and ends where a draw has one class only.

    Args:
        figure: From the numbers of rows to the figure of these rows.
        rows: How many there are.

    Reference: Efron (1979), Ann. Statist. 7:1; Bickel, Goetze and van Zwet (1997), Stat. Sinica
    7:1 (fewer rows drawn than there are).
    """
    rng, size = np.random.default_rng(0), min(rows, _DRAWN_ROWS)
    values = []
    for _ in range(_DRAWS):
        try:
            values.append(figure(rng.integers(0, rows, size)))
        except OneClassError:
            continue
    value = figure(np.arange(rows))
    spread = _Z * float(np.std(values)) * math.sqrt(size / rows) if values else math.inf
    return value - spread, value + spread


# -- inside ------------------------------------------------------------------------------


def _both(truth: Floats, name: str) -> npt.NDArray[np.bool_]:
    is_one = truth > HALF
    if is_one.all() or not is_one.any():
        raise OneClassError(name)
    return is_one


def _over_classes(
    figure: Callable[[npt.NDArray[np.bool_], Floats], float],
    truth: Floats,
    prediction: Floats,
    name: str,
) -> float:
    if prediction.ndim == 1:
        return figure(_both(truth, name), prediction)
    present = np.unique(truth).astype(int)
    if len(present) < 2:  # noqa: PLR2004 - one class against no other
        raise OneClassError(name)
    return float(np.mean([figure(truth == place, prediction[:, place]) for place in present]))


def _area(is_one: npt.NDArray[np.bool_], prediction: Floats) -> float:
    ones = int(is_one.sum())
    wins = rankdata(prediction)[is_one].sum() - ones * (ones + 1) / 2
    return float(wins / (ones * (len(is_one) - ones)))


def _average_precision(is_one: npt.NDArray[np.bool_], prediction: Floats) -> float:
    _, place = np.unique(-prediction, return_inverse=True)
    said = np.bincount(place)
    right = np.bincount(place, is_one)
    return float(right @ (np.cumsum(right) / np.cumsum(said)) / right.sum())


def _said(prediction: Floats, at: float) -> npt.NDArray[np.int64]:
    """Return the class that each row is said to be of."""
    if prediction.ndim == 1:
        return (prediction >= at).astype(np.int64)
    return np.asarray(prediction.argmax(axis=1), np.int64)


def _confusion(truth: Floats, prediction: Floats, at: float) -> npt.NDArray[np.int64]:
    """Return counts by class and by the class that is said, shape (classes, classes)."""
    classes = 2 if prediction.ndim == 1 else prediction.shape[1]
    pairs = truth.astype(np.int64) * classes + _said(prediction, at)
    counts = np.bincount(pairs, minlength=classes * classes)
    return np.asarray(counts.reshape(classes, classes))


def _averaged(
    hits: npt.NDArray[np.int64],
    of: npt.NDArray[np.int64],
    confusion: npt.NDArray[np.int64],
    average: Average,
) -> float:
    """Return `hits / of` of class 1, or over the classes that are there or said to be."""
    shares = np.divide(hits, of, out=np.zeros(len(of)), where=of > 0)
    if average == "binary":
        return float(shares[1])
    rows = confusion.sum(axis=1)
    there = rows + confusion.sum(axis=0) > 0
    weights = rows if average == "weighted" else there.astype(np.int64)
    return float(np.average(shares[there], weights=weights[there]))


def _of_the_true_class(truth: Floats, prediction: Floats) -> Floats:
    if prediction.ndim == 1:
        return np.where(truth > HALF, prediction, 1 - prediction)
    return np.asarray(prediction[np.arange(len(truth)), truth.astype(int)])


def _reliability(truth: Floats, prediction: Floats) -> tuple[Floats, Floats, Floats]:
    """Return per bin with rows: its share of rows, its gap, and the variance of the gap."""
    came_true = truth > HALF
    if prediction.ndim > 1:
        came_true, prediction = _said(prediction, HALF) == truth, prediction.max(axis=1)
    places = np.clip((prediction * RELIABILITY_BINS).astype(int), 0, RELIABILITY_BINS - 1)
    rows = np.bincount(places, minlength=RELIABILITY_BINS)
    off = prediction - came_true
    sums = np.bincount(places, off, RELIABILITY_BINS)[rows > 0]
    squares = np.bincount(places, off * off, RELIABILITY_BINS)[rows > 0]
    counts = rows[rows > 0].astype(np.float64)
    gaps = sums / counts
    return counts / len(truth), gaps, np.maximum(squares / counts - gaps**2, 0) / counts
