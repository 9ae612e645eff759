"""The point-in-time join: entity rows in, one value per feature and row out.

Above `views`. For each view: an ASOF join on keys and times alone finds every row's winner, then
an equi-join fetches the features of the winners. What ties in event time is rare: it shows as
more rows fetched than won, and only then is the total order evaluated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from featurestore import sql
from featurestore.offline.views import spine_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    import duckdb

    from featurestore.offline.entities import Entities
    from featurestore.offline.views import Bound


def point_in_time(
    connection: duckdb.DuckDBPyConnection,
    entities: Entities,
    bounds: Sequence[Bound],
    *,
    as_known: bool,
) -> pa.Table:
    """Return the entity table with each view's features appended, row for row.

    Args:
        connection: Where the join runs; its table `won` is overwritten.
        entities: The rows asked for.
        bounds: The views.
        as_known: Use a source row only from its created time on.
    """
    table = entities.table
    for bound in bounds:
        if not bound.view.features:
            continue
        for name, column in features_of(connection, entities, bound, as_known=as_known).items():
            at = table.schema.get_field_index(name)
            # A column of the frame that shares a feature's name gives way to the feature.
            table = (
                table.append_column(name, column) if at < 0 else table.set_column(at, name, column)
            )
    return table


def features_of(
    connection: duckdb.DuckDBPyConnection, entities: Entities, bound: Bound, *, as_known: bool
) -> dict[str, pa.ChunkedArray]:
    """Return one view's features by result name, one value per entity row."""
    view, rows = bound.view, entities.table.num_rows
    connection.register("spine", _spine(entities, bound))
    try:
        since, until = _reach(entities, view)
        winners = sql.winners(view, since, until, as_known=as_known)
        connection.execute(f"CREATE OR REPLACE TEMP TABLE won AS {winners}")
        won = connection.execute("SELECT count(*) FROM won").fetchall()[0][0]
        fetched = connection.execute(
            sql.values(view, since, until, as_known=as_known, ties=False)
        ).to_arrow_table()
        if fetched.num_rows != won:
            fetched = connection.execute(
                sql.values(view, since, until, as_known=as_known, ties=True)
            ).to_arrow_table()
    finally:
        connection.unregister("spine")
        connection.execute("DROP TABLE IF EXISTS won")
    order = _places(fetched["i"], rows)
    return {name: fetched[f"f{i}"].take(order) for i, (_, name) in enumerate(view.features)}


def _spine(entities: Entities, bound: Bound) -> pa.Table:
    columns = {
        "i": pa.array(np.arange(entities.table.num_rows, dtype=np.int64)),
        "t": entities.instants(),
    }
    for n, (name, key) in enumerate(zip(bound.entity_columns, bound.view.keys, strict=True)):
        columns[f"k{n}"] = spine_key(name, entities.table[name], bound, key)
    return pa.table(columns)


def _reach(entities: Entities, view: sql.View) -> tuple[int | None, int | None]:
    """Return the event times between which every usable source row lies."""
    span = entities.range()
    if span is None:
        return 1, 0
    return (span[0] - view.ttl if view.ttl else None), span[1]


def _places(indices: pa.ChunkedArray, rows: int) -> pa.Array:
    """Return where each row's values are among those fetched; null where there are none."""
    place = np.full(rows, -1, dtype=np.int64)
    place[indices.to_numpy()] = np.arange(len(indices), dtype=np.int64)
    return pa.array(place, mask=place < 0)
