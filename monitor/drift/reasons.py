"""What moved, said in one line for a person.

Above `monitor.drift.shares`; `monitor.drift.detector` puts the lines into its verdicts. Pure.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from steadfeast.monitor.drift.shares import EMPTY, HIGH_TAIL, LOW_TAIL, OUTSIDE
from steadfeast.monitor.profiles import ORDERED, ColumnKind, stretch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from steadfeast.monitor.drift.shares import ShareChange
    from steadfeast.monitor.profiles import ColumnEdges, ColumnProfile

    Floats = npt.NDArray[np.float64]

_FEW, _CHANCE = 0.005, 3.0
"""Share of rows, and standard errors, by which more are infinite before it is said."""
_NEVER, _CODE = 1e-12, 0.005
"""Share of rows that is none, and from which a single value is one that repeats."""


def reason(
    edges: ColumnEdges,
    old: ColumnProfile,
    new: ColumnProfile,
    change: ShareChange | None,
    expected: Floats,
) -> str:
    """Say in one line what moved.

    What cannot be ordinary comes first: infinities, values that the reference has none of. Then a
    share that is most of it, the mean, or a category.
    """
    what = [_infinite(old, new)]
    apart = float(np.abs(new.counts / new.usable - expected[:-1]).sum()) / 2
    if change is not None and change.ratio > 1 and change.name not in {EMPTY, OUTSIDE}:
        is_most = change.change > apart / 2
        if is_most or _is_new(edges, change, expected):
            what.append(_seen(edges, change, expected))
        if is_most:
            return _joined(what)
    return _joined([*what, _usual_reason(edges, old, new, expected)])


def share_reason(
    edges: ColumnEdges,
    old: ColumnProfile,
    new: ColumnProfile,
    change: ShareChange,
    expected: Floats,
) -> str:
    """Say in one line how a share changed that is judged by itself."""
    limit = f"{100 * change.allowed:.2g} points"
    said = _joined([_infinite(old, new), _seen(edges, change, expected)])
    return f"{said}, limit {limit}"


def _usual_reason(
    edges: ColumnEdges, old: ColumnProfile, new: ColumnProfile, expected: Floats
) -> str:
    """Say what happened to the mean, or to the category that moved most."""
    if edges.personal:
        return "its values are personal and not shown"
    if edges.kind in ORDERED and old.sd is not None and new.sd is not None:
        what = {ColumnKind.TEXT: "mean length", ColumnKind.TIMESTAMP: "mean time"}.get(
            edges.kind, "mean"
        )
        return f"{what} {new.mean:.4g}, was {old.mean:.4g} (sd {new.sd:.3g}, was {old.sd:.3g})"
    shares = new.counts / new.usable, expected[:-1]
    most = int(np.argmax(np.abs(shares[0] - shares[1])))
    name = repr(edges.categories[most]) if most < len(edges.categories) else "other values"
    return f"share of {name} {shares[0][most]:.3f}, was {shares[1][most]:.3f}"


def _infinite(old: ColumnProfile, new: ColumnProfile) -> str:
    """Say that rows are infinite, if clearly more are than were; else nothing."""
    was, now = old.infinities / old.usable, new.infinities / new.usable
    by_chance = _CHANCE * math.sqrt(was * (1 - was) / new.usable)
    if now - was <= max(_FEW, by_chance):
        return ""
    return f"{_percent(now)} of rows are infinite, was {_percent(was)}"


def _is_new(edges: ColumnEdges, change: ShareChange, expected: Floats) -> bool:
    """Say whether the rows of a share have values of which the reference has none.

    Between single values that repeat, or beyond them, that is a new code; beyond a tail that
    thins out it is not.
    """
    if change.was > _NEVER:
        return False
    if edges.kind not in ORDERED:
        return change.first == edges.bins - 1
    beside = (change.first - 1, change.stop)
    return any(_is_point(edges, one) and expected[one] >= _CODE for one in beside)


def _is_point(edges: ColumnEdges, index: int) -> bool:
    """Say whether a bin holds one value."""
    if not 0 < index < len(edges.cuts):
        return False
    return math.nextafter(edges.cuts[index - 1], math.inf) == edges.cuts[index]


def _joined(what: Sequence[str]) -> str:
    return "; ".join(filter(None, what))


def _seen(edges: ColumnEdges, change: ShareChange, expected: Floats) -> str:
    """Say in one line which share changed, and how."""
    if change.name == EMPTY:
        return f"nulls {_percent(change.was)} -> {_percent(change.share)}"
    if change.name == OUTSIDE:
        where = "the outer fifth of the reference"
    elif edges.kind in ORDERED:
        where = {LOW_TAIL: "low tail", HIGH_TAIL: "high tail"}.get(change.name, "one cell")
        if _is_new(edges, change, expected):
            where = "values that the reference lacks"
        if not edges.personal:
            where += f" ({stretch(edges, change.first, change.stop)})"
    elif change.first < len(edges.categories):
        where = "one category" if edges.personal else repr(edges.categories[change.first])
    else:
        where = "categories that the reference lacks"
    return f"{_percent(change.share)} of rows in {where}, was {_percent(change.was)}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"  # noqa: PLR2004
