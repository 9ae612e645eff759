"""Arrow tables as the values of one binary column, which is what Spark's shuffle moves.

Bottom of `offline.spark`. A block is an Arrow IPC stream, compressed with zstd: columns stay
columns, so a shuffle costs a row of Spark per block, not per row, and every type of Arrow
survives, those that Spark has no name for included.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

ROWS_PER_BLOCK = 65_536
"""Most rows in a block; a task holds one or two at a time."""

SCHEMA = pa.schema([("to", pa.int32()), ("kind", pa.int32()), ("block", pa.binary())])
"""A block on its way: the partition that it goes to, what it holds, and its bytes."""

SPARK_SCHEMA = "to int, kind int, block binary"
"""The same for Spark."""

_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")


def packed(table: pa.Table) -> bytes:
    """Return a table as one block."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=_OPTIONS) as writer:
        writer.write_table(table)
    block: bytes = sink.getvalue().to_pybytes()
    return block


def unpacked(block: bytes | pa.Buffer) -> pa.Table:
    """Return the table that a block holds."""
    return pa.ipc.open_stream(block).read_all()


def row(to: int, kind: int, table: pa.Table) -> pa.RecordBatch:
    """Return one block as a batch of `SCHEMA` with one row."""
    columns = [pa.array([to], pa.int32()), pa.array([kind], pa.int32())]
    return pa.RecordBatch.from_arrays(
        [*columns, pa.array([packed(table)], pa.binary())], schema=SCHEMA
    )


def cut(
    table: pa.Table, places: NDArray[np.int64], kind: int, *, sort: bool = True
) -> Iterator[pa.RecordBatch]:
    """Give the rows of a table as blocks to their places, order kept within each.

    Args:
        table: The rows.
        places: The partition that each row goes to, shape (rows,).
        kind: What the blocks hold.
        sort: The places are in no order.
    """
    if sort:
        order = np.argsort(places, kind="stable")
        table, places = table.take(pa.array(order)), places[order]
    bounds = [0, *(np.flatnonzero(np.diff(places)) + 1).tolist(), len(places)]
    for start, end in pairwise(bounds):
        for first in range(start, end, ROWS_PER_BLOCK):
            rows = min(ROWS_PER_BLOCK, end - first)
            yield row(int(places[first]), kind, table.slice(first, rows))


def blocks(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[int, int, pa.Table]]:
    """Give `(to, kind, table)` of each block in batches of `SCHEMA`."""
    for batch in batches:
        for i in range(batch.num_rows):
            block = batch.column(2)[i].as_buffer()
            yield batch.column(0)[i].as_py(), batch.column(1)[i].as_py(), unpacked(block)
