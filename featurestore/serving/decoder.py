"""Packed rows of one layout as NumPy: the columns asked for, and which of their values may be used.

Above `rows` and `serving`, whose rule about time and statuses it applies; below `vectors`. Columns
of one width and kind stand side by side in a row, so that one stride reads all of them for all
rows. Numbers, truth values and text have such a form; for the rest there is Arrow.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import pyarrow as pa

from steadfeast.featurestore.rows import order_of, times_of, usable, validity_of
from steadfeast.featurestore.serving import assembly
from steadfeast.featurestore.tables import EXACT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from steadfeast.featurestore.rows import Layout
    from steadfeast.featurestore.serving.assembly import Codes

_KINDS = {
    **{t: f"<i{t.bit_width // 8}" for t in (pa.int8(), pa.int16(), pa.int32(), pa.int64())},
    **{t: f"<u{t.bit_width // 8}" for t in (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())},
    pa.float32(): "<f4",
    pa.float64(): "<f8",
    pa.bool_(): "?",
}
_TEXT = pa.string()


class Block(NamedTuple):
    """Columns of one NumPy type.

    Attributes:
        cells: Values, shape (columns, n); meaningless where not `valid`.
        valid: Shape (columns, n), or None when every value may be used.
    """

    cells: NDArray[Any]
    valid: NDArray[np.bool_] | None

    def lists(self) -> list[list[Any]]:
        """Return each column as a list, None where a value may not be used."""
        columns: list[list[Any]] = self.cells.tolist()
        if self.valid is None:
            return columns
        return [
            [value if ok else None for value, ok in zip(column, there, strict=True)]
            for column, there in zip(columns, self.valid.tolist(), strict=True)
        ]

    def arrays(self) -> Sequence[NDArray[Any]]:
        """Return each column as Arrow would: numbers as floats where there is a null, else None.

        Whole numbers that a float would round are objects.
        """
        cells, valid = self
        if valid is None:
            return list(cells)
        if cells.dtype.kind == "f":
            return list(np.where(valid, cells, cells.dtype.type(np.nan)))
        return [
            column if there.all() else np.where(there, column, cast("Any", _nothing(column[there])))
            for column, there in zip(cells, valid, strict=True)
        ]


def _nothing(values: NDArray[Any]) -> float | None:
    """Return what stands for a null beside these values: NaN where a float can hold them all."""
    if values.dtype.kind not in "iu":
        return None
    exact = not len(values) or (values.max() <= EXACT and values.min() >= -EXACT)
    return np.nan if exact else None


class Judged(NamedTuple):
    """What one view says of n keys.

    Attributes:
        rows: The packed rows; None where there is none.
        fresh: Whether each may be used, shape (n,); None when all may.
        event_us: Event times in µs, shape (n,); meaningless where there is no row.
        blocks: The values, in the order of `Decoder.order`.
        missing: Feast's `FieldStatus` of values without a row.
    """

    rows: Sequence[bytes | None]
    fresh: NDArray[np.bool_] | None
    event_us: NDArray[np.int64]
    blocks: list[Block]
    missing: np.uint8 = assembly.NOT_FOUND

    def states(self) -> Codes:
        """Return Feast's `FieldStatus` of each row's values that are not null, shape (n,)."""
        states: Codes = np.full(len(self.rows), assembly.PRESENT)
        if self.fresh is not None:
            states[~self.fresh] = assembly.OUTSIDE_MAX_AGE
        if None in self.rows:
            states[[row is None for row in self.rows]] = self.missing
        return states

    def tally(self) -> NDArray[np.int64]:
        """Count the values by their `FieldStatus`, shape (5,)."""
        counts = np.zeros(5, np.int64)
        columns = sum(len(block.cells) for block in self.blocks)
        if self.fresh is None and None not in self.rows:
            counts[assembly.PRESENT] = columns * len(self.rows)
            if all(valid is None for _, valid in self.blocks):
                return counts
            states = np.full(len(self.rows), assembly.PRESENT)
        else:
            states = self.states()
            counts = np.bincount(states, minlength=5) * columns
        for _, valid in self.blocks:
            if valid is not None:
                nulls = int((~valid & (states == assembly.PRESENT)).sum())
                counts[assembly.PRESENT] -= nulls
                counts[assembly.NULL_VALUE] += nulls
        return counts


class _Run(NamedTuple):
    """Columns of one NumPy type that stand side by side in a row."""

    start: int
    width: int
    across: int
    dtype: np.dtype[Any]
    places: NDArray[np.intp] | None  # None when all of them are asked for
    columns: NDArray[np.intp]  # their indices in the layout


class Decoder:
    """Reads `names` out of rows of `layout`; make one with `decoder_of`.

    Attributes:
        order: The names, in the order in which blocks have them.
    """

    def __init__(self, layout: Layout, names: Sequence[str], ttl_us: int) -> None:
        self._layout, self._ttl_us = layout, ttl_us
        asked = {layout.index[name] for name in names}
        self._runs = tuple(_runs(layout, asked))
        self._texts = [place for place, i in enumerate(layout.variable) if i in asked]
        self._text_columns = np.array([layout.variable[place] for place in self._texts], np.intp)
        count = len(layout.variable)
        self._ends, self._ends_at = Struct(f"<{count}I"), layout.prefix - 4 * count
        columns = [int(i) for run in self._runs for i in run.columns]
        self.order = [layout.schema.names[i] for i in (*columns, *self._text_columns)]

    def judge(self, rows: Sequence[bytes | None], at: int) -> Judged:
        """Decode at least one row, and say what may be used at `at`, µs since the epoch."""
        if len(rows) == 1:
            return self._judge_one(rows, at)
        layout, n = self._layout, len(rows)
        blank = layout.null_row
        if layout.variable:
            stride = layout.prefix
            data = b"".join([(row or blank)[:stride] for row in rows])
        else:
            stride = len(blank)
            data = b"".join([row or blank for row in rows])
        event_us, created_us = times_of(data, n, stride)
        usable_now = usable(event_us, self._ttl_us, at) & (created_us <= at)
        fresh = None if usable_now.all() else usable_now
        if fresh is not None:  # a row that is not due yet is none
            early = np.maximum(event_us, created_us) > at
            if early.any():
                rows = [None if ahead else row for row, ahead in zip(rows, early, strict=True)]
        valid = validity_of(layout, data, n, stride)

        def block(cells: NDArray[Any], columns: NDArray[np.intp]) -> Block:
            here = None if valid is None else valid[columns]
            if fresh is not None:
                here = np.broadcast_to(fresh, cells.shape) if here is None else here & fresh
            return Block(cells, here)

        blocks = []
        for run in self._runs:
            shape, strides = (run.across, n), (run.width, stride)
            cells = np.ndarray(shape, run.dtype, data, run.start, strides)
            cells = np.ascontiguousarray(cells if run.places is None else cells[run.places])
            blocks.append(block(cells, run.columns))
        if self._texts:
            blocks.append(block(self._text(rows), self._text_columns))
        return Judged(rows, fresh, event_us, blocks)

    def _judge_one(self, rows: Sequence[bytes | None], at: int) -> Judged:
        """Do what `judge` does for one row, where calls into NumPy are most of the cost."""
        layout = self._layout
        row = rows[0] or layout.null_row
        event_us, created_us = order_of(row)
        fresh = usable(event_us, self._ttl_us, at) and created_us <= at
        valid = None if layout.says_all_valid(row) else validity_of(layout, row, 1, len(row))
        blocks = []
        for run in self._runs:
            cells = np.ndarray((run.across, 1), run.dtype, row, run.start)
            if run.places is not None:
                cells = cells[run.places]
            blocks.append(Block(cells, None if valid is None else valid[run.columns]))
        if self._texts:
            here = None if valid is None else valid[self._text_columns]
            blocks.append(Block(self._text(rows), here))
        if fresh:
            return Judged(rows, None, np.array((event_us,)), blocks)
        blocks = [Block(cells, np.zeros(cells.shape, np.bool_)) for cells, _ in blocks]
        if max(event_us, created_us) > at:
            rows = (None,)
        return Judged(rows, np.zeros(1, np.bool_), np.array((event_us,)), blocks)

    def _text(self, rows: Sequence[bytes | None]) -> NDArray[np.object_]:
        """Return the text columns, shape (columns, n); what is null is anything."""
        cells = np.empty((len(self._texts), len(rows)), np.object_)
        prefix = self._layout.prefix
        for i, row in enumerate(rows):
            if row is not None:
                ends = self._ends.unpack_from(row, self._ends_at)
                for j, place in enumerate(self._texts):
                    start = prefix + (ends[place - 1] if place else 0)
                    cells[j, i] = row[start : prefix + ends[place]].decode()
        return cells


def decoder_of(layout: Layout, names: Sequence[str], ttl_us: int) -> Decoder | None:
    """Return a decoder of rows of `layout`; None when a type has no NumPy form."""
    types = {layout.types[layout.index[name]] for name in names}
    return Decoder(layout, names, ttl_us) if types <= _KINDS.keys() | {_TEXT} else None


def _runs(layout: Layout, asked: set[int]) -> list[_Run]:
    runs = []
    for run in layout.fixed:
        kinds: dict[str, list[int]] = {}
        for place, column in enumerate(run.columns):
            if column in asked:
                kinds.setdefault(_KINDS[layout.types[column]], []).append(place)
        for kind, places in kinds.items():
            everything = len(places) == len(run.columns)
            columns = np.array([run.columns[place] for place in places])
            runs.append(
                _Run(
                    run.start,
                    run.width,
                    len(run.columns),
                    np.dtype(kind),
                    None if everything else np.array(places),
                    columns,
                )
            )
    return runs
