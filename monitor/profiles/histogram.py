"""How many values are in each bin, several times faster than a search for each.

Bottom layer: arrays in, counts out. A binary search over a hundred cuts mispredicts its branches
for every value. Here a value is first put into one of `CELLS` cells of equal width by a
subtraction, a multiplication and a truncation. All three keep the order of floats, rounding
included, so a value in a cell without a cut is on the same side of every cut as its cell is, and
counting cells counts its bin. Only what shares a cell with a cut is compared with that cut. So
the counts are those of the search, to the last one, whatever the values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Integers = npt.NDArray[np.int64]

CELLS = 4096
WORTHWHILE = 4096
"""Values below which a search is done before the cells are made."""
_OUTER = 50
"""One cut in so many, at each end, is left to the outermost cells: tails would stretch the rest."""
_LEAST_CUTS = 2


class Counter:
    """Counts values over the bins `(cuts[i-1], cuts[i]]`.

    Args:
        cuts: Ascending, finite.
    """

    def __init__(self, cuts: Sequence[float]) -> None:
        self._cuts = np.array(cuts, dtype=np.float64)
        self._cells: _Cells | None = None

    def count(self, values: npt.NDArray[Any]) -> Integers:
        """Return rows per bin, int64, shape (len(cuts) + 1,).

        Args:
            values: Any width of integer or float, infinities included, without NaN, shape (n,).
                Whole numbers are compared as the floats next to them.
        """
        if len(values) >= WORTHWHILE and len(self._cuts) >= _LEAST_CUTS:
            if self._cells is None:
                self._cells = _Cells(self._cuts)
            return self._cells.count(values)
        return self._searched(values)

    def _searched(self, values: npt.NDArray[Any]) -> Integers:
        found = np.searchsorted(self._cuts, values.astype(np.float64, copy=False))
        counts: Integers = np.bincount(found, minlength=len(self._cuts) + 1)
        return counts


class _Cells:
    def __init__(self, cuts: npt.NDArray[np.float64]) -> None:
        self._cuts = cuts
        outer = len(cuts) // _OUTER
        low, high = cuts[outer], cuts[-1 - outer]
        self._low = low
        # Halved, because the distance of the largest floats overflows. A scale that rounds to
        # zero or overflows puts everything into few cells: slower, and as right.
        with np.errstate(over="ignore", divide="ignore"):
            self._scale = (CELLS - 2) / 2 / (high / 2 - low / 2)
        if not np.isfinite(self._scale):
            self._scale = np.float64(1.0)
        held = self._cell(cuts)
        cells, first, many = np.unique(held, return_index=True, return_counts=True)
        self._held = cells
        self._below = np.searchsorted(held, np.arange(CELLS))
        self._bounds = np.searchsorted(self._below, np.arange(len(cuts) + 2))
        self._shared = np.zeros(CELLS, dtype=bool)
        self._shared[cells] = True
        self._crowded = np.zeros(CELLS, dtype=bool)
        self._crowded[cells[many > 2]] = True  # noqa: PLR2004 - the two that are kept here
        self._first, self._second = np.full((2, CELLS), np.inf)
        self._first[cells] = cuts[first]
        self._second[cells[many > 1]] = cuts[first[many > 1] + 1]

    def _cell(self, values: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
        with np.errstate(over="ignore"):
            scaled = np.subtract(values, self._low, dtype=np.float64)
            scaled *= self._scale
        scaled += 1
        np.clip(scaled, 0, CELLS - 1, out=scaled)
        cells: npt.NDArray[np.intp] = scaled.astype(np.intp)
        return cells

    def count(self, values: npt.NDArray[Any]) -> Integers:
        cell = self._cell(values)
        per_cell = np.bincount(cell, minlength=CELLS)
        per_cell[self._held] = 0
        sums = np.concatenate([[0], np.cumsum(per_cell)])
        counts: Integers = np.diff(sums[self._bounds])
        inside = np.flatnonzero(self._shared[cell])
        cell, values = cell[inside], values[inside]
        found = self._below[cell]
        found += values > self._first[cell]
        found += values > self._second[cell]
        crowded = np.flatnonzero(self._crowded[cell])
        if len(crowded):
            most = values[crowded].astype(np.float64, copy=False)
            found[crowded] = np.searchsorted(self._cuts, most)
        counts += np.bincount(found, minlength=len(counts))
        return counts
