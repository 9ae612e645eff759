"""The entity frame: which rows are asked for, at which instant.

Above `session`. Takes pandas, Arrow or SQL text and gives one Arrow table, in the order given,
with the time column as UTC microseconds; all other columns stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from feast.errors import EntityTimestampInferenceException, FeastEntityDFMissingColumnsError

from steadfeast.featurestore.errors import EntityFrameError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

DEFAULT_TIME = "event_timestamp"
INSTANT = pa.timestamp("us", tz="UTC")


class MissingColumnsError(EntityFrameError, FeastEntityDFMissingColumnsError):
    """The entity frame lacks columns that the requested features need."""

    def __init__(self, missing: Collection[str], there: Collection[str]) -> None:
        names = ", ".join(map(repr, sorted(missing)))
        EntityFrameError.__init__(self, f"lacks {names}; it has {', '.join(map(repr, there))}")


class NoTimeColumnError(EntityFrameError, EntityTimestampInferenceException):
    """The entity frame has no column that says when."""

    def __init__(self, candidates: Collection[str]) -> None:
        found = f"several could be: {', '.join(map(repr, candidates))}" if candidates else "none is"
        EntityFrameError.__init__(
            self,
            f"name the time column {DEFAULT_TIME!r}, or have just one of a time type ({found})",
        )


@dataclass(frozen=True, slots=True)
class Entities:
    """The rows asked for.

    Attributes:
        table: All columns in the order given; `time` is UTC microseconds.
        time: Name of the time column.
    """

    table: pa.Table
    time: str

    def instants(self) -> pa.ChunkedArray:
        """Return the times as int64 microseconds since the epoch, null where there is none."""
        return self.table[self.time].cast(pa.int64())

    def slices(self, rows: int) -> Iterator[Entities]:
        """Give the rows in order, at most so many at a time, at least once."""
        if self.table.num_rows <= rows:
            yield self
            return
        for start in range(0, self.table.num_rows, rows):
            yield Entities(self.table.slice(start, rows), self.time)

    def range(self) -> tuple[int, int] | None:
        """Return the least and the greatest time in microseconds; None without any."""
        bounds = pc.min_max(self.instants()).as_py()
        return None if bounds["min"] is None else (bounds["min"], bounds["max"])


def read_entities(frame: Any, connection: duckdb.DuckDBPyConnection) -> Entities:
    """Return the entity frame as one Arrow table.

    Args:
        frame: pandas DataFrame, Arrow table, record batch or reader, or the text of a query that
            DuckDB answers (it may read files; paths are relative to the repository).
        connection: Runs the text of a query.

    Raises:
        EntityFrameError: There is no time column, a time cannot be read, a name comes twice, or
            the query fails.
    """
    if isinstance(frame, str):
        try:
            statements = connection.extract_statements(frame)
            if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
                raise EntityFrameError("the text is not one query that gives rows")
            table = connection.sql(frame).to_arrow_table()
        except duckdb.Error as error:
            raise EntityFrameError(f"the query failed: {error}") from error
        return _with_time(table)
    if isinstance(frame, pd.DataFrame):
        return _with_time(_from_pandas(frame))
    if isinstance(frame, pa.RecordBatch):
        return _with_time(pa.Table.from_batches([frame]))
    if isinstance(frame, pa.RecordBatchReader):
        return _with_time(frame.read_all())
    if isinstance(frame, pa.Table):
        return _with_time(frame)
    raise EntityFrameError(f"is a {type(frame).__name__}, not pandas, Arrow or SQL text")


def _from_pandas(frame: pd.DataFrame) -> pa.Table:
    if DEFAULT_TIME in frame.columns and frame[DEFAULT_TIME].dtype == object:
        frame = frame.assign(**{DEFAULT_TIME: _parsed(frame[DEFAULT_TIME])})
    try:
        return pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError, ValueError) as error:
        raise EntityFrameError(f"has no Arrow form: {error}") from error


def _parsed(column: pd.Series[Any]) -> pd.Series[Any]:
    """Parse texts and datetimes of mixed zones; what has no zone is UTC."""
    try:
        return pd.to_datetime(column, utc=True, format="ISO8601")
    except (ValueError, TypeError) as error:
        raise EntityFrameError(
            f"has a time that cannot be read: {error}", column=str(column.name)
        ) from error


def _with_time(table: pa.Table) -> Entities:
    names = table.column_names
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise EntityFrameError(f"has two columns named {min(repeated)!r}")
    name = DEFAULT_TIME
    if name not in names:
        times = [f.name for f in table.schema if pa.types.is_timestamp(f.type)]
        if len(times) != 1:
            raise NoTimeColumnError(times)
        name = times[0]
    column = table[name]
    try:
        instants = _instants(column)
    except (pa.ArrowInvalid, ValueError) as error:
        raise EntityFrameError(f"has a time that cannot be read: {error}", column=name) from error
    return Entities(table.set_column(names.index(name), name, instants), name)


def _instants(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return times as UTC microseconds, nanoseconds floored, naive ones taken as UTC."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        parsed = pd.to_datetime(column.to_pandas(), utc=True, format="ISO8601")
        column = pa.chunked_array([pa.Array.from_pandas(parsed)])
        kind = column.type
    elif pa.types.is_null(kind):
        return column.cast(INSTANT)
    elif pa.types.is_date(kind):
        return column.cast(pa.timestamp("us")).cast(pa.int64()).cast(INSTANT)
    if not pa.types.is_timestamp(kind):
        raise pa.ArrowInvalid(f"{kind} is not a type of times")
    number = column.cast(pa.int64())
    if kind.unit == "ns":
        floored = [
            pa.array(
                np.floor_divide(c.fill_null(0).to_numpy(zero_copy_only=False), 1000),
                mask=c.is_null().to_numpy(zero_copy_only=False),
            )
            for c in number.chunks
        ]
        number = pa.chunked_array(floored, pa.int64())
    else:
        number = pc.multiply_checked(number, {"us": 1, "ms": 10**3, "s": 10**6}[kind.unit])
    return number.cast(INSTANT)
