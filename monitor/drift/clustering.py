"""Rows of one entity are not independent: how much a feature moves with the mix of entities.

Above `monitor.profiles.binning`, beside `monitor.drift.shares`. Pure but for reading Arrow columns.

The carrier mix of an airport, or the distance of its flights, is decided by some dozens of
routes. A timetable that adds two flights a day moves it by more than any counting of rows allows,
and nothing has happened. What such a feature moves when the entities are drawn again, is the
cluster-robust variance of its shares (Liang and Zeger, 1986) without the part that single rows
have anyway:

    pair[b] = sum over pairs of different rows of one entity of (1[b] - p[b]) (1[b] - p[b]) / n^2

It is 0, up to chance, for a feature that varies from row to row, and large for one that an entity
decides. It is used as a floor under the limits, never as their scale, and capped: a feature that
three airports decide is still watched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from steadfeast.monitor.profiles.binning import places_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt
    import pyarrow as pa

    from steadfeast.monitor.profiles.binning import ColumnEdges, Edges

    Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Clustering:
    """What drawing the entities again would do to one feature.

    Attributes:
        variances: Of the share of each bin and, last, of null or NaN; shape (bins + 1,).
        shift: Of its distribution, as a shift in standard deviations of a normal feature.
    """

    variances: Floats
    shift: float


def clusterings(table: pa.Table, edges: Edges, keys: Iterable[str]) -> dict[str, Clustering]:
    """Return for each feature how it moves with the entities; of all keys, with the worst.

    Args:
        table: Rows with features and keys, or an even sample of them.
        edges: Binning of the features; one that the table lacks is left out.
        keys: Columns that name entities; a feature does not cluster itself.
    """
    entities, present = {}, set(table.column_names)
    for key in keys:
        if key in present:
            codes = table[key].combine_chunks().dictionary_encode().indices
            entities[key] = np.asarray(pc.fill_null(codes, -1).to_numpy(zero_copy_only=False)) + 1
    found = {}
    for name, one in edges.columns.items():
        if name not in present or not one.bins:
            continue
        bins = places_of(table[name], one)
        by_key = [_clustering(codes, bins, one) for key, codes in entities.items() if key != name]
        if by_key:
            found[name] = max(by_key, key=lambda each: each.shift)
    return found


def _clustering(
    entities: npt.NDArray[Any], bins: npt.NDArray[np.int64], edges: ColumnEdges
) -> Clustering:
    groups = np.searchsorted(edges.groups, bins, side="right") - 1
    used = bins < edges.bins
    coarse = _pairs(entities[used], groups[used], len(edges.groups))
    shares = np.bincount(groups[used], minlength=len(edges.groups)) / max(1, used.sum())
    held = shares > 0
    # Over coarse groups the square of a small shift is the PSI.
    squared = float(np.sum(coarse[held] / shares[held]))
    return Clustering(_pairs(entities, bins, edges.bins + 1), float(np.sqrt(squared)))


def _pairs(entities: npt.NDArray[Any], bins: npt.NDArray[Any], many: int) -> Floats:
    rows = len(bins)
    if not rows:
        return np.zeros(many)
    sizes = np.bincount(entities).astype(np.float64)
    cells, counts = np.unique(entities.astype(np.int64) * many + bins, return_counts=True)
    owner, bin_ = cells // many, cells % many
    shares = np.bincount(bins, minlength=many) / rows
    squares = np.bincount(bin_, counts.astype(np.float64) ** 2, minlength=many)
    crossed = np.bincount(bin_, counts * sizes[owner], minlength=many)
    whole = squares - 2 * shares * crossed + shares**2 * np.sum(sizes**2)
    found: Floats = np.maximum(whole - rows * shares * (1 - shares), 0) / rows**2
    return found
