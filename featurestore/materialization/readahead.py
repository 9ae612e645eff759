"""Rows of a source that are read before they are due, for many small steps in a row.

Below `materializer`. Small steps through a file that does not change, as in a replay or a
backfill, would each pay for a scan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from steadfeast.featurestore.offline import Bound


@dataclass(slots=True)
class ReadAhead:
    """Rows of one view that became known from `start` to `end`, read before they are due.

    Attributes:
        bound: The source they were read from; another object once its file has changed.
        start: Microseconds, inclusive.
        end: Microseconds, inclusive.
        rows: In the order in which they became known; None when nothing was read ahead.
        last: Rows of the last step.
        known: When each became known, microseconds, ascending.
    """

    bound: Bound
    start: int
    end: int
    rows: pa.Table | None
    last: int
    known: np.ndarray[Any, np.dtype[np.int64]] | None = None

    @classmethod
    def of(cls, bound: Bound, start: int, end: int, rows: pa.Table) -> ReadAhead:
        """Put rows in the order in which they became known."""
        times = [column.name for column in (bound.view.timestamp, bound.view.created) if column]
        for name in times:  # a row without a time is never known
            rows = rows.filter(pc.is_valid(rows.column(name)))
        known = np.max([rows.column(name).cast(pa.int64()).to_numpy() for name in times], axis=0)
        order = np.argsort(known, kind="stable")
        return cls(bound, start, end, rows.take(order).combine_chunks(), 0, known[order])

    def covers(self, bound: Bound, since: int, until: int) -> bool:
        """Say whether the rows of a step are here."""
        return (
            self.rows is not None
            and self.bound is bound
            and self.start <= since
            and until <= self.end
        )

    def between(self, since: int, until: int) -> list[pa.RecordBatch]:
        """Return the rows of a step, both ends included."""
        if self.rows is None or self.known is None:
            return []
        first = int(np.searchsorted(self.known, since, side="left"))
        stop = int(np.searchsorted(self.known, until, side="right"))
        self.last = stop - first
        return self.rows.slice(first, stop - first).to_batches() if stop > first else []
