"""The entity frame: which rows are asked for, at which instant.

Above `session`. Takes pandas, Arrow or SQL text and gives one Arrow table, in the order given,
with the time column as UTC microseconds; all other columns stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from feast.errors import EntityTimestampInferenceException, FeastEntityDFMissingColumnsError

from steadfeast.featurestore.errors import EntityFrameError
from steadfeast.featurestore.tables import instants

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

DEFAULT_TIME = "event_timestamp"


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


Rows: TypeAlias = (
    "pa.Table | pd.DataFrame | Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]] | str"
)
"""Rows as Feast's users give them: a table, columns, rows, or the text of a DuckDB query."""


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
        frame: What `arrow_table` takes; a query may read files, paths are relative to the
            repository.
        connection: Runs the text of a query.

    Raises:
        EntityFrameError: There is no time column, a time cannot be read, a name comes twice, or
            the query fails.
    """
    return _with_time(arrow_table(frame, connection))


def arrow_table(frame: Any, connection: duckdb.DuckDBPyConnection | None = None) -> pa.Table:
    """Return rows as Feast's users give them as one Arrow table; times in texts are parsed.

    Args:
        frame: pandas DataFrame, Arrow table, record batch or reader, anything else with Arrow's
            stream interface, a mapping of columns, a list of mappings, or the text of a query.
        connection: Runs the text of a query; without one there can be none.

    Raises:
        EntityFrameError: It is something else, a name comes twice, or the query fails.
    """
    if isinstance(frame, str) and connection is not None:
        return _queried(frame, connection)
    if isinstance(frame, pd.DataFrame):
        return _from_pandas(frame)
    try:
        if isinstance(frame, pa.RecordBatch):
            table = pa.Table.from_batches([frame])
        elif isinstance(frame, (pa.Table, pa.RecordBatchReader)):
            table = frame if isinstance(frame, pa.Table) else frame.read_all()
        elif hasattr(frame, "__arrow_c_stream__"):
            table = pa.table(frame)
        elif isinstance(frame, Mapping):
            table = pa.table({str(name): pa.array(column) for name, column in frame.items()})
        elif isinstance(frame, Sequence) and all(isinstance(row, Mapping) for row in frame):
            names = list(dict.fromkeys(name for row in frame for name in row))
            table = pa.table({n: pa.array([row.get(n) for row in frame]) for n in names})
        else:
            kinds = "a DataFrame, an Arrow table, a mapping of columns or a list of mappings"
            raise EntityFrameError(f"is a {type(frame).__name__}, not {kinds}")
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, ValueError) as error:
        raise EntityFrameError(f"has no Arrow form: {error}") from error
    return _once(table)


def _queried(text: str, connection: duckdb.DuckDBPyConnection) -> pa.Table:
    try:
        statements = connection.extract_statements(text)
        if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
            raise EntityFrameError("the text is not one query that gives rows")
        return _once(connection.sql(text).to_arrow_table())
    except duckdb.Error as error:
        line = str(error).split("\n", 1)[0]
        raise EntityFrameError(f"the query failed: {line}") from error


def _once(table: pa.Table) -> pa.Table:
    names = table.column_names
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise EntityFrameError(f"has two columns named {min(repeated)!r}")
    return table


def _from_pandas(frame: pd.DataFrame) -> pa.Table:
    names = [str(name) for name in frame.columns]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise EntityFrameError(f"has two columns named {min(repeated)!r}")
    if DEFAULT_TIME in frame.columns and frame[DEFAULT_TIME].dtype == object:
        frame = frame.assign(**{DEFAULT_TIME: _parsed(frame[DEFAULT_TIME])})
    columns = {}
    for name, label in zip(names, frame.columns, strict=True):
        try:
            columns[name] = pa.array(frame[label], from_pandas=True)
        except (pa.ArrowInvalid, pa.ArrowTypeError, ValueError) as error:
            raise EntityFrameError(f"has no one Arrow type: {error}", column=name) from error
    return pa.table(columns)


def _parsed(column: pd.Series[Any]) -> pd.Series[Any]:
    """Parse texts and datetimes of mixed zones; what has no zone is UTC."""
    try:
        return pd.to_datetime(column, utc=True, format="ISO8601")
    except (ValueError, TypeError) as error:
        raise EntityFrameError(
            f"has a time that cannot be read: {error}", column=str(column.name)
        ) from error


def _with_time(table: pa.Table) -> Entities:
    names, name = table.column_names, DEFAULT_TIME
    if name not in names:
        times = [f.name for f in table.schema if pa.types.is_timestamp(f.type)]
        if len(times) != 1:
            raise NoTimeColumnError(times)
        name = times[0]
    column = table[name]
    try:
        times = instants(column)
    except (pa.ArrowInvalid, ValueError) as error:
        raise EntityFrameError(f"has a time that cannot be read: {error}", column=name) from error
    return Entities(table.set_column(names.index(name), name, times), name)
