"""Which features move together in the reference.

Above profiles; `monitor.drift.reference` keeps what is found here, and decisions make one episode
of what breaks together. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse.csgraph import connected_components

from steadfeast.monitor.profiles import ORDERED

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from steadfeast.monitor.profiles import Edges, Profile

CORRELATED = 0.8
"""Correlation of two features' changes from bucket to bucket from which they move together."""
FEWEST = 15
"""Changes without which nobody can tell."""
_WEEK = 7
_WEEKS = 3


def related(found: Sequence[tuple[datetime, Profile]], edges: Edges) -> dict[str, str]:
    """Return the group of each feature that moves with others of its view, by feature.

    Two features of a view move together if the changes of their means from bucket to bucket, less
    what is usual for the weekday, are correlated. That shows common causes of days as well as rows
    that agree, and neither a common season of weeks nor a common trend.

    Args:
        found: Start and profile of each bucket of the reference, by time.
        edges: What the profiles are over.

    Returns:
        A group is named by the first of its features; who moves alone is left out.
    """
    if len(found) <= FEWEST:
        return {}
    names = [name for name, one in edges.columns.items() if one.kind in ORDERED]
    means = np.array(
        [[_mean(profile, name) for name in names] for _, profile in found], dtype=np.float64
    ).reshape(len(found), len(names))
    if len({start.weekday() for start, _ in found}) == _WEEK and len(found) >= _WEEK * _WEEKS:
        days = np.array([start.weekday() for start, _ in found])
        for day in range(_WEEK):
            means[days == day] -= means[days == day].mean(axis=0)
    changes = np.diff(means, axis=0)
    spread = changes.std(axis=0)
    known = [i for i in range(len(names)) if np.isfinite(spread[i]) and spread[i] > 0]
    if not known:
        return {}
    standard = (changes[:, known] - changes[:, known].mean(axis=0)) / spread[known]
    together = np.abs(standard.T @ standard) / len(changes) >= CORRELATED
    views = np.array([view_of(names[i]) for i in known])
    together &= views[:, None] == views[None, :]
    _, groups = connected_components(together, directed=False)
    listed = [names[i] for i in known]
    members = {
        group: [n for n, g in zip(listed, groups, strict=True) if g == group]
        for group in set(groups)
    }
    return {name: those[0] for those in members.values() if len(those) > 1 for name in those}


def view_of(feature: str) -> str:
    """Return the feature view of a full feature name; empty for a plain one."""
    view, separator, _ = feature.partition("__")
    return view if separator else ""


def _mean(profile: Profile, name: str) -> float:
    column = profile.columns.get(name)
    return np.nan if column is None or not column.usable else column.mean
