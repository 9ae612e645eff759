"""How the values of a feature spread, in the reference and in the current window.

Above `monitor.profiles.profile`, below `state`, which keeps it for the page and the metrics. What
is shown are the coarse groups that the deciding statistic sums over, so that the picture is the
verdict's own, with the rows that are in no group (null, NaN, of another type) as bars of their own.
At most `MOST_BARS` bars a feature, whatever the data are. Groups of personal values are numbered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from steadfeast.featurestore.tables import EPOCH
from steadfeast.monitor.profiles.binning import ORDERED, ColumnEdges, ColumnKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from steadfeast.monitor.profiles.profile import ColumnProfile, Profile

MOST_GROUPS = 12
MOST_BARS = MOST_GROUPS + 3
"""The groups, and null, NaN and other types."""

_YEARS = 1900 * 365 * 86400
"""Seconds around 1970 that Python's dates cover on both sides."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One group of values.

    Attributes:
        label: Which values, in words; unique within the feature.
        reference: Share of the reference's rows, 0 to 1.
        current: Share of the current window's rows; None when there are no rows to count.
    """

    label: str
    reference: float
    current: float | None


@dataclass(frozen=True, slots=True)
class Distribution:
    """The reference against the current window, for one feature.

    Attributes:
        rows: Rows of the window that `current` is of.
        bars: In the order of the values; the most frequent category first.
    """

    feature: str
    rows: int
    bars: tuple[Bar, ...]


def distributions(reference: Profile, current: Profile | None) -> tuple[Distribution, ...]:
    """Return one distribution for each column of the reference that can be binned.

    Args:
        reference: What is normal.
        current: Over the same edges; None before the first window.
    """
    return tuple(
        _distribution(
            name,
            edges,
            reference.columns[name],
            None if current is None else current.columns[name],
        )
        for name, edges in reference.edges.columns.items()
        if edges.bins
    )


def _distribution(
    name: str, edges: ColumnEdges, reference: ColumnProfile, current: ColumnProfile | None
) -> Distribution:
    starts = _starts(edges, reference.counts)
    sides = [one for one in (reference, current) if one is not None]
    counts = [
        [*np.add.reduceat(one.counts, starts).tolist(), one.nulls, one.nans, one.mistyped]
        for one in sides
    ]
    labels = [
        *_labels(edges, starts, complete=not reference.counts[-1]),
        "null",
        "NaN",
        "other type",
    ]
    rows = [max(one.rows, 1) for one in sides]
    has_current = current is not None and current.rows > 0
    bars = tuple(
        Bar(
            label,
            counts[0][i] / rows[0],
            counts[1][i] / rows[1] if has_current else None,
        )
        for i, label in enumerate(labels)
        if any(side[i] for side in counts)  # an empty bar on both sides says nothing
    )
    return Distribution(name, current.rows if current else 0, bars)


def _starts(edges: ColumnEdges, counts: Any) -> list[int]:
    """Return the first bin of each group, at most `MOST_GROUPS`, the smallest joined first."""
    starts = list(edges.groups)
    if edges.kind not in ORDERED:
        unknown = edges.bins - 1
        return [*[start for start in starts if start < unknown][: MOST_GROUPS - 1], unknown]
    while len(starts) > MOST_GROUPS:
        sizes = np.add.reduceat(counts, starts)
        starts.pop(int(np.argmin(sizes[:-1] + sizes[1:])) + 1)
    return starts


def _labels(edges: ColumnEdges, starts: Sequence[int], *, complete: bool) -> list[str]:
    if edges.personal:
        known = [f"group {i + 1}" for i in range(len(starts) - (edges.kind not in ORDERED))]
    elif edges.kind not in ORDERED:
        known = [
            edges.categories[start] if stop - start == 1 else f"{stop - start} rarer ones"
            for start, stop in pairwise(starts)
        ]
    else:
        known = [stretch(edges, start, stop) for start, stop in pairwise([*starts, edges.bins])]
    if edges.kind not in ORDERED:
        return _unique([*known, "not in the reference" if complete else "all others"])
    return _unique(known)


def stretch(edges: ColumnEdges, start: int, stop: int) -> str:
    """Say which values bins `start` to `stop` hold: `(low, high]`, or one value.

    The cut just below a point mass stands for the value itself: what ends there ends under it.
    """
    low = edges.cuts[start - 1] if start else -math.inf
    high = edges.cuts[stop - 1] if stop <= len(edges.cuts) else math.inf
    above = math.nextafter(low, math.inf)
    if above == high:
        return _value(edges.kind, high)
    least, most = _value(edges.kind, low), _value(edges.kind, high)
    if math.nextafter(high, math.inf) in edges.cuts[stop : stop + 1]:
        most = f"under {most}"
    if not start:
        return "any" if stop > len(edges.cuts) else most if "under" in most else f"up to {most}"
    if stop > len(edges.cuts):
        return f"{least} or more" if above in edges.cuts[start : start + 1] else f"over {least}"
    return f"{least} to {most}"


def _value(kind: ColumnKind, value: float) -> str:
    if kind is ColumnKind.TIMESTAMP and abs(value) < _YEARS:
        return f"{EPOCH + timedelta(seconds=value):%Y-%m-%d %H:%M}"
    if value == 0:
        return "0"  # of either sign
    if not math.isfinite(value):
        return ""
    if not 1e-3 <= abs(value) < 1e6:  # noqa: PLR2004 - where digits stop being readable
        return f"{value:.3g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _unique(labels: Sequence[str]) -> list[str]:
    """Number labels that rounding made equal, and what a category took from us."""
    seen: dict[str, int] = {"null": 1, "NaN": 1, "other type": 1}
    found = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        found.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return found
