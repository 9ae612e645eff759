"""The point-in-time join: entity rows in, one value per feature and row out.

Above `views`. For each view, keys and times alone decide every row's winner; then an equi-join
fetches the features of the winners. What ties in event time is rare: it shows as a row fetched
more than once, and only for such rows is the total order evaluated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from steadfeast.featurestore.errors import EntityFrameError
from steadfeast.featurestore.offline.binding import spine_key
from steadfeast.featurestore.offline.sources import reading
from steadfeast.featurestore.tables import sql

if TYPE_CHECKING:
    from collections.abc import Sequence

    import duckdb
    from numpy.typing import NDArray

    from steadfeast.featurestore.offline.binding import Bound
    from steadfeast.featurestore.offline.entities import Entities

_INT64 = 2**63
_MEAN_UNCROWDED, _MOST_UNCROWDED = 3, 16
"""Up to so many entity rows per key, on average and at most, pairs cost less than two sorts."""


def join(
    connection: duckdb.DuckDBPyConnection,
    entities: Entities,
    bounds: Sequence[Bound],
    *,
    as_known: bool,
) -> pa.Table:
    """Return the entity table with each view's features appended, row for row.

    Args:
        connection: Where the join runs; it overwrites `spine`, `ids`, `asked`, `won`, `tied`.
        entities: The rows asked for.
        bounds: The views.
        as_known: Use a source row only from its created time on.

    Raises:
        SourceError: A source cannot be read.
        duckdb.OutOfMemoryException: See `session`, which makes it a `ResourceError`.
    """
    table = entities.table
    for bound in bounds:
        with reading(bound.name, bound.source.location):
            columns = features_of(connection, entities, bound, as_known=as_known)
        for name, column in columns:
            table = table.append_column(name, column)
    return table


def check_names(entities: Entities, bounds: Sequence[Bound]) -> None:
    """Refuse an entity frame with a column that has the name of a requested feature.

    Raises:
        EntityFrameError: There is one: either meaning of the name would be lost.
    """
    names = set(entities.table.column_names)
    for bound in bounds:
        for _, name in bound.view.features:
            if name in names:
                problem = (
                    f"has the name of a feature of view {bound.name!r}; rename it, "
                    "or ask for full feature names"
                )
                raise EntityFrameError(problem, column=name)


def features_of(
    connection: duckdb.DuckDBPyConnection, entities: Entities, bound: Bound, *, as_known: bool
) -> list[tuple[str, pa.ChunkedArray]]:
    """Return one view's features as `(result name, one value per entity row)`."""
    view, rows = bound.view, entities.table.num_rows
    if not view.features:
        return []
    reach = won(connection, entities, bound, as_known=as_known)
    query = sql.values(view, reach, as_known=as_known, ties=False)
    fetched = connection.sql(query).to_arrow_table()
    place, tied = _places(fetched["i"], rows)
    if len(tied):
        connection.register("tied", pa.table({"i": tied}))
        connection.execute("DELETE FROM won WHERE i NOT IN (SELECT i FROM tied)")
        connection.unregister("tied")
        query = sql.values(view, reach, as_known=as_known, ties=True)
        settled = connection.sql(query).to_arrow_table()
        place[settled["i"].to_numpy()] = fetched.num_rows + np.arange(settled.num_rows)
        fetched = pa.concat_tables([fetched, settled])
    connection.execute("DROP TABLE won")
    connection.execute("DROP TABLE ids")
    nowhere = place < 0
    found = []
    for i, (_, name) in enumerate(view.features):
        found.append((name, _gathered(fetched["f" + str(i)], place, nowhere)))
        fetched = fetched.drop_columns("f" + str(i))
    return found


def won(
    connection: duckdb.DuckDBPyConnection, entities: Entities, bound: Bound, *, as_known: bool
) -> sql.Span:
    """Make the tables `ids` and `won`: which event time of which key each entity row uses."""
    view = bound.view
    connection.register("spine", _spine(entities, bound))
    connection.execute(f"CREATE OR REPLACE TEMP TABLE ids AS {sql.numbering(view)}")
    connection.execute(f"CREATE OR REPLACE TEMP TABLE asked AS {sql.asked(view)}")
    connection.unregister("spine")
    count, most, mean = connection.execute(
        "SELECT count(*), coalesce(max(n), 0), coalesce(avg(n), 0) FROM ids"
    ).fetchall()[0]
    crowded = most > _MOST_UNCROWDED or mean > _MEAN_UNCROWDED
    reach = span(entities, view)
    if crowded:
        reach = _packed(connection, view, reach, count)
    winners = sql.winners(view, reach, as_known=as_known, crowded=crowded)
    connection.execute(f"CREATE OR REPLACE TEMP TABLE won AS {winners}")
    connection.execute("DROP TABLE asked")
    return reach


def span(entities: Entities, view: sql.View) -> sql.Span:
    """Return the event times between which every usable source row lies."""
    reach = entities.range()
    if reach is None:
        return sql.Span(1, 0)
    return sql.Span(reach[0] - view.ttl if view.ttl else None, reach[1])


def _packed(
    connection: duckdb.DuckDBPyConnection, view: sql.View, reach: sql.Span, ids: int
) -> sql.Span:
    """Bound the span on both sides, and set its width if key and time fit one number."""
    since, until = reach.since, reach.until
    if since is None:
        since = connection.execute(sql.earliest(view, until)).fetchall()[0][0]
    if since is None or until is None or until < since:
        return reach
    width = until - since + 1
    return sql.Span(since, until, width if (ids + 1) * width < _INT64 else None)


def _gathered(
    column: pa.ChunkedArray, place: NDArray[np.int64], nowhere: NDArray[np.bool_]
) -> pa.Array:
    """Return the values at `place`, null where there is none.

    numpy gathers plain numbers three times as fast as Arrow's take.
    """
    kind = column.type
    if column.null_count or not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        return column.combine_chunks().take(pa.array(place, mask=nowhere))
    if len(column) == 0:
        return pa.nulls(len(place), kind)
    return pa.array(column.to_numpy()[place], type=kind, mask=nowhere)


def _spine(entities: Entities, bound: Bound) -> pa.Table:
    columns = {
        "i": pa.array(np.arange(entities.table.num_rows, dtype=np.int64)),
        "t": entities.instants(),
    }
    for n, (name, key) in enumerate(zip(bound.entity_columns, bound.view.keys, strict=True)):
        columns[f"k{n}"] = spine_key(name, entities.table[name], bound, key)
    return pa.table(columns)


def _places(indices: pa.ChunkedArray, rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where each row's values are among those fetched (-1: nowhere), and the tied rows."""
    found = indices.to_numpy()
    place = np.full(rows, -1, dtype=np.int64)
    place[found] = np.arange(len(found), dtype=np.int64)
    distinct = int(np.count_nonzero(place >= 0))
    if distinct == len(found):
        return place, np.empty(0, dtype=np.int64)
    return place, np.flatnonzero(np.bincount(found, minlength=rows) > 1)
